"""A family is one folder and one registry entry: `tests/helpers/newfamily` is one, and no file of hfgen knows it.

It has 10 files and under 500 lines: sequences (T, D), a condition of token ids, an objective with a replay state, a
pipeline with an output of its own, a metric, a preview, a door. CONTRIBUTING.md walks through it.
"""

import ast
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from torch.testing import assert_close

import hfgen
from hfgen import registry
from hfgen.commands.sample import SampleOptions, _write
from hfgen.families.preview import Preview, curves_of
from hfgen.families.run import Run
from hfgen.objectives.base import Loss, Objective, Step
from hfgen.options import SampleArgs, TrainArgs
from hfgen.paths import StraightPath
from hfgen.utils import pictures
from hfgen.utils.seeds import seed_initialisation
from tests.helpers.cuts import Interruption
from tests.helpers.doors import file_contents, run_door
from tests.helpers.toys import ROOT, rows, weights
from tests.test_house import may_import

FOLDER = ROOT / "tests" / "helpers" / "newfamily"
MODULES = ("condition", "data", "metrics", "network", "objective", "options", "pipeline", "preview", "train_tones")
TABLES = ("FAMILIES", "PIPELINES", "NETWORKS", "SCHEDULERS", "COMPONENTS", "EXPORTS")

STEPS = 300
WORDS = ("--gradient_accumulation_steps", "2", "--train_batch_size", "32", "--checkpointing_steps", "100")
WORDS = (*WORDS, "--sample_steps", "150", "--logging_steps", "7", "--report_to", "none", "--guidance_scale", "1.5")
"""The door's options: checkpoints, samples and rows of the log are due at steps that differ from each other."""

KILLED = (140, 1)
"""Step and slice of the effective batch at which a run is killed: amid an accumulation, after checkpoint-100."""

TIMING = ("seconds", "sequences_per_second")
"""Columns of the log that measure time."""

CALL = {"prompt": [[0, 3], [2, 1], [1, 1]], "guidance_scale": 2.0, "num_inference_steps": 7}


# --- the family, registered while this file's tests run ---------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def family():
    """The family's modules by name, with the one entry that a family adds to hfgen."""
    before = {name: dict(getattr(registry, name)) for name in TABLES}
    package = importlib.import_module("tests.helpers.newfamily")
    registry.register("tones", package.FAMILY)
    yield SimpleNamespace(**{name: importlib.import_module(f"tests.helpers.newfamily.{name}") for name in MODULES})
    for name, table in before.items():
        getattr(registry, name).clear()
        getattr(registry, name).update(table)


def python(code, *words):
    """Start a fresh process that runs this code; its threads are as many as here, so that sums have the same order."""
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output_of(process):
    """Wait for a process that must succeed; return its output."""
    out, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, f"{out[-2000:]}\n{complaint[-4000:]}"
    return out


HFGEN = """
import sys, tests.helpers.newfamily
from hfgen.cli import main
main(sys.argv[1:])
"""
"""The command `hfgen` where the family is registered."""

KILL = f"""
import os, signal, sys
from tests.helpers.newfamily import train_tones
from tests.helpers.newfamily.objective import Rehearsal

loss = Rehearsal.loss

def kill(self, player, networks, batch, step):
    if (step.number, step.shard) == {KILLED}:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, player, networks, batch, step)

Rehearsal.loss = kill
train_tones.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def runs(family, tmp_path_factory):
    """(folder of a run of the door in this process, folder of one that was killed and went on by `hfgen train`, what
    the second process printed)."""
    whole, cut = (tmp_path_factory.mktemp(name) / "tones" for name in ("whole", "cut"))
    killed = python(KILL, *WORDS, "--output_dir", cut)
    family.train_tones.main([*WORDS, "--output_dir", str(whole)])
    _, complaint = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, complaint
    assert [path.name for path in cut.glob("checkpoint-*")] == ["checkpoint-100"]
    assert not (cut / "model_index.json").exists()
    return whole, cut, output_of(python(HFGEN, "train", "tones", *WORDS, "--output_dir", cut))


def load(folder):
    """The saved pipeline, silent."""
    pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeds(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


# --- the command line -------------------------------------------------------------------------------------------------


def test_its_help_needs_no_torch():
    code = """
import sys, tests.helpers.newfamily
from hfgen.cli import main
try:
    main(["train", "tones", "--help"])
except SystemExit as stop:
    assert not stop.code
print([name for name in ("torch", "diffusers", "accelerate", "numpy") if name in sys.modules])
"""
    out = output_of(python(code))
    assert out.splitlines()[-1] == "[]"
    assert "sequences in the replay buffer (only with --replay_share above 0)" in " ".join(out.split())
    assert "tones" in output_of(python(HFGEN, "train", "--help"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--replay_share", "0", "--replay_size", "64"], "--replay_size 64 does nothing with --replay_share 0.0"),
        (
            ["--prompt_dropout", "0", "--guidance_scale", "2"],
            "--guidance_scale 2.0 does nothing with --prompt",
        ),
        (["--scheduler", "hein"], "scheduler='hein' is not known"),
        (["--gradient_checkpointing"], "--gradient_checkpointing True does nothing here"),
        (["--num_frequencies", "8"], "num_frequencies=8 below half of length=16"),
        (["--replay_share", "2"], "--replay_share 2.0 must be from 0 to 1"),
        (["--replay_siz", "64"], "did you mean --replay_size?"),
    ],
)
def test_a_mistake_is_one_line(family, capsys, tmp_path, words, message):
    status, _, complaint = run_door(family.train_tones.main, capsys, *words, "--output_dir", tmp_path / "run")
    assert status == 2 and message in complaint and complaint.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_killed_run_goes_on_to_the_same_bits(runs):
    """Weights, averages, moments, replay buffers, pictures, log and evaluation."""
    whole, cut, out = runs
    assert f"Resumed from {cut / 'checkpoint-100'} at step 100 of {STEPS}" in out
    assert "data from sequence 6,400" in out
    assert rows(whole, TIMING) == rows(cut, TIMING)
    first, second = file_contents(whole), file_contents(cut)
    kinds = (".png", ".safetensors", "optimizer.bin")
    names = [name for name in first if name.endswith(kinds) and not name.startswith("checkpoint-200")]
    state = [f"checkpoint-{STEPS}/state_{name}.safetensors" for name in ("x", "prompt")]
    model = [f"checkpoint-{STEPS}/{name}" for name in ("model.safetensors", "ema_denoiser.safetensors")]
    assert {*state, *model, "denoiser/diffusion_pytorch_model.safetensors", "samples/step-0000150.png"} <= {*names}
    assert not [name for name in names if first[name] != second[name]]
    one, two = (json.loads(files["metrics.json"])["evaluation"] for files in (first, second))
    assert one == two


# --- Python -----------------------------------------------------------------------------------------------------------


class WatchedObjective(Objective):
    """An objective that calls `before(step)` before each loss."""

    def __init__(self, inner, before):
        self.inner, self.players, self.state, self._before = inner, inner.players, inner.state, before

    def loss(self, player, networks, batch, step):
        self._before(step)
        return self.inner.loss(player, networks, batch, step)


def train_in_python(family, folder, before=lambda step: None, **options):
    """Train by `hfgen.train`, eight steps of 2 x 16 sequences: (network, objective, result)."""
    data = family.data.tones(1024, 16, 4, 0.05)
    seed_initialisation(0)
    network = family.network.ToneModel()
    denoising = hfgen.Denoising(StraightPath(), condition=family.condition.PromptCondition(4), label_dropout=0.1)
    rehearsal = family.objective.Rehearsal(denoising, 96, {"x": (16, 2), "prompt": (2,)})
    objective = WatchedObjective(rehearsal, before)
    result = hfgen.train(
        network,
        objective,
        data,
        folder,
        pipeline=lambda networks: family.pipeline.TonePipeline(networks["denoiser"], hfgen.RectifiedFlowScheduler()),
        preview=family.preview.TonePreview(family.options.ToneSolverArgs(guidance_scale=1.5), 4, 0),
        complete=lambda made: hfgen.Finished(made, {"why": "a test"}, family.metrics.evaluate(made, 2, 0)),
        **{
            **{"max_train_steps": 8, "train_batch_size": 16, "gradient_accumulation_steps": 2, "learning_rate": 3e-3},
            **{"sample_steps": 3, "checkpointing_steps": 2, "logging_steps": 3, "report_to": "none", **options},
        },
    )
    return network, objective, result


@pytest.fixture(scope="module")
def python_run(family, tmp_path_factory):
    """(folder, network, objective, result) of an uninterrupted training from Python."""
    folder = tmp_path_factory.mktemp("python") / "run"
    return folder, *train_in_python(family, folder)


def test_python_and_the_command_line_train_the_same_bits(family, python_run, tmp_path):
    folder, network, *_ = python_run
    words = ["--max_train_steps", 8, "--train_batch_size", 16, "--gradient_accumulation_steps", 2, "--replay_size", 96]
    words += ["--sample_steps", 3, "--logging_steps", 3, "--report_to", "none", "--output_dir", tmp_path / "door"]
    family.train_tones.main(list(map(str, words)))
    assert rows(folder, TIMING) == rows(tmp_path / "door", TIMING)
    saved = [Path(place, "denoiser", "diffusion_pytorch_model.safetensors") for place in (folder, tmp_path / "door")]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    assert network.training is False


@pytest.mark.parametrize(
    "stops",
    [
        [(0, 1, None)],
        [(3, 1, None), (5, 0, None)],
        [(2, 0, signal.SIGTERM), (5, 1, signal.SIGTERM)],
        [(4, 1, signal.SIGINT), (6, 1, None)],
    ],
    ids=["first step", "lost twice", "stopped twice", "stopped and lost"],
)
def test_from_python_any_cut_gives_the_same_bits(family, python_run, tmp_path, stops):
    whole, network, objective, result = python_run
    for step, shard, how in stops:

        def interrupt(here, place=(step, shard), how=how):
            if (here.number, here.shard) == place:
                if how is None:
                    raise Interruption
                os.kill(os.getpid(), how)

        if how is None:
            with pytest.raises(Interruption):
                train_in_python(family, tmp_path, interrupt)
        else:
            assert not train_in_python(family, tmp_path, interrupt)[2].finished
    again, objective_again, result_again = train_in_python(family, tmp_path)
    for got, wanted in (
        ({"denoiser": again}, {"denoiser": network}),
        (result_again.networks, result.networks),
        (objective_again.state, objective.state),
    ):
        got, wanted = weights(got), weights(wanted)
        assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in got)
    assert rows(tmp_path, TIMING) == rows(whole, TIMING)
    assert result_again.finished and result_again.step == 8


def test_the_state_matters(python_run):
    """Were it lost, training would go on with other items: it holds the last 96 that were read and written."""
    folder, _, objective, _ = python_run
    assert objective.state["x"].items.abs().sum((1, 2)).min() > 0 and objective.state["x"].last.tolist() == [7, 32]
    logged = [row["replayed"] for row in rows(folder)]
    assert all(0.1 < share < 0.4 for share in logged)


def test_replayed_items_keep_their_prompts(family):
    batches = []

    class Inner(Objective):
        players = ("denoiser",)

        def loss(self, player, networks, batch, step):
            batches.append(batch)
            return Loss(torch.zeros(()), {"loss": torch.zeros(())})

    data = family.data.tones(256, 16, 4)
    objective = family.objective.Rehearsal(Inner(), 128, {"x": (16, 2), "prompt": (2,)}, share=0.5)
    for number in range(4):
        objective.loss("denoiser", {}, data.read(torch.arange(64) + 64 * number), Step(number))
    assert torch.equal(batches[0]["x"], data.read(torch.arange(64))["x"])
    for number, batch in enumerate(batches):
        assert batch["prompt"].dtype == torch.int64
        assert family.metrics.prompt_agreement(batch["x"], batch["prompt"], 4).min() == 1
        own = data.read(torch.arange(64) + 64 * number)["x"]
        replayed = (batch["x"] != own).flatten(1).any(1).double().mean()
        assert 0.3 < replayed < 0.7 if number else replayed == 0


# --- the saved folder -------------------------------------------------------------------------------------------------

WITHOUT = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hfgen", "tests"):
            raise ModuleNotFoundError(f"no {name} on this machine")

sys.meta_path.insert(0, Blocker())
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
call = json.loads(sys.argv[3])
output = pipeline(**call, generator=[torch.Generator().manual_seed(i) for i in range(3)])
assert torch.equal(output.sequences, torch.load(sys.argv[2]))
assert not [name for name in sys.modules if name.split(".")[0] in ("hfgen", "tests")]
"""

WITH = """
import json, sys
import numpy, torch
import hfgen, tests.helpers.newfamily
from hfgen.cli import main

folder, expected, call, work = sys.argv[1:]
call, expected = json.loads(call), torch.load(expected)
pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
assert type(pipeline).__module__ == "tests.helpers.newfamily.pipeline"
output = pipeline(**call, generator=[torch.Generator().manual_seed(i) for i in range(3)])
assert torch.equal(output.sequences, expected) and output[0] is output.sequences
words = ["sample", folder, "--num_samples", "3", "--device", "cpu", "--output_dir", work, "--grid", f"{work}/grid.png"]
words += ["--num_inference_steps", str(call["num_inference_steps"]), "--guidance_scale", str(call["guidance_scale"])]
main([*words, "--call.prompt", json.dumps(call["prompt"])])
assert numpy.array_equal(numpy.load(f"{work}/samples.npy"), expected.numpy())
for words in (["sample", folder], ["sample", folder, "--call.prompt", "[0, 4]"]):
    try:
        main(words)
    except SystemExit as stop:
        assert stop.code == 2
"""


def test_other_processes_draw_the_same_bits_with_hfgen_and_without(runs, tmp_path):
    pipeline = load(runs[0])
    torch.save(pipeline(**CALL, generator=seeds(3)).sequences, tmp_path / "expected.pt")
    words = (runs[0], tmp_path / "expected.pt", json.dumps(CALL))
    without, beside = python(WITHOUT, *words), python(WITH, *words, tmp_path / "drawn")
    output_of(without)
    out, complaint = beside.communicate(timeout=300)
    assert beside.returncode == 0, complaint
    assert f"3 samples in {tmp_path / 'drawn'}" in out
    assert "error: TonePipeline needs prompt. Add --call.prompt VALUE." in complaint
    assert "error: prompt=[0, 4] has an unknown token; tokens are 0 to 3." in complaint
    assert Image.open(tmp_path / "drawn" / "grid.png").size[0] > 100


def test_the_prompt_says_what_is_drawn(family, runs):
    """The strongest frequencies are the named ones; under guidance 0 they do not depend on the prompt."""
    pipeline, agreement = load(runs[0]), {}
    data = family.data.tones(512, 16, 4, 0.05, seed=1)
    prompts = data.tensors["prompt"]
    assert family.metrics.prompt_agreement(data.tensors["x"], prompts, 4).mean() == 1
    for scale in (0.0, 1.0, 1.5):
        options = {"guidance_scale": scale, "num_inference_steps": 10, "generator": seeds(512)}
        sequences = pipeline(prompts, **options).sequences
        assert sequences.shape == (512, 16, 2) and sequences.isfinite().all()
        agreement[scale] = float(family.metrics.prompt_agreement(sequences, prompts, 4).mean())
        if scale == 1:
            assert_close(sequences.std(), data.tensors["x"].std(), rtol=0.1, atol=0)
    assert agreement[1.5] > 0.9 and agreement[1.0] > 0.8 and abs(agreement[0.0] - 0.25) < 0.1
    alone = pipeline([2, 1], num_inference_steps=10, generator=seeds(1)).sequences
    batch = pipeline([2, 1], batch_size=3, num_inference_steps=10, generator=seeds(3)).sequences
    assert_close(batch[:1], alone)


@pytest.mark.parametrize("prompt", [[0, 4], [0, -1], [0], [[0, 1], [1]], [[0, 1, 2]], [0.5, 1.0], []], ids=str)
def test_a_prompt_that_is_none_is_refused(runs, prompt):
    with pytest.raises(ValueError, match=r"prompt|dim 1"):
        load(runs[0])(prompt)
    with pytest.raises(ValueError, match="a list of 3 such prompts"):
        load(runs[0])([[0, 1], [1, 2]], batch_size=3)


def test_it_is_evaluated_by_its_own_metric(family, runs):
    metrics = json.loads((runs[0] / "metrics.json").read_text())
    (entry,) = metrics["evaluation"]
    assert entry["metric"] == "prompt agreement" and entry["value"] > 0.9 and entry["better"] == "higher"
    assert entry["protocol"] == {
        **{"generated sequences": 128, "sampler": "RectifiedFlowScheduler", "evaluations": 10},
        **{"num_inference_steps": 10, "guidance_scale": 1.5, "seed": 0},
    }
    again = family.metrics.evaluate(load(runs[0]), 8, 0, num_inference_steps=10, guidance_scale=1.5)
    assert json.loads(json.dumps(again)) == [entry]
    assert metrics["sequences_seen"] == STEPS * 64 and "images_seen" not in metrics


def test_the_card_is_true(runs, python_run):
    for folder, (command, value) in {
        runs[0]: ("hfgen train tones --config config.yaml", "0.9"),
        python_run[0]: ("It was trained from Python", "0."),
    }.items():
        text = (folder / "README.md").read_text()
        start, end = "pipeline(prompt=[0, 3], batch_size=4)", "[0]\n"
        assert f"{start}{end}" in text and command in text and f"| prompt agreement | {value}" in text
        for part in (
            "1,024 sequences of shape (16, 2)",
            " sequences |",
            "generated sequences",
            "![samples](samples.png)",
        ):
            assert part in text
        for never in ("image", "ipykernel", "pytest", ".samples", str(folder.parent)):
            assert never not in text
        code = f"pipeline = hfgen.HFGenPipeline.from_pretrained({str(folder)!r})\nsamples = {start}{end}"
        names = {"hfgen": hfgen}
        exec(code, names)
        assert names["samples"].shape == (4, 16, 2)
    assert "| why | a test |" in text


def test_pictures_are_curves_of_the_sequences(family, runs):
    preview = family.preview.TonePreview(family.options.ToneSolverArgs(guidance_scale=1.5), 4, 0)
    with Image.open(runs[0] / "samples.png") as shown:
        assert shown.tobytes() == preview.grid(load(runs[0])).tobytes()
        assert shown.size == pictures.curves({"x": [(0, 0.0), (1, 1.0)]}).size
    assert (runs[0] / "samples" / "step-0000150.png").is_file()


def test_its_configuration_repeats_it(runs):
    config = yaml.safe_load((runs[0] / "config.yaml").read_text())
    assert config["replay_size"] == 512 and config["num_frequencies"] == 4
    assert not [name for name in config if name in ("dataset", "resolution", "eval_steps")]


# --- the house --------------------------------------------------------------------------------------------------------


def test_hfgen_does_not_know_the_family():
    for folder in ("hfgen", "pipelines", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "newfamily" not in text and "tones" not in text.split(), path


PLACES = {
    "condition": "models/prompt_condition",
    "data": "data/tones",
    "metrics": "metrics/tones",
    "network": "models/tones",
    "objective": "objectives/rehearsal",
    "options": "families/tones/options",
    "pipeline": "pipelines/tones",
    "preview": "families/tones/preview",
    "train_tones": "training/train_tones",
}
"""The place that each file has in hfgen, by CONTRIBUTING's table."""


@pytest.mark.parametrize("name", MODULES)
def test_each_file_obeys_the_import_law_in_its_place(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        target = PLACES[node.module] if node.level else node.module.removeprefix("hfgen.").replace(".", "/")
        if node.level or node.module.startswith("hfgen."):
            assert may_import(PLACES[name], target), f"{name}.py imports {target}"


def test_an_entry_can_not_take_the_name_of_another(family):
    entry, before = registry.FAMILIES["tones"], {name: dict(getattr(registry, name)) for name in TABLES}
    registry.register("tones", entry)
    with pytest.raises(ValueError, match="a family 'gan' already"):
        registry.register("gan", entry)
    other = registry.Family("elsewhere", {"New": "elsewhere"}, exports={"Denoising": "elsewhere"})
    with pytest.raises(ValueError, match="Denoising of elsewhere has the name"):
        registry.register("other", other)
    assert before == {name: getattr(registry, name) for name in TABLES}


def test_a_run_without_options_of_images_never_reads_images(tmp_path):
    with pytest.raises(ValueError, match=r"no DataArgs that name images\. Give Run\(\.\.\.\) or train"):
        print(Run([TrainArgs(output_dir=str(tmp_path))]).data)


def test_what_is_shown_of_any_items(runs):
    """The base class shows a command that works for them, and nothing of a picture that they do not have."""
    preview = Preview("Title", "kind", SampleArgs(), 0)
    assert preview.commands(load(runs[0]), Path("there")) == [
        "hfgen sample there --num_samples 16 --output_dir samples"
    ]
    assert curves_of(torch.zeros(2, 5, 9)).size == curves_of(torch.ones(9, 5, 1)).size
    with pytest.raises(ValueError, match=r"Samples of shape \(5,\) have no picture\. Give --output_dir instead"):
        _write([torch.zeros(5), torch.ones(5)], SampleOptions("there"), None, None)


def test_the_walk_in_contributing_is_true():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walk = text.split("## Adding a family")[1].split("\n## ")[0]
    files = sorted(FOLDER.glob("*.py"))
    assert {path.stem for path in files} == {*MODULES, "__init__"} and len(files) == 10
    assert not [path.name for path in files if f"`{path.name}`" not in walk]
    assert "10 files and under 500 lines" in " ".join(walk.split())
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in files) < 500
    assert (FOLDER / "train_tones.py").read_text(encoding="utf-8").count("\n") <= 60
