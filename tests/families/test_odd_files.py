"""Files that hfgen reads back and something else has changed: an error that names the file and what to do, before any
training."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hfgen.compare import evaluator, jobs, recipes, report
from hfgen.data.images import load_images
from hfgen.disk.files import DamagedFileError, read_rows
from hfgen.evaluation.reference import reference_set
from hfgen.families.best_checkpoint import Evaluation
from hfgen.families.gan.collapse import CollapseMonitor
from hfgen.families.gan.options import HealthArgs
from hfgen.families.preview import Preview
from hfgen.families.reflow import pairs
from hfgen.metrics.features import load_features
from hfgen.options import DataArgs, SampleArgs
from hfgen.trainer import checkpoint
from hfgen.utils.pictures import read_losses
from tests.compare.test_compare import job_of
from tests.families.test_reflow import draw_and_load, source
from tests.families.test_run import Squares, ended, make_run

ODD = [None, "text", -1, True, [], {}, 1e999, [1], {"a": 1}]
"""Values of other kinds than a count."""


@pytest.fixture(scope="module")
def images():
    return load_images(DataArgs(max_train_samples=100))


def evaluation(images, folder):
    args = SampleArgs(eval_steps=1, eval_num_samples=96)
    return Evaluation(lambda networks: None, Preview("Model", "flow", args, 0), args, 0, images, folder)


@pytest.mark.parametrize(
    "content",
    [
        {"evaluation": 3},
        {"evaluation": [3]},
        {"evaluation": [{}]},
        {"evaluation": [{"metric": "m"}]},
        {"evaluation": [{"value": 1.0}]},
        {"evaluation": [{"metric": "m", "value": "1"}]},
        {"evaluation": [{"metric": "m", "value": float("nan")}]},
        {"evaluation": [{"metric": 3, "value": 1}]},
        [],
    ],
)
def test_the_best_pipelines_figures(images, tmp_path, content):
    (tmp_path / "best").mkdir()
    path = tmp_path / "best" / "metrics.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedFileError, match=r"best/metrics\.json .*Remove .*best, and run the same"):
        evaluation(images, tmp_path)
    path.write_text(json.dumps({"evaluation": [{"metric": "m", "value": 1.5}, {"metric": "n", "value": 1}]}))
    assert [evaluation(images, tmp_path).best(name) for name in "mn"] == [1.5, 1]
    path.write_text("{}")
    assert evaluation(images, tmp_path).best("m") == float("inf")


@pytest.mark.parametrize("name", ["evaluations.jsonl", "metrics.jsonl", "health.jsonl"])
@pytest.mark.parametrize("step", [*ODD, "none"], ids=repr)
def test_rows_of_a_run(images, tmp_path, capsys, name, step):
    whole = {"step": 0, "loss": 1.0, "samples": 20, "features": "f", "alarm": None}
    whole |= dict.fromkeys(("recall", "coverage", "precision", "diversity"), 0.5)
    row = {key: value for key, value in {**whole, "step": step}.items() if value != "none"}
    (tmp_path / name).write_text(f"{json.dumps(whole)}\n{json.dumps(row)}\n")
    read = {
        "evaluations.jsonl": lambda: evaluation(images, tmp_path),
        "metrics.jsonl": lambda: read_losses(tmp_path / name),
        "health.jsonl": lambda: CollapseMonitor(HealthArgs(health_steps=1), "auto", 0, images, tmp_path).begin(),
    }
    with pytest.raises(DamagedFileError) as caught:
        read[name]()
    error = str(caught.value)
    assert error.startswith(f"line 2 of {tmp_path / name} has ") and "Remove that line, or the file" in error
    if name == "metrics.jsonl" and step in (None, "none"):
        assert ended(capsys, tmp_path, train) == (1, f"error: {error}\n") and not list(tmp_path.glob("checkpoint-*"))


def test_a_cut_row_that_is_the_only_one_does_not_damage_the_next(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    status, error = ended(capsys, tmp_path, train)
    assert status == 0 and error.count("its last line was cut off, and is left out") == 1
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_losses_that_are_no_numbers_are_not_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": "x"}\n{"step": 2, "loss": 1e999}\n{"step": 3, "loss": 2.0}\n')
    assert read_losses(path) == {"loss": [(3, 2.0)]}


PLAN = {"seconds": 1.0, "rows": [[0, 0.0, 0.0, 5]], "marks": [], "reserve": [0, 0], "next": 1}


@pytest.mark.parametrize(
    "change",
    [
        *({"step": value} for value in ODD),
        *({"config": value} for value in (None, 3, [])),
        *({"log": value} for value in (3, {}, {"seconds": "x", "pending": []}, {"seconds": 1, "pending": [3]})),
        *({"plan": value} for value in (3, {}, {**PLAN, "rows": []}, {**PLAN, "marks": [3]}, {**PLAN, "seconds": 0})),
    ],
    ids=repr,
)
def test_the_state_of_a_checkpoint(trained, tmp_path, capsys, change):
    """Also where its manifest was made anew."""
    folder = shutil.copytree(trained, tmp_path / "run") / "checkpoint-3"
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **change}))
    (folder / "manifest.json").unlink()
    checkpoint._seal(folder)
    status, error = ended(capsys, folder.parent, train, max_train_steps=4)
    (name,) = change
    assert (
        status == 1
        and error.startswith(f"error: {folder} does not fit this run")
        and f"state.json has {name}=" in error
    )


def train(run):
    run.train({"network": torch.nn.Linear(2, 2)}, Squares())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of three steps."""
    folder = tmp_path_factory.mktemp("trained")
    with make_run(folder) as run:
        train(run)
    return folder


@pytest.mark.parametrize("manifest", [[], {}, {"state.json": 3}, {"state.json": ["x", "y"]}, {"state.json": [1, 2, 3]}])
def test_the_manifest_of_a_checkpoint(trained, tmp_path, manifest):
    folder = shutil.copytree(trained, tmp_path / "run") / "checkpoint-3"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.CheckpointError, match=rf"{folder}.*Remove"):
        checkpoint.load(None, folder, {}, {})


@pytest.mark.parametrize("value", [*ODD, 0, 1.5], ids=repr)
def test_plans_of_a_comparison(tmp_path, value):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "vae.json").write_text(json.dumps({"steps": value}))
    with pytest.raises(DamagedFileError, match=r"plans/vae\.json has steps=.*Remove .*vae\.json, and run the same"):
        jobs.check_saved(tmp_path)


def row_of(**changes):
    row = {"study": "families", "family": "vae", "name": "VAE", "setting": None, "status": "measured", "notes": []}
    row |= {"command": "x", "folder": "vae", "parameters": 3, "training_seconds": 1.0, "images_seen": 3}
    row |= {"peak_memory_mib": 3, "figures": {"m": {"value": 1.0}}, "abilities": [], "speed": [], **changes}
    return {name: value for name, value in row.items() if value != "missing"}


@pytest.mark.parametrize(
    "content",
    [
        {"row": row_of()},
        {"key": {}},
        {"key": {}, "row": 3},
        *({"key": {}, "row": row_of(**{name: "missing"})} for name in ("figures", "speed", "status", "notes", "name")),
        {"key": {}, "row": row_of(figures={"m": {}})},
        {"key": {}, "row": row_of(figures={"m": {"value": "x"}})},
        {"key": {}, "row": row_of(speed=[{}])},
        {"key": {}, "row": row_of(notes=3)},
        {"key": {}, "row": row_of(training_seconds=None)},
    ],
    ids=range(13),
)
def test_rows_of_a_comparison(tmp_path, content):
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / "families-vae-own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedFileError, match=r"vae-own\.json has (no )?(key|row).*Remove .*, and run"):
        jobs.check_saved(tmp_path)
    path.write_text(json.dumps({"key": {}, "row": row_of(training_seconds=0.0)}))
    jobs.check_saved(tmp_path)


@pytest.mark.parametrize("value", [None, "text", [], {}, True], ids=repr)
def test_figures_of_a_training(tmp_path, value):
    job = job_of(recipes.families(8, ["vae"])[0], tmp_path)
    job.folder.mkdir()
    (job.folder / "model_index.json").write_text("{}")
    metrics = {"training_seconds": 1.0, "steps": 3, "images_seen": 3, "peak_memory_mib": 3, "hardware": "x"}
    for name in (*metrics, "plan"):
        (job.folder / "metrics.json").write_text(json.dumps({**metrics, name: value}))
        job.is_complete(3)  # or not: the training ends once more
        try:
            evaluator.training_facts(job.folder)
            report.assemble(tmp_path, [{"folder": "vae", "study": "s", "speed": []}], {}, "")
        except DamagedFileError as error:
            assert f"metrics.json has {name}=" in str(error) and "Remove" in str(error)
        else:
            assert name == "plan" or (name == "hardware" and value in (None, "text"))


def test_couplings_without_an_index_or_of_another_shape(tmp_path):
    draw_and_load(tmp_path)
    shard = pairs.shard_file(tmp_path, 1)
    whole, index = shard.read_bytes(), (tmp_path / "pairs.json").read_bytes()
    tensors = load_file(shard)
    for odd in (
        {},
        {"x": torch.ones(3)},
        {**tensors, "noise": torch.ones(())},
        {**tensors, "images": tensors["images"][:4]},
        {name: tensor for name, tensor in tensors.items() if name != "labels"},
    ):
        save_file(odd, shard)
        with pytest.raises(ValueError, match=r"pairs-00001\.safetensors holds .*Remove it"):
            pairs.load_pairs(tmp_path, 20, 8)
    shard.write_bytes(whole)
    (tmp_path / "pairs.json").unlink()
    for name in ("pairs-00000.safetensors", None):  # also if some are left to draw
        with pytest.raises(ValueError, match=r"no pairs\.json that says which model .*Remove .*made anew"):
            pairs.draw_pairs(tmp_path, 20, source())
        if name is not None:
            (tmp_path / name).unlink()
    for odd in (b"[]", b"3", b"{", b'{"random_streams": []}', index[:-9]):
        (tmp_path / "pairs.json").write_bytes(odd)
        with pytest.raises(ValueError, match=r"Remove|another model or options"):
            pairs.draw_pairs(tmp_path, 20, source())


def test_the_cache_of_features(images, tmp_path):
    network = load_features("digits")
    reference_set(images, 20, network, str(tmp_path))
    (path,) = tmp_path.iterdir()
    about = {"network": network.label, "data": images.fingerprint}
    for odd in ({}, {"x": torch.ones(20)}, {"features": torch.ones(3, 2)}, {"features": torch.ones(())}):
        save_file(odd, path, metadata=about)
        with pytest.raises(ValueError, match="Remove it, and it will be computed again"):
            reference_set(images, 20, network, str(tmp_path))
