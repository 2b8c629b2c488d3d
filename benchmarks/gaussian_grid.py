"""Number of modes that generators cover on a grid of 25 Gaussians, by loss and penalty.

    python benchmarks/gaussian_grid.py --output_dir outputs/gaussian_grid

The data are points around a 5 x 5 grid of centres 1 apart with standard deviation 0.05, all divided by sqrt(2) to unit
variance. Both players are fully connected with three hidden layers. Every row has the same networks, optimiser, batch
size and number of optimiser steps, and starts from the same weights. A good point lies within three standard deviations
of a centre. A mode is covered if it has at least a tenth of its share of good points. Prints a table and writes
gaussian_grid.json.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

import hfgen
from hfgen.data.batches import Batches
from hfgen.data.tensors import EndlessData
from hfgen.metrics.modes import modes
from hfgen.objectives.adversarial import Adversarial
from hfgen.objectives.penalties import R1, R2, Control, GradientPenalty
from hfgen.objectives.replay_buffer import ReplayBuffer
from hfgen.options import TrainArgs
from hfgen.trainer.loop import train
from hfgen.utils.seeds import generator_of, seed_initialisation

SCALE = 2**-0.5
CENTRES = SCALE * torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))  # (25, 2)
DEVIATION = 0.05 * SCALE
LATENT, HIDDEN, BATCH = 2, (64, 64, 64), 128

ROWS = {
    "non-saturating": ("non_saturating", 1, ()),
    "WGAN-GP": ("wasserstein", 2, (GradientPenalty(0.1),)),
    "non-saturating, R1": ("non_saturating", 1, (R1(0.1),)),
    "non-saturating, CLC": ("non_saturating", 1, (Control(5.0),)),
    "relativistic, R1 + R2": ("relativistic", 1, (R1(0.1), R2(0.1))),
}
"""By name: loss, turns of the discriminator per step, penalties."""


def points(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw points of the grid as images (B, 2, 1, 1)."""
    index = torch.randint(len(CENTRES), (count,), generator=generator)
    return {"x": (CENTRES[index] + DEVIATION * torch.randn(count, 2, generator=generator))[:, :, None, None]}


GRID = EndlessData(points, (2, 1, 1), "grid", "points", stream="grid")


def train_row(row: str, steps: int, learning_rate: float, seed: int) -> tuple[torch.nn.Module, float]:
    """Train a row; return the moving average of its generator, and the seconds of training."""
    loss, n_critic, penalties = ROWS[row]
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
            learning_rate=learning_rate,
            adam_beta1=0.0,
            adam_beta2=0.9,
            max_grad_norm=None,
            checkpointing_steps=0,
            sample_steps=0,
            logging_steps=steps,
            report_to="none",
        )
        networks = {"generator": generator, "discriminator": discriminator}
        result = train(networks, objective, Batches(GRID, BATCH, seed), args, Accelerator(cpu=True))
    return result.networks["generator"], result.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/gaussian_grid", help="folder for the JSON file")
    parser.add_argument("--steps", type=int, default=12000, help="optimiser steps of each row")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="peak learning rate of both players")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds; each is a run of every row")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for row in args.rows:
        for seed in args.seeds:
            generator, seconds = train_row(row, args.steps, args.learning_rate, seed)
            z = torch.randn(10_000, LATENT, generator=generator_of("benchmark", seed, "latents"))
            with torch.no_grad():
                points = generator(z).sample.flatten(1)
            results.append({"row": row, "seed": seed, **modes(points, CENTRES, 3 * DEVIATION), "seconds": seconds})
    print(f"\n{'':26s}seed  modes of 25  high quality  reverse KL  seconds")
    for each in results:
        print(
            f"{each['row']:26s}{each['seed']:4d}{each['covered']:13d}{each['high_quality']:14.1%}"
            f"{each['reverse_kl']:12.3f}{each['seconds']:9.0f}"
        )
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"steps": args.steps, "learning_rate": args.learning_rate, "batch": BATCH, "torch": torch.__version__}
    settings |= {"hidden": HIDDEN, "latent": LATENT}
    (folder / "gaussian_grid.json").write_text(json.dumps({**settings, "rows": results}, indent=2) + "\n")
    print(f"\nWrote {folder}/gaussian_grid.json")


if __name__ == "__main__":
    main()
