"""The front door of adversarial training: its files, the collapse monitor with its rollbacks, and refusals."""

import json
import os
import shutil
import signal

import pytest
import torch
import yaml
from PIL import Image

import hfgen
from hfgen import GANPipeline, HFGenPipeline
from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.families.callbacks import Callback, Callbacks
from hfgen.families.gan import collapse
from hfgen.families.gan.options import AdversarialArgs, GANArgs, GANTrainArgs, HealthArgs
from hfgen.families.gan.recipe import GANRecipe
from hfgen.metrics.features import load_features
from hfgen.options import DataArgs
from hfgen.saving import hub
from hfgen.trainer.checkpoint import checkpoints
from hfgen.training import train_gan
from hfgen.utils.seeds import generator_of
from tests.helpers.doors import check_refusal, check_saved_grid, check_stops, run_door
from tests.helpers.processes import launch
from tests.helpers.toys import rows

QUICK = ["--dataset_split", "train[:96]", "--train_batch_size", "8", "--model", "mlp", "--model_size", "xs"]
FEW = ["--max_train_steps", "2", "--lr_warmup_steps", "1", "--eval_batch_size", "6", "--report_to", "none"]
FEW += ["--latent_channels", "4", "--logging_steps", "1"]
HEALTH = ["--health_samples", "30"]


def run(capsys, *words):
    """Run the front door in this process; return exit status, stdout and error output."""
    return run_door(train_gan.main, capsys, *words)


def train(capsys, folder, *words):
    """Run two steps, and return stdout."""
    health = [] if "--health_steps" in words else ["--health_steps", "0"]
    status, out, errors = run(capsys, *QUICK, *FEW, *health, "--output_dir", folder, *words)
    assert status == 0, errors
    return out


# --- the files of a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [False, True])
def test_a_run_saves_a_pipeline_with_pictures_measurements_and_a_card(capsys, tmp_path, classes):
    folder = tmp_path / "run"
    words = ["--sample_steps", "1", "--health_steps", "1", *HEALTH, "--on_collapse", "continue"]
    out = train(capsys, folder, *words, *(["--class_conditional", "--eval_batch_size", "20"] if classes else []))
    assert {path.name for path in folder.glob("*.png")} == {"samples.png", "loss.png", "health.png"}
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-0000001.png"]
    with Image.open(folder / "interpolation.gif") as film:
        assert film.n_frames >= 30
    pipeline = HFGenPipeline.from_pretrained(folder, discriminator=True)
    assert type(pipeline) is GANPipeline and pipeline.config.num_classes == (10 if classes else None)
    labels = torch.zeros(2, dtype=torch.long) if classes else None
    assert pipeline.discriminator(torch.zeros(2, 1, 8, 8), labels).logits.shape == (2,)
    options = yaml.safe_load((folder / "config.yaml").read_text())
    assert (options["loss"], options["model"], options["health_steps"]) == ("non_saturating", "mlp", 1)

    health_rows = [json.loads(line) for line in (folder / "health.jsonl").read_text().splitlines()]
    assert [row["step"] for row in health_rows] == [1, 2] and out.count("recall") >= 2
    entries = {entry["metric"]: entry for entry in json.loads((folder / "metrics.json").read_text())["evaluation"]}
    card = (folder / "README.md").read_text()
    assert len(entries) == 4
    for name, entry in entries.items():
        assert f"| {name} | {entry['value']:.4g}" in card
        assert (entry["protocol"]["real images"], entry["protocol"]["generated images"]) == (30, 30)
    (diversity,) = [entry["value"] for name, entry in entries.items() if name.startswith("diversity")]
    assert diversity == health_rows[1]["diversity"]
    for name in ("samples.png", "interpolation.gif", "health.png", "loss.png"):
        assert f"]({name})" in card
    assert "hfgen train gan --config config.yaml" in card and str(tmp_path) not in card
    assert "| penalties | r1 1 every 4 steps |" in card and "| health | measured 2" in card
    names = set(hub.files_to_push(folder))
    assert {"README.md", "health.png", "generator/config.json", "discriminator/config.json"} <= names
    assert not [name for name in names if "checkpoint" in name]


def test_the_saved_pipeline_draws_the_samples_of_the_grid(capsys, tmp_path):
    train(capsys, tmp_path / "run")
    check_saved_grid(tmp_path / "run", tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["--r1", "0", "--model", "dcgan"],
        ["--loss", "wasserstein", "--weight_clip", "0.01", "--n_critic", "2", "--model", "dcgan", "--no_use_ema"],
        ["--loss", "wasserstein", "--weight_clip", "0.01", "--optimizer", "rmsprop", "--learning_rate", "5e-5"],
        ["--loss", "wasserstein", "--gradient_penalty", "10", "--penalty_every", "2", "--model", "dcgan"],
        ["--loss", "hinge", "--learning_rate", "1e-4", "--discriminator_learning_rate", "4e-4"],
        ["--loss", "hinge", "--spectral_norm", "--model", "resnet", "--consistency", "1", "--class_conditional"],
        ["--loss", "least_squares", "--control", "0.1", "--memory_size", "40", "--augment", "color,translation"],
        ["--model", "residual", "--loss", "relativistic", "--r2", "1", "--mixed_precision", "bf16"],
        ["--mode_seeking", "0.1", "--class_conditional", "--max_grad_norm", "null"],
    ],
    ids=lambda words: "-".join(word.strip("-") for word in words[:4]),
)
def test_the_gans_of_the_literature_are_choices_of_options(capsys, tmp_path, words):
    train(capsys, tmp_path / "run", *words)
    row = rows(tmp_path / "run")[-1]
    assert {"discriminator/loss", "generator/loss", "discriminator/accuracy_real", "generator/diversity"} <= set(row)
    pipeline = HFGenPipeline.from_pretrained(tmp_path / "run", discriminator=True)
    assert pipeline.generator.dtype == torch.float32 and not (tmp_path / "run" / "health.jsonl").exists()
    if "dcgan" in words:  # no batch norm with a penalty on the gradient at single images
        assert pipeline.discriminator.config.norm == ("none" if "--gradient_penalty" in words else "batch")
    if "--weight_clip" in words:
        assert max(p.abs().max() for p in pipeline.discriminator.parameters()) <= 0.01 + 1e-7


def test_eval_steps_saves_the_best_pipeline(capsys, tmp_path):
    words = ["--eval_steps", "1", "--eval_num_samples", "70"]
    train(capsys, tmp_path / "run", *words)
    best = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert best["evaluation"][0]["metric"].startswith("Frechet distance")
    assert type(HFGenPipeline.from_pretrained(tmp_path / "run" / "best")) is GANPipeline


def test_an_interrupted_run_ends_like_an_uninterrupted_one(capsys, tmp_path, monkeypatch):
    """The replay buffer, health measurements and sample grids go on after the stops."""
    long = ["--max_train_steps", "5", "--sample_steps", "2", "--checkpointing_steps", "2", "--health_steps", "2"]
    long += ["--control", "0.1", "--memory_size", "32", "--gradient_accumulation_steps", "2"]
    long += ["--on_collapse", "continue"]
    words = [*QUICK, *FEW, *long]
    whole, cut = check_stops(train_gan.main, capsys, monkeypatch, tmp_path, words, {1: 1, 5: 3})
    assert whole["health.jsonl"] == cut["health.jsonl"]


def test_a_dry_run_estimates_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, errors = run(capsys, *QUICK, *FEW, "--max_train_steps", "1000", "--output_dir", "x", "--dry_run")
    assert status == 0, errors
    assert "generator parameters" in out and "discriminator parameters" in out and not list(tmp_path.rglob("*"))


# --- health -----------------------------------------------------------------------------------------------------------


class FakePipeline:
    """A pipeline that draws from given images: all digits, one class, or a single image."""

    device = torch.device("cpu")

    def __init__(self, images, classes=None):
        self.images, self.config = images, type("Config", (), {"num_classes": classes})

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, batch_size, generator, output_type, class_labels=None):
        rows = [torch.randint(len(self.images), (), generator=each).item() for each in generator]
        return type("Out", (), {"images": self.images[rows].float() / 255})


def monitor_in(folder, **options):
    """Return a collapse monitor of a run in this folder, on all digits."""
    folder.mkdir(exist_ok=True)
    args = HealthArgs(**{"health_samples": 400, **options})
    return collapse.CollapseMonitor(args, "auto", 0, load_images(DataArgs()), folder)


def test_one_measurement_of_a_collapsed_generator_raises_the_alarm(tmp_path, capsys):
    digits = load_images(DataArgs())
    one_image, one_class = digits.images[:1], digits.images[digits.labels == 3]
    monitor = monitor_in(tmp_path / "image")
    assert monitor.measure(FakePipeline(one_image), 500)
    assert "differ 0 times as much as real ones, below 0.2" in monitor.alarm
    monitor = monitor_in(tmp_path / "class")
    assert not monitor.measure(FakePipeline(digits.images), 500)
    assert monitor.measure(FakePipeline(one_class), 1000) and "less than half of" in monitor.alarm
    noisy = one_image.repeat(50, 1, 1, 1) ^ torch.randint(0, 16, (50, 1, 8, 8), dtype=torch.uint8)
    assert monitor_in(tmp_path / "noise").measure(FakePipeline(noisy), 500)  # pixels differ, features hardly
    assert "warning: at step 1000 the generator has collapsed" in capsys.readouterr().err


def test_a_generator_that_has_hardly_begun_has_not_collapsed(tmp_path):
    one_image = FakePipeline(load_images(DataArgs()).images[:1])
    monitor = monitor_in(tmp_path / "run")
    assert not monitor.measure(one_image, 20) and monitor.alarm is None
    assert monitor.measure(one_image, 500) and monitor_in(tmp_path / "other").measure(one_image, 500)

    def alarm(*diversities, step=50):
        rows = [{"step": step * n, "diversity": d, "coverage": 0.0} for n, d in enumerate(diversities, 1)]
        return collapse.alarm_of(rows[-1], rows[:-1])

    assert alarm(0.1) is alarm(0.05, 0.09, 0.14) is alarm(0.01, 0.02, step=2000) is None
    assert all("below 0.2" in text for text in (alarm(0.1, 0.1), alarm(0.3, 0.19), alarm(0.1, 0.15, 0.12)))


def test_the_summary_lists_all_penalties_and_constraints():
    def summary(**options):
        parts = (DataArgs(), GANArgs(), AdversarialArgs(**options), HealthArgs(), GANTrainArgs())
        return GANRecipe(*parts).penalty_summary

    assert summary() == "r1 1 every 4 steps" and summary(r1=0.0) == "none"
    assert summary(spectral_norm=True) == "spectral norm 1" and summary(weight_clip=0.01) == "weight clip 0.01"
    assert summary(gradient_penalty=10.0, penalty_every=1, consistency=2.0) == "gradient penalty 10, consistency 2"


def test_ten_measurements_of_a_healthy_generator_raise_no_alarm(tmp_path):
    digits, monitor = load_images(DataArgs()), monitor_in(tmp_path / "run")
    for step in range(1, 11):  # the images change from measurement to measurement
        part = torch.randperm(len(digits), generator=torch.Generator().manual_seed(step))[:600]
        assert not monitor.measure(FakePipeline(digits.images[part]), step) and monitor.alarm is None
    assert len(monitor.rows) == 10 and monitor.rows[-1]["classes_covered"] == 10


def test_a_real_training_is_healthy_in_ten_measurements_and_collapsed_in_one(capsys, tmp_path):
    """The first images hardly differ, and later ones do as real images do. Then the generator is replaced."""
    folder, words = tmp_path / "run", ["--model", "mlp", "--model_size", "xs", "--train_batch_size", "32"]
    words += ["--max_train_steps", "300", "--health_steps", "30", "--health_samples", "300", "--sample_steps", "0"]
    status, _, errors = run(capsys, *words, "--report_to", "none", "--output_dir", folder)
    assert status == 0, errors
    monitor = monitor_in(folder, health_samples=300)
    monitor.begin()
    assert [row["step"] for row in monitor.rows] == list(range(30, 301, 30))
    assert not [row for row in monitor.rows if row["alarm"] is not None]
    assert monitor.rows[0]["diversity"] < collapse.LEAST_DIVERSITY < 0.5 < monitor.rows[-1]["diversity"]
    assert monitor.rows[-1]["coverage"] > collapse.LEAST_COVERAGE and monitor.rows[-1]["classes_covered"] >= 9

    pipeline = HFGenPipeline.from_pretrained(folder)
    assert not monitor.measure(pipeline, 310)
    z = torch.randn(4, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    four = ((pipeline.decode(z).clamp(-1, 1) + 1) * 127.5).round().byte()
    assert monitor.measure(FakePipeline(four), 320) and "it covers" in monitor.alarm
    with torch.no_grad():
        next(pipeline.generator.parameters()).mul_(0.02)  # the images hardly depend on the latents
    assert monitor.measure(pipeline, 330) and "differ" in monitor.alarm


def test_measurements_with_other_features_or_samples_are_not_compared(tmp_path, monkeypatch):
    """Coverage depends on the number of samples and on the feature space."""
    digits, folder = load_images(DataArgs()), tmp_path / "run"
    one_class = FakePipeline(digits.images[digits.labels == 3])
    first = monitor_in(folder)
    assert not first.measure(FakePipeline(digits.images), 500)
    (folder / "checkpoint-500").mkdir()
    before = (folder / "health.jsonl").read_text()

    def measure(**options):
        (folder / "health.jsonl").write_text(before)
        monitor = monitor_in(folder, **options)
        assert monitor.begin() == 0 and [row["step"] for row in monitor.rows] == [500]
        return monitor.measure(one_class, 1000)

    assert measure() and not measure(health_samples=300)
    pixels = collapse.features_of("auto", load_images(DataArgs(resolution=12, max_train_samples=20)))
    monkeypatch.setattr(collapse, "features_of", lambda *_: pixels)
    assert not measure()
    monkeypatch.undo()
    before = json.dumps({key: value for key, value in first.rows[0].items() if key not in ("features", "samples")})
    assert not measure()  # rows of older versions have no features and samples


def test_measurements_are_those_of_the_metrics(tmp_path):
    from hfgen.evaluation.reference import reference_rows
    from hfgen.metrics import neighbours

    digits = load_images(DataArgs())
    monitor, images = monitor_in(tmp_path / "run", health_samples=60), digits.images[200:260]
    monitor.measure(FakePipeline(images), 1)
    network = load_features("digits")
    order = [torch.randint(60, (), generator=generator_of("health", 0, i)).item() for i in range(60)]
    real = network.describe(digits.images[reference_rows(digits, 60)]).features
    fake = network.describe(images[order]).features
    expected = neighbours.prdc(real, fake)
    (row,) = monitor.rows
    assert row["recall"] == expected["recall"] and row["coverage"] == expected["coverage"]
    assert row["diversity"] == pytest.approx(neighbours.diversity(fake) / neighbours.diversity(real))


def test_images_without_a_feature_network_are_compared_by_coarse_pixels(tmp_path):
    data = load_images(DataArgs(resolution=12, max_train_samples=100))
    network = collapse.features_of("auto", data)
    assert network.name == "8 x 8 pixels" and network.describe(data.images).features.shape == (100, 64)
    monitor = collapse.CollapseMonitor(HealthArgs(health_samples=30), "auto", 0, data, tmp_path)
    assert not monitor.measure(FakePipeline(data.images), 5) and "classes" not in monitor.rows[0]


# --- collapse ---------------------------------------------------------------------------------------------------------

COLLAPSE = ["--max_train_steps", "8", "--checkpointing_steps", "1", "--health_steps", "2", "--sample_steps", "0"]
COLLAPSE += ["--checkpoints_total_limit", "4", *HEALTH]


def raise_alarms(monkeypatch, *steps):
    """Make the measurements of these steps raise an alarm, each once; return the list of all measured steps."""
    alarms, measured_steps = list(steps), []

    def alarm(row, before):
        measured_steps.append(row["step"])
        return f"a test, {alarms.pop(0)}" if alarms[:1] == [row["step"]] else None

    monkeypatch.setattr(collapse, "alarm_of", alarm)
    return measured_steps


def rollbacks_of(folder):
    """Return step and `rolled_back_to` of the rows of health.jsonl."""
    rows = [json.loads(line) for line in (folder / "health.jsonl").read_text().splitlines()]
    return [(row["step"], row.get("rolled_back_to")) for row in rows]


def test_stop_names_the_last_healthy_checkpoint_and_makes_it_the_newest(capsys, tmp_path, monkeypatch):
    raise_alarms(monkeypatch, 6)
    status, _, errors = run(capsys, *QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run")
    assert status == 1
    assert errors.splitlines()[-1].startswith("error: At step 6 the generator had collapsed: a test, 6.")
    assert f"The last healthy one is {tmp_path / 'run' / 'checkpoint-4'}" in errors and "--learning_rate" in errors
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"checkpoint-4", "collapsed-5", "collapsed-6"} <= names and "README.md" not in names
    status, out, _ = run(capsys, *QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--learning_rate", "1e-4")
    assert status == 0 and "checkpoint-4 at step 4" in out and (tmp_path / "run" / "README.md").is_file()
    assert [row["step"] for row in map(json.loads, (tmp_path / "run" / "health.jsonl").open())] == [2, 4, 6, 8]


def test_continue_warns_and_goes_on(capsys, tmp_path, monkeypatch):
    raise_alarms(monkeypatch, 4)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "continue"]
    status, _, errors = run(capsys, *words)
    assert status == 0 and "warning: at step 4 the generator has collapsed: a test, 4." in errors
    assert "collapsed at step 4; 0 rollbacks" in (tmp_path / "run" / "README.md").read_text()


def test_rollback_goes_on_from_the_last_healthy_checkpoint_with_half_the_learning_rate(capsys, tmp_path, monkeypatch):
    steps = raise_alarms(monkeypatch, 4, 6)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    words += ["--lr_scheduler", "constant", "--learning_rate", "0.001", "--lr_warmup_steps", "0"]
    status, out, errors = run(capsys, *words)
    assert status == 0, errors
    assert steps == [2, 4, 4, 6, 6, 8] and out.count("It does so now, with half the learning rate") == 2
    rates = {row["step"]: row["generator/lr"] for row in rows(tmp_path / "run")}
    assert rates == {1: 1e-3, 2: 1e-3, 3: 5e-4, 4: 5e-4, **dict.fromkeys((5, 6, 7, 8), 2.5e-4)}
    names = {path.name for path in (tmp_path / "run").glob("*-[0-9]*")}
    assert names == {f"checkpoint-{n}" for n in (5, 6, 7, 8)} | {f"collapsed-{n}" for n in (3, 4, 5, 6)}
    assert rollbacks_of(tmp_path / "run") == [(2, None), (4, 2), (4, None), (6, 4), (6, None), (8, None)]
    assert "2 rollbacks" in (tmp_path / "run" / "README.md").read_text()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["learning_rate"] == 1e-3


def test_a_resumed_run_remembers_its_rollbacks(capsys, tmp_path, monkeypatch):
    raise_alarms(monkeypatch, 4)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    words += ["--lr_scheduler", "constant", "--lr_warmup_steps", "0"]
    finish = Batches._finish

    def finish_and_stop(self, number, *batch):
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, number, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "_finish", finish_and_stop)
        assert run(capsys, *words)[0] == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "README.md").exists()
    status, out, _ = run(capsys, *words)
    assert status == 0 and "LR 0.001," in out and rows(tmp_path / "run")[-1]["generator/lr"] == 1e-3


def test_a_signal_in_the_step_of_an_alarm_ends_the_run_after_the_rollback(capsys, tmp_path, monkeypatch):
    raise_alarms(monkeypatch, 4)
    measure = collapse.CollapseMonitor.measure

    def measure_and_stop(self, pipeline, step):
        if step == 4 and self.rollbacks == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, pipeline, step)

    monkeypatch.setattr(collapse.CollapseMonitor, "measure", measure_and_stop)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    words += ["--lr_scheduler", "constant", "--lr_warmup_steps", "0"]
    status, out, errors = run(capsys, *words)
    assert status == 128 + signal.SIGTERM, errors
    assert "It does so the next time, with half the learning rate." in out
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-1", "checkpoint-2"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    status, out, _ = run(capsys, *words)
    assert status == 0 and "checkpoint-2 at step 2" in out and (tmp_path / "run" / "README.md").is_file()
    assert rows(tmp_path / "run")[-1]["generator/lr"] == 1e-3


@pytest.mark.parametrize("count", [0, 3])
def test_a_rollback_to_a_removed_checkpoint_does_not_count(capsys, tmp_path, monkeypatch, count):
    """A run rolls back from 6 to 4 and goes on to 8. Then its checkpoints after number `count` are removed."""
    raise_alarms(monkeypatch, 6)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    words += ["--lr_scheduler", "constant", "--lr_warmup_steps", "0", "--checkpoints_total_limit", "null"]
    assert run(capsys, *words)[0] == 0
    for folder in checkpoints(tmp_path / "run")[count:]:
        shutil.rmtree(folder)
    raise_alarms(monkeypatch, 4)
    status, _, errors = run(capsys, *words)
    assert status == 0, errors
    rates = {row["step"]: row["generator/lr"] for row in rows(tmp_path / "run")}
    assert rates == {**dict.fromkeys((1, 2), 2e-3), **dict.fromkeys(range(3, 9), 1e-3)}
    assert rollbacks_of(tmp_path / "run") == [(2, None), (4, 2), (4, None), (6, None), (8, None)]
    assert "1 rollbacks" in (tmp_path / "run" / "README.md").read_text()


def test_the_fourth_alarm_ends_the_run(capsys, tmp_path, monkeypatch):
    raise_alarms(monkeypatch, 4, 4, 4, 4)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    status, out, errors = run(capsys, *words)
    assert status == 1 and out.count("half the learning rate") == 3 and "rolled back 3 times" in errors
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"checkpoint-2", "collapsed-4", "collapsed-4-2", "collapsed-4-3", "collapsed-4-4"} <= names


def test_without_a_healthy_checkpoint_there_is_no_rollback(capsys, tmp_path, monkeypatch):
    raise_alarms(monkeypatch, 2)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    status, _, errors = run(capsys, *words)
    assert status == 1 and "There is no healthy one." in errors and not checkpoints(tmp_path / "run")


def test_a_collapse_at_the_last_step_ends_the_run_with_an_error(capsys, tmp_path, monkeypatch):
    raise_alarms(monkeypatch, 8)
    status, _, errors = run(capsys, *QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run")
    assert status == 1 and "At step 8" in errors and not (tmp_path / "run" / "README.md").exists()
    assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-6"


TWO = """
import os, signal, sys
from hfgen.trainer.log import Log
from hfgen.families.gan import collapse
from hfgen.training import train_gan
alarms = [4]
collapse.alarm_of = lambda row, before: "a test" if alarms and row["step"] == alarms[0] and alarms.pop() else None
step = Log.step
def step_and_signal(self, number, lr):
    if number == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    step(self, number, lr)
if sys.argv.pop(1) == "signal":
    Log.step = step_and_signal
sys.argv[0] = "train_gan.py"
train_gan.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "action", [pytest.param("stop", marks=pytest.mark.slow), pytest.param("rollback", marks=pytest.mark.slow), "signal"]
)
def test_two_processes_act_as_one(tmp_path, action):
    """The main process measures. A signal in the step of an alarm goes to the other process."""
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse"]
    words.append("rollback" if action == "signal" else action)
    process = launch(TWO, tmp_path, action, *words)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"collapsed-3", "collapsed-4"} <= names, process.stderr[-3000:]
    if action == "stop":
        assert process.returncode != 0 and "At step 4 the generator had collapsed: a test." in process.stderr
        assert "README.md" not in names
    elif action == "signal":
        assert "exitcode: 143" in process.stderr, process.stderr[-3000:]
        assert "README.md" not in names and "It does so the next time" in process.stdout
        assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-2"
    else:
        assert process.returncode == 0, process.stderr[-3000:]
        assert {"README.md", "checkpoint-8"} <= names and process.stdout.count("half the learning rate") == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory_size", "99"], "--memory_size 99 does nothing with --control 0.0, only with a number above 0"),
        (
            ["--health_steps", "0", "--on_collapse", "rollback"],
            "--on_collapse rollback does nothing with --health_steps",
        ),
        (["--r1", "0", "--penalty_every", "2"], "--penalty_every 2 does nothing without --r1"),
        (["--penalty_every", "0"], "--penalty_every 0 must be at least 1"),
        (["--r1", "-1"], "--r1 -1.0 must be at least 0"),
        (["--weight_clip", "-0.1"], "--weight_clip -0.1 must be at least 0"),
        (["--loss", "wasserstein", "--r1", "0"], "--loss wasserstein needs a critic of bounded slope"),
        (["--weight_clip", "0.01", "--spectral_norm"], "--weight_clip bounds nothing once --spectral_norm"),
        (["--n_critic", "0"], "--n_critic 0 must be at least 1"),
        (["--mode_seeking", "-1"], "--mode_seeking -1.0 must be at least 0"),
        (["--no_fresh_batches"], "--fresh_batches False does nothing with --n_critic 1, only with a number above 1"),
        (["--optimizer", "rmsprop", "--adam_beta1", "0.5"], "--adam_beta1 0.5 does nothing with --optimizer rmsprop"),
        (["--rmsprop_alpha", "0.9"], "--rmsprop_alpha 0.9 does nothing with --optimizer adamw, only with rmsprop"),
        (["--discriminator_learning_rate", "-1"], "--discriminator_learning_rate -1.0 must be"),
        (["--discriminator_learning_rate", ".nan"], "--discriminator_learning_rate nan must be"),
        (["--augment", "colour"], "augmentation 'colour' is not known. Choose some of: color, translation, cutout"),
        (["--control", "1", "--class_conditional"], "Control stores items without labels"),
        (["--latent_channels", "0"], "--latent_channels 0 must be at least 1"),
        (["--model", "dcgan", "--resolution", "3"], "can't make 3 x 3 images"),
        (["--health_samples", "5"], "--health_samples 5 must be at least 20"),
        (["--health_steps", "-1"], "--health_steps -1 must be at least 0"),
        (["--on_collapse", "rollback", "--checkpointing_steps", "0"], "--checkpointing_steps 0 saves none"),
        (["--on_collapse", "rollback", "--checkpointing_steps", "100"], "keeps none. Raise it to 6"),
        (["--on_collapse", "rollback", "--checkpointing_steps", "300"], "keeps none. Raise it to 4"),
        (["--gradient_checkpointing"], "--gradient_checkpointing is not for --model dcgan"),
        (["--eval_batch_size", "0"], "--eval_batch_size 0 must be at least 1"),
        (["--guidance_scale", "2"], "--guidance_scale is no option of hfgen train "),
    ],
)
def test_impossible_options_are_refused_before_data_are_read(capsys, tmp_path, monkeypatch, words, message):
    check_refusal(train_gan.main, capsys, monkeypatch, tmp_path / "run", words, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class_conditional", "--label_column", "none"], "has no labels for --class_conditional"),
        (["--control", "1", "--memory_size", "15"], "--memory_size 15 must be at least 16, twice the images of a step"),
        (["--dataset_split", "train[:10]"], "has 10 images, too few for --health_steps"),
        (["--max_train_steps", "0"], "--max_train_steps 0 must be at least 1"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused_before_training(capsys, tmp_path, words, message):
    status, _, errors = run(capsys, *QUICK, *FEW, "--output_dir", tmp_path / "run", *words)
    assert status == 2 and message in errors and errors.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_r1_is_the_default_without_another_penalty_or_constraint():
    def penalties(**options):
        parts = (DataArgs(), GANArgs(), AdversarialArgs(**options), HealthArgs(), GANTrainArgs())
        return GANRecipe(*parts).penalties()

    assert penalties() == [hfgen.R1(1.0, 4)] and penalties(loss="hinge", spectral_norm=True) == penalties(r1=0.0) == []
    assert penalties(loss="relativistic", r2=2.0, penalty_every=1) == [hfgen.R1(1.0), hfgen.R2(2.0)]
    assert penalties(loss="wasserstein", gradient_penalty=5.0, penalty_every=1) == [hfgen.GradientPenalty(5.0)]
    assert penalties(loss="wasserstein", weight_clip=0.1) == [hfgen.WeightClipping(0.1)]
    assert penalties(control=1.0, r1=0.5) == [hfgen.R1(0.5, 4), hfgen.Control(1.0)]


def test_callbacks_are_called_every_so_many_steps_and_stop_the_run_by_returning_true():
    calls = []
    every_two = Callback(2, lambda networks, step: calls.append(step))
    callbacks = Callbacks([every_two, Callback(0, lambda *_: True), Callback(6, lambda networks, step: step == 12)])
    assert callbacks.every == 2
    assert [callbacks({}, step) for step in (1, 2, 4, 6, 12)] == [False, False, False, False, True]
    assert calls == [2, 4, 6, 12] and Callbacks([]).every == 0
    with pytest.raises(ValueError, match="called every -1 steps"):
        Callback(-1, lambda *_: None)
