"""Number of modes that generators cover on a grid of 25 Gaussians, by loss and penalty.

    python benchmarks/gaussian_grid.py --output_dir outputs/gaussian_grid

The data are points around a 5 x 5 grid of centres 1 apart with standard deviation 0.05, all divided by sqrt(2) to unit
variance. Both players are fully connected with three hidden layers. Every row has the same networks, batch size, number
of optimiser steps of the generator, LR schedule (cosine after 100 steps of warm-up) and seeds, and starts from the same
weights. Each turn of the discriminator sees other points. The classics are trained twice: with the optimiser, learning
rate and turns of their papers, and with the optimiser and learning rate of all other rows. A good point lies within
three standard deviations of a centre. A mode is covered if it has at least a tenth of its share of good points. Prints
a table and writes gaussian_grid.json after each run; runs in this file are not repeated.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from measured import Measured
from torch import Tensor

import hfgen
from hfgen.data.batches import Batches
from hfgen.data.tensors import EndlessData
from hfgen.metrics.modes import modes
from hfgen.objectives.adversarial import Adversarial
from hfgen.objectives.penalties import R1, R2, Control, GradientPenalty, WeightClipping
from hfgen.objectives.replay_buffer import ReplayBuffer
from hfgen.options import TrainArgs
from hfgen.trainer.loop import train
from hfgen.utils.seeds import generator_of, seed_initialisation

SCALE = 2**-0.5
CENTRES = SCALE * torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))  # (25, 2)
DEVIATION = 0.05 * SCALE
LATENT, HIDDEN, BATCH = 2, (64, 64, 64), 128

SHARED = {"learning_rate": 2e-3, "adam_beta1": 0.0, "adam_beta2": 0.9}
"""Adam of all rows but those of a paper."""


class Row(NamedTuple):
    """Loss, turns of the discriminator per step, penalties, and options of the optimiser."""

    loss: str
    n_critic: int
    penalties: tuple[Any, ...]
    optimizer: dict[str, Any] = SHARED


ROWS = {
    "non-saturating": Row("non_saturating", 1, ()),
    "non-saturating, its paper's Adam": Row(
        "non_saturating", 1, (), {"learning_rate": 2e-4, "adam_beta1": 0.5, "adam_beta2": 0.999}
    ),
    "WGAN, its paper's RMSProp": Row(
        "wasserstein", 5, (WeightClipping(0.01),), {"learning_rate": 5e-5, "optimizer": "rmsprop"}
    ),
    "WGAN": Row("wasserstein", 5, (WeightClipping(0.01),)),
    "WGAN-GP, its paper's Adam": Row(
        "wasserstein", 5, (GradientPenalty(0.1),), {"learning_rate": 1e-4, "adam_beta1": 0.5, "adam_beta2": 0.9}
    ),
    "WGAN-GP": Row("wasserstein", 5, (GradientPenalty(0.1),)),
    "WGAN-GP, two turns": Row("wasserstein", 2, (GradientPenalty(0.1),)),
    "non-saturating, R1": Row("non_saturating", 1, (R1(0.1),)),
    "non-saturating, CLC": Row("non_saturating", 1, (Control(5.0),)),
    "relativistic, R1 + R2": Row("relativistic", 1, (R1(0.1), R2(0.1))),
}
"""Rows by name. Papers: DCGAN (Radford et al. 2016), WGAN (Arjovsky et al. 2017), and WGAN-GP with the options of its
experiments in the plane (Gulrajani et al. 2017)."""


def points(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw points of the grid as images (B, 2, 1, 1)."""
    index = torch.randint(len(CENTRES), (count,), generator=generator)
    return {"x": (CENTRES[index] + DEVIATION * torch.randn(count, 2, generator=generator))[:, :, None, None]}


GRID = EndlessData(points, (2, 1, 1), "grid", "points", stream="grid")


def train_row(row: str, steps: int, seed: int) -> tuple[torch.nn.Module, float]:
    """Train a row; return the moving average of its generator, and the seconds of training."""
    loss, n_critic, penalties, optimizer = ROWS[row]
    seed_initialisation(seed)
    generator = hfgen.MLPGeneratorModel(1, 2, LATENT, HIDDEN, "none")
    discriminator = hfgen.MLPDiscriminatorModel(1, 2, HIDDEN)
    has_control = any(isinstance(penalty, Control) for penalty in penalties)
    replay = ReplayBuffer(100 * BATCH, (2, 1, 1)) if has_control else None
    objective = Adversarial(loss, LATENT, penalties, n_critic, replay=replay)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainArgs(
            output_dir=folder,
            seed=seed,
            train_batch_size=BATCH,
            max_train_steps=steps,
            **optimizer,
            max_grad_norm=None,
            checkpointing_steps=0,
            sample_steps=0,
            logging_steps=steps,
            report_to="none",
        )
        networks = {"generator": generator, "discriminator": discriminator}
        result = train(networks, objective, Batches(GRID, BATCH, seed), args, Accelerator(cpu=True))
    return result.networks["generator"], result.seconds


def measure(row: str, steps: int, seed: int) -> dict[str, float]:
    """Train a row, and measure 10,000 points of its generator."""
    generator, seconds = train_row(row, steps, seed)
    z = torch.randn(10_000, LATENT, generator=generator_of("benchmark", seed, "latents"))
    with torch.no_grad():
        drawn = generator(z).sample.flatten(1)
    return {**modes(drawn, CENTRES, 3 * DEVIATION), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/gaussian_grid", help="folder for the JSON file")
    parser.add_argument("--steps", type=int, default=12000, help="optimiser steps of each generator")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; each is a run of every row")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"steps": args.steps, "batch": BATCH, "hidden": HIDDEN, "latent": LATENT, "torch": torch.__version__}
    results = Measured(Path(args.output_dir) / "gaussian_grid.json", settings)
    print("| loss, penalty, optimiser | seed | modes of 25 | good points | reverse KL | seconds |")
    print("|---|---|---|---|---|---|")
    for row in args.rows:
        for seed in args.seeds:
            each = results.get(f"{row}, {seed}", lambda row=row, seed=seed: measure(row, args.steps, seed))
            quality = f"{each['covered']} | {each['high_quality']:.1%} | {each['reverse_kl']:.3f}"
            print(f"| {row} | {seed} | {quality} | {each['seconds']:.0f} |", flush=True)
    print(f"\nWrote {results.file}")


if __name__ == "__main__":
    main()
