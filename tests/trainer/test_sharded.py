"""Sharded training: what whole networks learn, in parts; a lost process; other numbers of processes; refusals."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.models.unets.unet_2d import UNet2DOutput
from safetensors.torch import load_file
from torch import nn

from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.models.build_denoiser import build_denoiser
from hfgen.objectives.base import Objective, loss_with_logs
from hfgen.objectives.denoising import Denoising
from hfgen.options import DataArgs, TrainArgs
from hfgen.paths import StraightPath
from hfgen.trainer import checkpoint, loop
from hfgen.trainer.checkpoint import CheckpointError
from hfgen.trainer.engine import Replicated
from hfgen.trainer.sharded import Sharded, own_output, units, unshardable
from tests.helpers.processes import launch, launch_forks
from tests.helpers.toys import HingeGAN, deep_networks, gan_networks, rows, run, weights

STEPS = {"max_train_steps": 20, "checkpointing_steps": 10, "checkpoints_total_limit": None, "logging_steps": 1}


class ClippedGAN(HingeGAN):
    """A GAN whose discriminator has a penalty on its gradient, and clipped weights."""

    differentiates_twice = True

    def loss(self, player, networks, batch, step):
        value, _ = super().loss(player, networks, batch, step)
        if player == "discriminator":
            real = batch["x"].flatten(1).double().requires_grad_()
            (slope,) = torch.autograd.grad(networks[player](real).sum(), real, create_graph=True)
            value = value + slope.square().sum(1).mean()
        return loss_with_logs(value, {})

    def project(self, player, network):
        for p in network.parameters() if player == "discriminator" else ():
            p.clamp_(-0.05, 0.05)


def transformer():
    torch.manual_seed(0)
    return {"denoiser": build_denoiser("dit", "xs", 8, 1)}


def gan():
    return gan_networks(torch.float64)  # so that rounding errors do not become steps of Adam


KINDS = {
    "denoiser": (transformer, lambda: Denoising(StraightPath())),
    "gan": (gan, HingeGAN),
    "clipped": (gan, ClippedGAN),
    "muon": (lambda: deep_networks(torch.float64), HingeGAN),
}

PROGRAM = """
import os, signal, sys, torch
from pathlib import Path
from hfgen.trainer import loop, shards
from hfgen.trainer.sharded import Sharded
from tests.helpers.toys import TracedObjective, run, weights
from tests.trainer.test_sharded import KINDS, STEPS, copy_half

root, kinds = sys.argv[1], sys.argv[2].split(",")
processes, first = int(os.environ["WORLD_SIZE"]), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

def lose(step):  # the last process is killed between two checkpoints
    if first and step.number == 12 and step.shard == 2 * processes - 1:
        os.kill(os.getpid(), signal.SIGKILL)

def train(name, kind, before=None, **options):
    networks, objective = KINDS[kind][0](), KINDS[kind][1]()
    if before is not None:
        objective = TracedObjective(objective, before)
    parts = []
    class Weighed(Sharded):
        def save(self, folder, modules):
            super().save(folder, modules)
            table = [*self.learners["denoiser"][0].parameters(), *modules["ema_denoiser"].module.parameters()]
            table += [v for p in self.learners["denoiser"][1].state.values() for v in p.values() if v.ndim]
            parts[:] = [sum(shards.local(v).numel() for v in table), sum(v.numel() for v in table)]
    loop.ENGINES["fsdp2"] = Weighed if kind == "denoiser" else Sharded
    batch = {"train_batch_size": 4 // processes, "gradient_accumulation_steps": 2}
    options = {"sharding": "fsdp2", **batch, **STEPS, **options}
    _, result = run(f"{root}/{name}", kind, objective, networks, **options)
    rank = torch.distributed.get_rank()
    torch.save({"weights": weights(result.networks), "parts": parts}, f"{root}/{name}{rank}.pt")

if "lost" in kinds:
    train("lost", "gan", lose)
    train("whole", "gan", lr_scheduler="constant")
for kind in kinds:
    if kind != "lost":
        train(kind, kind)
if "lost" in kinds:  # two processes with whole networks go on from parts
    if torch.distributed.get_rank() == 0:
        copy_half(Path(root, "gan"), Path(root, "both"))
    torch.distributed.barrier()
    train("both", "gan", sharding="none")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Folder of two processes' sharded runs of each kind, and of one that lost a process and was restarted."""
    folder = tmp_path_factory.mktemp("sharded")
    alone(folder / "whole", "gan", max_train_steps=10, lr_scheduler="constant")
    done = launch(PROGRAM, folder, folder, ",".join(["lost", *KINDS]), restarts=1)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("lost", "whole", "both"):
        assert f"Resumed from {folder}/{name}/checkpoint-10 at step 10 of 20" in done.stdout
    return folder


def copy_half(run_folder, folder):
    """Copy the tenth step of a run, as if it had gone no further."""
    shutil.copytree(run_folder / "checkpoint-10", folder / "checkpoint-10")
    lines = (run_folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:10]))
    return folder


def alone(folder, kind, **options):
    """Train in this process, whole, with the same effective batch; return (rows of metrics, weights)."""
    _, result = run(folder, kind, KINDS[kind][1](), KINDS[kind][0](), **{**STEPS, **options})
    return rows(folder), weights(result.networks)


def check_close(got, wanted):
    """Compare rows of metrics and the weights of two runs."""
    assert len(got[0]) == len(wanted[0]) == 20
    for a, b in zip(got[0], wanted[0], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    torch.testing.assert_close(got[1], wanted[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_parts_they_learn_what_whole_networks_learn(tmp_path, sharded, kind):
    saved = torch.load(sharded / f"{kind}0.pt")["weights"]
    check_close((rows(sharded / kind), saved), alone(tmp_path, kind))
    assert not torch.load(sharded / f"{kind}1.pt")["weights"]  # the main process has them


def test_each_process_holds_half_of_weights_moments_and_averages(sharded):
    parts = [torch.load(sharded / f"denoiser{rank}.pt")["parts"] for rank in (0, 1)]
    total = parts[0][1]
    assert parts[0][0] + parts[1][0] == total == parts[1][1]
    assert max(here for here, _ in parts) < 0.51 * total


def test_a_lost_process_costs_the_steps_since_the_last_checkpoint_and_no_bit(sharded):
    assert rows(sharded / "lost") == rows(sharded / "gan")
    lost, whole = (torch.load(sharded / f"{name}0.pt")["weights"] for name in ("lost", "gan"))
    torch.testing.assert_close(lost, whole, rtol=0, atol=0)
    files = [sorted((sharded / name / "checkpoint-20" / "shards").iterdir()) for name in ("lost", "gan")]
    assert len(files[0]) == 2
    for a, b in zip(*files, strict=True):
        torch.testing.assert_close(load_file(a), load_file(b), rtol=0, atol=0)


def test_parts_of_a_whole_checkpoint_learn_as_it_would(tmp_path, sharded):
    saved = torch.load(sharded / "whole0.pt")["weights"]
    check_close((rows(sharded / "whole"), saved), alone(tmp_path, "gan", lr_scheduler="constant"))


def test_two_processes_go_on_from_parts_with_whole_networks(sharded):
    both, parts = ((rows(sharded / n), torch.load(sharded / f"{n}0.pt")["weights"]) for n in ("both", "gan"))
    check_close(both, parts)


@pytest.fixture
def halfway(sharded, tmp_path):
    """A function that returns a folder with the tenth step of a sharded run."""

    return lambda kind: copy_half(sharded / kind, tmp_path / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_from_parts_with_whole_networks(tmp_path, sharded, halfway, capsys, kind):
    resumed = alone(halfway(kind), kind)
    said = capsys.readouterr().out
    assert "at step 10 of 20" in said and "sharding: fsdp2 -> none, num_processes: 2 -> 1" in said
    check_close(resumed, (rows(sharded / kind), torch.load(sharded / f"{kind}0.pt")["weights"]))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3, 4])
def test_another_number_of_processes_goes_on_from_parts(tmp_path, sharded, processes):
    """With three processes, the effective batch of eight can't be: the run is refused."""
    for kind in KINDS:
        copy_half(sharded / kind, tmp_path / kind)
    done = launch_forks(PROGRAM, tmp_path, tmp_path, ",".join(KINDS), processes=processes)
    if processes == 3:
        assert done.returncode and "num_processes: 2 -> 3" in done.stderr and "does not fit this run" in done.stderr
        return
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in KINDS:
        got, wanted = (torch.load(folder / f"{kind}0.pt")["weights"] for folder in (tmp_path, sharded))
        check_close((rows(tmp_path / kind), got), (rows(sharded / kind), wanted))


# --- damage and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_damaged_part_is_named(halfway, how):
    folder = halfway("gan")
    part = sorted((folder / "checkpoint-10" / "shards").iterdir())[1]
    part.unlink() if how == "missing" else part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{part.name} (is missing|has .* bytes instead of)"):
        alone(folder, "gan")


@pytest.mark.parametrize(
    "change",
    [
        lambda networks: networks["generator"].append(nn.Linear(64, 64).double()),
        lambda networks: networks.update(generator=networks["generator"][:2].append(nn.Linear(32, 65).double())),
    ],
    ids=["more", "larger"],
)
def test_parts_of_other_networks_are_refused(halfway, change):
    folder, networks = halfway("gan"), gan()
    change(networks)
    with pytest.raises(CheckpointError, match=r"does not fit this run: .*generator"):
        run(folder, "gan", HingeGAN(), networks, **STEPS)


def test_parts_without_averages_are_not_those_of_a_run_with_them(halfway):
    with pytest.raises(CheckpointError, match=r"use_ema: True -> False"):
        run(halfway("gan"), "gan", HingeGAN(), gan(), use_ema=False, **STEPS)


def test_a_rehearsal_on_one_process_needs_whole_networks(tmp_path, monkeypatch):
    class Parts(Replicated):
        whole_everywhere = False

    monkeypatch.setitem(loop.ENGINES, "none", Parts)
    args = TrainArgs(output_dir=str(tmp_path), max_train_seconds=5.0)
    batches = Batches(load_images(DataArgs(max_train_samples=8)), 8, 0)
    with pytest.raises(ValueError, match=r"max_train_seconds=5.0 rehearses .* Give --max_train_steps"):
        loop.train(gan(), HingeGAN(), batches, args, Accelerator(cpu=True), rehearse=lambda networks: 1.0)
    assert not list(tmp_path.iterdir())


def processes(number=2, precision="no"):
    kind, device = DistributedType.MULTI_GPU, torch.device("cuda")
    return SimpleNamespace(num_processes=number, mixed_precision=precision, distributed_type=kind, device=device)


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [(processes(1), "there is one. Start several: --num_processes 2"), (processes(2, "fp16"), "Use bf16 or no")],
)
def test_processes_that_share_nothing_are_refused(accelerator, message):
    with pytest.raises(ValueError, match=message):
        Sharded(accelerator)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight


def number():
    network = nn.Linear(2, 2)
    network.scale = nn.Parameter(torch.tensor(1.0))
    return network


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Tied(), "one tensor by two names"),
        (number(), r"scale is a number, shape \(\); make its shape \(1,\)"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "several types, torch.float32, torch.float64"),
        (nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last), "weight is not contiguous"),
    ],
)
def test_networks_that_have_no_parts_are_refused(network, why):
    networks, objective = {"denoiser": network}, Denoising(StraightPath())
    with pytest.raises(ValueError, match=f"can't split denoiser: .*{why}"):
        Sharded(processes()).check(None, objective, networks)


def test_networks_that_share_parameters_are_refused():
    networks = gan()
    networks["discriminator"] = nn.Sequential(networks["discriminator"], networks["generator"][2])
    with pytest.raises(ValueError, match="can't split discriminator: it shares parameters with generator"):
        Sharded(processes()).check(None, HingeGAN(), networks)


def test_all_processes_go_on_from_the_checkpoint_of_the_first(tmp_path, monkeypatch):
    """A node may see its disk as it was before; one that is not shared is an error."""
    newest = tmp_path / "checkpoint-9"
    monkeypatch.setattr(checkpoint, "broadcast_object_list", lambda objects: [newest])
    here = SimpleNamespace(num_processes=2, process_index=1)
    with pytest.raises(CheckpointError, match=r"checkpoint-9 is not on the disk of process 1\. Put --output_dir on"):
        checkpoint.of_all_processes(tmp_path / "checkpoint-8", here)
    newest.mkdir()
    assert checkpoint.of_all_processes(None, here) == newest
    alone = SimpleNamespace(num_processes=1, process_index=0)
    assert checkpoint.of_all_processes(None, alone) is None


def test_an_objective_that_changes_networks_by_itself_is_refused():
    class Teacher(Denoising):
        def constrain(self, player, networks):
            pass

    with pytest.raises(ValueError, match="Teacher changes networks in its method constrain"):
        Sharded(processes()).check(None, Teacher(StraightPath()), {"denoiser": nn.Linear(2, 2)})


def test_an_output_that_hides_its_tensors_is_refused():
    seen = own_output(nn.Identity(), (), UNet2DOutput(sample=torch.ones(4, requires_grad=True).view(2, 2)))
    assert isinstance(seen, UNet2DOutput) and seen.sample._base is None  # an operation in place keeps its hooks
    with pytest.raises(TypeError, match="Identity returns a SimpleNamespace, in which --sharding fsdp2 finds no"):
        own_output(nn.Identity(), (), SimpleNamespace(sample=torch.ones(1)))


def test_units_are_the_entries_of_the_outermost_lists():
    block = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))
    nested, keyed = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2), nn.SiLU()])]), nn.Linear(2, 2)
    network = nn.ModuleDict({"a": nn.ModuleList([block, nn.SiLU()]), "b": nested, "c": keyed})
    assert list(units(network)) == [block, nested[0][0]]
    assert unshardable(network) is None and Objective.differentiates_twice is False


def test_json_of_the_state_names_the_processes(sharded):
    state = json.loads((sharded / "gan" / "checkpoint-20" / "state.json").read_text())["config"]
    assert state["sharding"] == "fsdp2" and state["num_processes"] == 2
