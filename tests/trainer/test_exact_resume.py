"""The same run however it is cut: stopped anywhere and continued, or spread over processes."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hfgen.trainer.checkpoint import CheckpointError
from hfgen.utils.pictures import grid
from tests.helpers.cuts import Interruption
from tests.helpers.processes import run_in_two_processes
from tests.helpers.toys import KINDS, TracedObjective, plain_networks, rows, run, weights

EPOCHS = {"max_train_steps": 6, "train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 4}
"""Two epochs of 24 images, rows of metrics that no single step ends."""


def interrupted(kind, folder, stop=None, micro=0, how=None):
    """Train until the micro-batch `micro` of step number `stop`; there the run is told to stop, or lost.

    Returns (networks, result, trace); result is None if it was lost.
    """

    def strike(step):
        if (step.number, step.turn, step.shard) == (stop, len(KINDS[kind][1]().players) - 1, micro):
            if how is None:
                raise Interruption
            os.kill(os.getpid(), how)

    def preview(networks, step):
        network, noise = next(iter(networks.values())), torch.linspace(-2, 2, 1024).view(16, 1, 8, 8)
        if kind == "denoiser":
            images = network(noise, torch.full((16,), 500)).sample
        else:
            images = networks["generator"](noise.flatten(1)[:, :8])
        pixels = images.reshape(16, 8, 8).clamp(-1, 1).add(1).mul(127.5).byte().numpy()
        from PIL import Image

        (folder / "samples").mkdir(exist_ok=True)
        grid([Image.fromarray(p) for p in pixels], 4).save(folder / "samples" / f"{step}.png")

    objective = TracedObjective(KINDS[kind][1](), strike)
    options = {**EPOCHS, "sample_steps": 1, "checkpointing_steps": 2, "checkpoints_total_limit": None}
    try:
        return *run(folder, kind, objective, preview=preview, **options), objective.trace
    except Interruption:
        return None, None, objective.trace


def left(folder):
    """All that a run leaves and that must not depend on how it was cut, as {name: contents}."""
    last = folder / "checkpoint-6"
    names = [p.name for p in last.iterdir() if p.name.startswith(("model", "optimizer", "ema_"))]
    state = json.loads((last / "state.json").read_text())["log"]["pending"]
    files = [*(last / name for name in names), *sorted((folder / "samples").iterdir())]
    return {"rows": rows(folder), "pending": state, **{f"{p.parent.name}/{p.name}": p.read_bytes() for p in files}}


@pytest.fixture(scope="module", params=["denoiser", "gan", "muon"])
def whole(request, tmp_path_factory):
    """(kind, weights, averages, trace, what it left) of the run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    networks, result, trace = interrupted(request.param, folder)
    return request.param, weights(networks), weights(result.networks), trace, left(folder)


OFTEN = (0, 3, 5)
"""Steps at which every run of the tests stops; at the others, the slow tests do."""


def once(stop, slice_, how):
    """Return the stops of a run that is stopped once."""
    return pytest.param([(stop, slice_, how)], marks=() if stop in OFTEN else pytest.mark.slow)


STOPS = [
    *(once(stop, 0, signal.SIGTERM) for stop in range(6)),
    *(once(stop, 1, None) for stop in range(6)),  # lost in the middle of an accumulation
    [(0, 1, signal.SIGINT), (2, 1, None), (4, 0, signal.SIGTERM)],
    [(3, 1, None), (3, 1, None), (5, 1, None)],
    [(1, 0, signal.SIGTERM), (2, 0, signal.SIGTERM), (3, 0, signal.SIGTERM)],
]


@pytest.mark.parametrize(
    "stops", STOPS, ids=lambda stops: "-".join(f"{s}.{m}{'' if h else ' lost'}" for s, m, h in stops)
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, whole, stops):
    """With dropout, BatchNorm, accumulation, logging and sampling across the stops."""
    kind, expected, averages, trace, files = whole
    seen = {}
    for stop, micro, how in stops:
        _, result, part = interrupted(kind, tmp_path, stop, micro, how)
        assert result is None if how is None else not result.finished  # nor where the signal came in the last step
        seen |= part
    networks, result, part = interrupted(kind, tmp_path)
    seen |= part
    assert result.finished and seen == trace  # order of the data, noise
    for got, wanted in ((weights(networks), expected), (weights(result.networks), averages)):
        assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in got)
    again = left(tmp_path)
    assert len(files) == 2 + 3 * len(networks) + 5 and again.keys() == files.keys()  # a grid a step, the last is not
    assert not [name for name in files if again[name] != files[name]]


def test_what_was_restored_is_said(tmp_path, capsys):
    interrupted("gan", tmp_path, 3, 0, signal.SIGTERM)
    interrupted("gan", tmp_path)
    said = capsys.readouterr().out
    assert f"Stopped at step 4; the same command goes on from {tmp_path / 'checkpoint-4'}." in said
    assert (
        f"Resumed from {tmp_path / 'checkpoint-4'} at step 4 of 6: networks, optimisers, LR 0.0005, "
        "moving averages of 4 updates, data from image 32 (epoch 1.33) on." in said
    )
    assert "Changed" not in said


def test_moving_averages_of_a_run_against_numpy(tmp_path):
    """From its checkpoints: parameters and BatchNorm's buffers."""
    options = {"checkpointing_steps": 1, "checkpoints_total_limit": None, "ema_max_decay": 0.6}
    run(tmp_path, max_train_steps=8, **options)
    weights = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in range(1, 9)]
    averages = [load_file(tmp_path / f"checkpoint-{step}" / "ema_denoiser.safetensors") for step in range(1, 9)]
    assert {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"} <= weights[0].keys()
    for key in weights[0]:
        average = averages[0][f"module.{key}"].astype(np.float64)
        for update in range(2, 9):
            decay = min(0.6, 1 - (1 + update) ** -0.75)
            new = weights[update - 1][key].astype(np.float64)
            average = decay * average + (1 - decay) * new if weights[0][key].dtype == np.float32 else new
            np.testing.assert_allclose(averages[update - 1][f"module.{key}"], average, rtol=0, atol=1e-7)


def test_the_same_options_twice_leave_the_same_bytes(tmp_path):
    texts = []
    for name in ("a", "b"):
        run(tmp_path / name, "gan", logging_steps=1)
        texts.append((tmp_path / name / "metrics.jsonl").read_text())
    timeless = [[line.split(', "images_per_second"')[0] for line in text.splitlines()] for text in texts]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 6
    assert all(
        set(json.loads(line)) - set(json.loads(cut + "}")) == {"images_per_second", "seconds"}
        for line, cut in zip(texts[0].splitlines(), timeless[0], strict=True)
    )


# --- two processes ----------------------------------------------------------------------------------------------------

TWO = """
import sys, torch
from tests.helpers.toys import KINDS, TracedObjective, plain_networks, run, weights
for kind in KINDS:
    objective = TracedObjective(KINDS[kind][1](), tensors=True)
    folder = f"{sys.argv[1]}/{kind}"
    options = {"train_batch_size": 4, "max_train_steps": 50, "logging_steps": 1}
    networks, result = run(folder, kind, objective, plain_networks(kind), **options)
    rank = torch.distributed.get_rank()
    kept = {"weights": weights(networks), "used": weights(result.networks), "trace": objective.trace}
    torch.save(kept, f"{sys.argv[1]}/{kind}{rank}.pt")
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of two processes' runs of each kind with half the batch."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two_processes(TWO, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one_with_twice_the_batch(tmp_path, two, kind):
    objective = TracedObjective(KINDS[kind][1](), tensors=True)
    alone, result = run(tmp_path, kind, objective, plain_networks(kind), max_train_steps=50, logging_steps=1)
    ranks = [torch.load(two / f"{kind}{rank}.pt") for rank in (0, 1)]
    for (step, turn, _), (images, noise) in objective.trace.items():
        parts = [ranks[rank]["trace"][step, turn, rank] for rank in (0, 1)]
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), noise)
    for rank in ranks:
        for got, wanted in ((rank["weights"], weights(alone)), (rank["used"], weights(result.networks))):
            got = {key.replace("module.", ""): value for key, value in got.items()}
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    pairs = list(zip(rows(tmp_path), rows(two / kind), strict=True))
    assert len(pairs) == 50
    for a, b in pairs:
        assert a.keys() == b.keys()
        assert all(a[key] == b[key] for key in a if key.endswith(("lr", "step", "epoch")))
        assert all(a[key] == pytest.approx(b[key], rel=0, abs=1e-5) for key in a if key.endswith("loss"))


def test_a_rank_without_its_file_is_an_error(two, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(two / "gan", folder)
    (folder / "checkpoint-50" / "random_states_1.pkl").unlink()
    with pytest.raises(CheckpointError, match=r"random_states_1\.pkl is missing"):
        run(folder, "gan", max_train_steps=50)
