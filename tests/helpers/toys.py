"""Small networks and objectives to train in tests: networks with dropout and buffers, and a hinge GAN in ten lines."""

import hashlib
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.families.adversarial_options import AdversarialTrainArgs
from hfgen.objectives.base import Loss, Objective
from hfgen.objectives.denoising import Denoising
from hfgen.options import DataArgs
from hfgen.paths import StraightPath
from hfgen.trainer.loop import train

ROOT = Path(__file__).resolve().parents[2]


class ToyDenoiser(nn.Module):
    """An MLP with dropout and BatchNorm, and the call of a denoiser."""

    def __init__(self, norm: bool = True, dropout: float = 0.2):
        super().__init__()
        middle = [nn.BatchNorm1d(32)] if norm else []
        self.body = nn.Sequential(nn.Linear(65, 32), *middle, nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, 64))

    def forward(self, x, timestep, class_labels=None):
        time = timestep.to(x.dtype)[:, None] / 1000
        return UNet2DOutput(sample=self.body(torch.cat([x.flatten(1), time], 1)).view_as(x))


class HingeGAN(Objective):
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) against -D(G(z)) (Lim & Ye 2017, https://arxiv.org/abs/1705.02894)."""

    players = ("discriminator", "generator")

    def loss(self, player, networks, batch, step):
        discriminator = networks["discriminator"]
        real = batch["x"].flatten(1).to(next(discriminator.parameters()).dtype)
        fake = networks["generator"](step.randn("latent", real[:, :8]))
        if player == "generator":
            value = -discriminator(fake).mean()
        else:
            value = (1 - discriminator(real)).relu().mean() + (1 + discriminator(fake)).relu().mean()
        return Loss(value, {"loss": value.detach()})


class TracedObjective(Objective):
    """An objective that records its items and its noise.

    Attributes:
        trace: {(step, turn, shard): record}. A record is a digest of items and noise or, with `tensors`, (items,
            noise).

    Args:
        inner: the objective.
        before: called as before(step) before each loss.
        tensors: see `trace`.
    """

    def __init__(self, inner, before=None, tensors=False):
        self.inner, self.players, self.turns, self.before = inner, inner.players, inner.turns, before
        self.state, self.constrain, self.batches_per_step = inner.state, inner.constrain, inner.batches_per_step
        self.tensors, self.trace = tensors, {}

    def loss(self, player, networks, batch, step):
        if self.before is not None:
            self.before(step)
        record = batch["x"], step.randn("noise", batch["x"]), step.randn("latent", batch["x"])
        digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in record)).hexdigest()
        self.trace[step.number, step.turn, step.shard] = record[:2] if self.tensors else digest
        return self.inner.loss(player, networks, batch, step)


def denoiser_networks(**options):
    torch.manual_seed(0)
    return {"denoiser": ToyDenoiser(**options)}


def gan_networks(dtype=torch.float32):
    torch.manual_seed(0)
    networks = {
        "generator": nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Tanh()),
        "discriminator": nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)),
    }
    return {name: network.to(dtype) for name, network in networks.items()}


def deep_networks(dtype=torch.float32):
    """Return a GAN of networks with hidden matrices, one of them the weight of a convolution."""
    torch.manual_seed(0)
    networks = {
        "generator": nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 64)),
        "discriminator": nn.Sequential(
            nn.Linear(64, 32), nn.Unflatten(1, (16, 2)), nn.Conv1d(16, 20, 2), nn.Flatten(), nn.Tanh(), nn.Linear(20, 1)
        ),
    }
    return {name: network.to(dtype) for name, network in networks.items()}


def plain_networks(kind):
    """Return networks without dropout and batch statistics; a GAN in float64, so rounding errors do not become steps
    of Adam."""
    if kind == "muon":
        return deep_networks(torch.float64)
    return denoiser_networks(norm=False, dropout=0.0) if kind == "denoiser" else gan_networks(torch.float64)


KINDS = {
    "denoiser": (denoiser_networks, lambda: Denoising(StraightPath())),
    "gan": (gan_networks, HingeGAN),
    "muon": (deep_networks, HingeGAN),
}
"""Name -> functions that build the networks and the objective."""

OPTIONS = {"muon": {"optimizer": "muon"}}
"""Options of the trainings of a kind, besides those of `run`."""


def run(folder, kind="denoiser", objective=None, networks=None, samples=24, preview=None, config=None, **options):
    """Train networks on the first digits in six steps; return (networks, result)."""
    short = {"max_train_steps": 6, "train_batch_size": 8, "lr_warmup_steps": 2, "logging_steps": 2}
    quiet = {"report_to": "none", "sample_steps": 0, "checkpointing_steps": 0}
    args = AdversarialTrainArgs(output_dir=str(folder), **{**short, **quiet, **OPTIONS.get(kind, {}), **options})
    accelerator = Accelerator(cpu=True, mixed_precision=args.mixed_precision)
    networks = networks or KINDS[kind][0]()
    data = load_images(DataArgs(max_train_samples=samples))
    loader = Batches(
        data, args.train_batch_size, args.seed, rank=accelerator.process_index, world=accelerator.num_processes
    )
    result = train(networks, objective or KINDS[kind][1](), loader, args, accelerator, preview, config)
    return networks, result


def rows(folder, timing=("seconds", "images_per_second")):
    """Return the rows of metrics.jsonl without measurements of time."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def weights(networks):
    """Return copies of all parameters and buffers in one flat dictionary."""
    return {f"{n}.{k}": v.clone() for n, net in networks.items() for k, v in net.state_dict().items()}
