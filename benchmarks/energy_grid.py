"""Energies on the grid of 25 Gaussians of gaussian_grid.py: modes, shares and widths after a minute.

    python benchmarks/energy_grid.py --output_dir outputs/energy_grid

An energy E(x) of points, fully connected with three hidden layers and without a clock, learns by equilibrium matching
with optimal coupling in each batch. Samples begin as normal noise, descend, and end with Langevin steps at the
temperature that is printed. Measured are 10,000 of them, as in gaussian_grid.py; besides, their deviation within modes,
divided by that of the data. Seconds are those of training steps, in one thread.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from gaussian_grid import CENTRES, DEVIATION, GRID
from measured import Measured
from torch import Tensor

import hfgen
from hfgen.data.batches import Batches
from hfgen.explain.networks import PointEnergy
from hfgen.metrics.modes import modes
from hfgen.options import TrainArgs
from hfgen.trainer.loop import train
from hfgen.utils.seeds import generator_of, seed_initialisation

POINTS = 10_000


def train_energy(args: argparse.Namespace, seed: int) -> tuple[PointEnergy, float]:
    """Train an energy; return its moving average, and the seconds of training."""
    seed_initialisation(seed)
    objective = hfgen.EquilibriumMatching(args.decay, coupling=args.coupling)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainArgs(
            output_dir=folder,
            seed=seed,
            train_batch_size=args.batch,
            max_train_steps=args.steps,
            learning_rate=args.learning_rate,
            checkpointing_steps=0,
            sample_steps=0,
            logging_steps=args.steps,
            report_to="none",
        )
        networks = {"energy": PointEnergy(args.hidden)}
        result = train(networks, objective, Batches(GRID, args.batch, seed), options, Accelerator(cpu=True))
    return result.networks["energy"], result.seconds


def draw(energy: PointEnergy, args: argparse.Namespace, seed: int) -> Tensor:
    """Return points (N, 2): a descent, then Langevin steps."""
    options = {"step_size": args.step_size, "temperature": args.temperature, "quiet": args.quiet}
    pipeline = hfgen.EnergyPipeline(energy, hfgen.LangevinScheduler(**options))
    pipeline.set_progress_bar_config(disable=True)
    generator = generator_of("benchmark", seed, "latents")
    call = {"num_inference_steps": args.chain_steps, "generator": generator, "output_type": "latent"}
    return pipeline(POINTS, **call).images.flatten(1)


def width(points: Tensor) -> float:
    """Return the deviation of points from the mean of their mode, divided by that of the data."""
    mode = torch.cdist(points, CENTRES).argmin(1)
    means = torch.stack([points[mode == k].mean(0) if (mode == k).any() else CENTRES[k] for k in range(len(CENTRES))])
    return float((points - means[mode]).square().mean().sqrt()) / DEVIATION


def measure(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train, draw and measure."""
    energy, seconds = train_energy(args, seed)
    points = draw(energy, args, seed)
    return {**modes(points, CENTRES, 3 * DEVIATION), "width": width(points), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/energy_grid", help="folder for the JSON file")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=256, help="points of a step, which are coupled to as much noise")
    parser.add_argument("--hidden", type=int, default=128, help="width of the hidden layers")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.2, help="time from which on the slope falls to zero")
    parser.add_argument("--coupling", choices=("independent", "optimal"), default="optimal", help="of noise and data")
    parser.add_argument("--chain_steps", type=int, default=200, help="steps of a sample")
    parser.add_argument("--quiet", type=float, default=0.75, help="share of these steps that are a descent")
    parser.add_argument("--step_size", type=float, default=0.02, help="of all of them")
    parser.add_argument("--temperature", type=float, default=0.002, help="of the Langevin steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; each is a run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "seeds")}
    results = Measured(Path(args.output_dir) / "energy_grid.json", {**settings, "torch": torch.__version__})
    print("| seed | modes of 25 | good points | KL of shares | width / data | seconds |")
    print("|---|---|---|---|---|---|")
    for seed in args.seeds:
        each = results.get(str(seed), lambda seed=seed: measure(args, seed))
        quality = f"{each['covered']} | {each['high_quality']:.1%} | {each['reverse_kl']:.4f} | {each['width']:.2f}"
        print(f"| {seed} | {quality} | {each['seconds']:.0f} |", flush=True)
    print(f"\nWrote {results.file}")


if __name__ == "__main__":
    main()
