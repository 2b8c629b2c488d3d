"""Ctrl-C in commands that train or draw for long, as processes of their own: the first one saves, the second one ends
at once, and the same command goes on. And two comparisons at once."""

import os
import signal
import time
from unittest import mock

import pytest
from safetensors.torch import load_file

from hfgen import cli
from hfgen.compare import evaluator, jobs, recipes, report
from hfgen.data.batches import Batches
from hfgen.evaluation import reference
from hfgen.evaluation.reference import reference_set
from hfgen.families.reflow import pairs
from tests.compare.test_compare import QUICK, job_of
from tests.evaluation.test_evaluate import small_pipeline
from tests.families.test_kills import SHORT
from tests.families.test_surroundings import hold
from tests.helpers.commands import DOORS
from tests.helpers.doors import file_contents
from tests.helpers.kills import ForkedTraining, forked, popen_of, status_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

LONG = 400
"""Seconds that nothing may wait for."""

VAE = {"vae": recipes.RECIPES["vae"]}
WORDS = ["compare", *QUICK.replace("1280images", "640images").split(), "--latency_seconds", "0.01", "--device", "cpu"]
WORDS += ["--seed", "3"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder for a comparison of a VAE alone, whose trainings are forks and which measures nothing."""
    nothing = {"status": "no samples", "notes": [], "parameters": 1, "figures": {}, "speed": [], "abilities": []}
    monkeypatch.setattr(evaluator.Evaluator, "measure", lambda *_: nothing)
    monkeypatch.setattr(jobs, "subprocess", popen_of(ForkedTraining))
    monkeypatch.setattr(recipes, "RECIPES", VAE)
    return tmp_path / "out"


def compared(home, log, signals=(), patient=False):
    """Run a comparison as a process, whose training sends these signals to it before its fifth step, and then, if it is
    not `patient`, does nothing for LONG seconds; return status and output."""
    finish = Batches._finish

    def finish_and_send(self, number, *batch):
        if signals and number == 5:
            forwarded, handler = [], signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *given: (forwarded.append(1), handler(*given)))
            for sent in signals:
                os.kill(comparison, sent)
                while not forwarded:
                    time.sleep(0.01)
            if not patient:
                time.sleep(LONG)
        return finish(self, number, *batch)

    def act():
        nonlocal comparison
        comparison = os.getpid()
        with mock.patch.object(Batches, "_finish", finish_and_send):
            cli.main([*WORDS, "--output_dir", str(home), "--reference_cache", str(home.parent / "cache")])

    comparison = 0
    log.unlink(missing_ok=True)
    return status_of(forked(act, log)), log.read_text()


def weights(folder):
    return load_file(folder / "vae" / "autoencoder" / "diffusion_pytorch_model.safetensors")


def test_ctrl_c_in_a_comparison_saves_and_a_second_one_ends_it_at_once(home, tmp_path):
    log, start = tmp_path / "log.txt", time.perf_counter()
    status, text = compared(home, log, [signal.SIGINT, signal.SIGINT])
    assert status == 130 and "Stopped. The same command continues" in text and time.perf_counter() - start < LONG
    assert not list((home / "vae").glob("checkpoint-[5-9]*"))
    status, text = compared(home, log, [signal.SIGINT], patient=True)
    assert status == 130 and "Traceback" not in text and "error: " not in text
    (checkpoint,) = (home / "vae").glob("checkpoint-[5-9]")  # of the step that the signal came in
    assert not (home / "vae" / "model_index.json").exists() and not (home / "report.json").exists()
    status, text = compared(home, log)
    assert status == 0 and f"Resumed from {checkpoint}" in text and (home / "report.html").is_file()
    jobs.train(job_of(recipes.families(8, ["vae"])[0], tmp_path / "whole"), 10, print)
    ours, theirs = weights(home), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def test_a_signal_while_a_comparison_measures_or_writes_its_report_ends_it_and_it_goes_on(home, tmp_path, monkeypatch):
    log, start = tmp_path / "log.txt", time.perf_counter()

    def stop(number):
        os.kill(os.getpid(), number)
        time.sleep(LONG)

    for number, cls, name in (
        (signal.SIGHUP, evaluator.Evaluator, "measure"),
        (signal.SIGTERM, report, "write_text"),
        (signal.SIGINT, report, "write_text"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(cls, name, lambda *_, number=number: stop(number))
            status, text = compared(home, log)
        assert status == 128 + number and "Traceback" not in text and "error: " not in text, text[-2000:]
        assert text.count(f"interrupted by {signal.Signals(number).name}: run the same command again") == 1
        assert not (home / "report.json").exists() and (home / "vae" / "model_index.json").is_file()
    assert time.perf_counter() - start < LONG
    trained = weights(home)
    status, text = compared(home, log)
    assert status == 0 and "is trained already" in text and "is measured already" in text, text[-2000:]
    assert (home / "report.html").is_file()
    assert all((trained[key] == value).all() for key, value in weights(home).items())


def test_a_second_comparison_in_the_folder_is_told_before_any_work(home, capsys, monkeypatch):
    monkeypatch.setattr(evaluator, "Evaluator", lambda *_: pytest.fail("data were read"))
    holder = hold(home)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main([*WORDS, "--output_dir", str(home)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and f"process {holder.pid}" in error and "another folder" in error
    finally:
        holder.kill()
        holder.wait()


def test_two_measurements_that_fill_one_cache_at_once_both_end_well(tmp_path):
    """What both compute has the same bits, and the file is whole at any moment; so neither needs to wait."""
    from hfgen.data.images import load_images
    from hfgen.metrics.features import load_features
    from hfgen.options import DataArgs

    data, network, save = load_images(DataArgs(max_train_samples=40)), load_features("digits"), reference.save_file

    def save_slowly(tensors, path, **options):
        save(tensors, path, **options)
        time.sleep(0.5)

    def fill():
        with mock.patch.object(reference, "save_file", save_slowly):
            reference_set(data, 40, network, str(tmp_path / "cache"))

    logs = [tmp_path / "1.txt", tmp_path / "2.txt"]
    assert [status_of(process) for process in [forked(fill, log) for log in logs]] == [0, 0]
    assert not any(log.read_text() for log in logs)
    (path,) = (tmp_path / "cache").iterdir()
    assert set(load_file(path)) == {"features", "logits"}
    reference_set(data, 40, network, str(tmp_path / "cache"))


def bits(folder):
    """Return weights, couplings and pictures."""
    return {name: data for name, data in file_contents(folder).items() if name.endswith((".safetensors", ".png"))}


def drawn(teacher, folder, log, stop=None, again=False):
    """Run reflow as a process that sends itself SIGINT before its batch of pairs `stop`, and another one while it ends;
    return status and output."""
    shard = pairs.Source.shard

    def draw(self, number):
        if number == stop:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(LONG)
            finally:
                if again:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(LONG)
        return shard(self, number)

    words = [*SHORT, "--pipeline", teacher, "--num_pairs", "16", "--pair_batch_size", "4", "--pair_steps", "1"]
    words += ["--eval_samples", "10", "--features", "none", "--output_dir", folder]

    def act():
        with mock.patch.object(pairs.Source, "shard", draw):
            DOORS["train_reflow"].main(list(map(str, words)))

    log.unlink(missing_ok=True)
    return status_of(forked(act, log)), log.read_text()


def test_ctrl_c_while_pairs_are_drawn_keeps_them_and_a_second_one_ends_it_at_once(tmp_path):
    teacher, log, start = tmp_path / "teacher", tmp_path / "log.txt", time.perf_counter()
    small_pipeline().save_pretrained(teacher)
    for stop, again in ((1, True), (3, False)):
        status, text = drawn(teacher, tmp_path / "cut", log, stop, again)
        assert status == 130 and text.count("interrupted by SIGINT: run the same command again") == 1
        assert "Traceback" not in text and len(list((tmp_path / "cut" / "pairs").glob("*.safetensors"))) == stop
    assert time.perf_counter() - start < LONG
    for folder in ("cut", "whole"):
        assert drawn(teacher, tmp_path / folder, log)[0] == 0
    cut, whole = (bits(tmp_path / folder) for folder in ("cut", "whole"))
    assert cut == whole and len(whole) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flow_map", "distill", "reflow"])
def test_signals_in_a_training_of_few_steps_save_and_the_same_command_goes_on(tmp_path, family):
    """Each door that starts from a teacher, as a process that signals itself: three signals, one after the other."""
    teacher, log, finish = tmp_path / "teacher", tmp_path / "log.txt", Batches._finish
    small_pipeline().save_pretrained(teacher)
    words = ["--pipeline", teacher, *SHORT, "--max_train_steps", "5", "--features", "none", "--num_samples", "8"]
    words += {"reflow": ["--num_pairs", "8", "--pair_batch_size", "4", "--pair_steps", "1"]}.get(family, [])
    words += ["--gap_steps", "1"] if family == "flow_map" else []

    def trained(folder, number=None, stop=None):
        def finish_and_signal(self, at, *batch):
            if at == stop:
                os.kill(os.getpid(), number)
            return finish(self, at, *batch)

        def act():
            for each in (signal.SIGHUP, signal.SIGTERM):
                signal.signal(each, signal.SIG_DFL)
            with mock.patch.object(Batches, "_finish", finish_and_signal):
                DOORS[f"train_{family}"].main([*map(str, words), "--output_dir", str(folder)])

        log.unlink(missing_ok=True)
        return status_of(forked(act, log)), log.read_text()

    for stop, number in enumerate((signal.SIGINT, signal.SIGHUP, signal.SIGTERM), 1):
        status, text = trained(tmp_path / "cut", number, stop)
        assert status == 128 + number and "the same command goes on" in text, (number, text[-2000:])
        assert "Traceback" not in text and not (tmp_path / "cut" / "model_index.json").exists()
        assert ("Resumed from" in text) == (stop > 1)
    for folder in ("cut", "whole"):
        status, text = trained(tmp_path / folder)
        assert status == 0, text[-2000:]
    cut, whole = (
        {name: data for name, data in bits(tmp_path / folder).items() if "checkpoint" not in name}
        for folder in ("cut", "whole")
    )
    assert cut == whole and len(whole) >= 2
