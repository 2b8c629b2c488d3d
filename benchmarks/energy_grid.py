"""Energies on the grid of 25 Gaussians of gaussian_grid.py: modes, shares and widths after a minute.

    python benchmarks/energy_grid.py --output_dir outputs/energy_grid

An energy E(x) of points, fully connected with three hidden layers and without a clock, learns by equilibrium matching
with optimal coupling in each batch. Samples begin as normal noise, descend, and end with Langevin steps. Their
temperature is T = E |dE/dx|^2 / E tr(d^2E/dx^2), means over data: that of the density exp(-E / T) whose score is
nearest to the data's (Hyvarinen 2005, https://jmlr.org/papers/v6/hyvarinen05a.html). Measured are 10,000 samples, as in
gaussian_grid.py; besides, their deviation within modes, divided by that of the data. Seconds are those of training
steps, in one thread.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from gaussian_grid import CENTRES, DEVIATION, GRID, points
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
            ema_max_decay=0.995,
            report_to="none",
        )
        networks = {"energy": PointEnergy(args.hidden)}
        result = train(networks, objective, Batches(GRID, args.batch, seed), options, Accelerator(cpu=True))
    return result.networks["energy"], result.seconds


def temperature_of(energy: PointEnergy, seed: int) -> float:
    """Return the temperature of an energy by score matching on data."""
    x = points(POINTS, generator_of("benchmark", seed, "temperature"))["x"].requires_grad_()
    gradient = energy(x, with_gradient=True).gradient
    columns = [torch.autograd.grad(gradient[:, k].sum(), x, retain_graph=True)[0][:, k] for k in range(2)]
    return float((gradient.square().sum(1).mean() / sum(columns).mean()).detach())


def draw(energy: PointEnergy, temperature: float, args: argparse.Namespace, seed: int) -> Tensor:
    """Return points (N, 2): a descent, then Langevin steps."""
    options = {"step_size": args.step_size, "temperature": temperature, "quiet": args.quiet}
    pipeline = hfgen.EnergyPipeline(energy, hfgen.LangevinScheduler(**options))
    pipeline.set_progress_bar_config(disable=True)
    generator = generator_of("benchmark", seed, "latents")
    call = {"num_inference_steps": args.chain_steps, "generator": generator, "output_type": "latent"}
    return pipeline(POINTS, **call).images.flatten(1)


def width(drawn: Tensor) -> float:
    """Return the deviation of points from the mean of their mode, divided by that of the data."""
    mode = torch.cdist(drawn, CENTRES).argmin(1)
    means = torch.stack([drawn[mode == k].mean(0) if (mode == k).any() else CENTRES[k] for k in range(len(CENTRES))])
    return float((drawn - means[mode]).square().mean().sqrt()) / DEVIATION


def measure(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train, draw and measure."""
    energy, seconds = train_energy(args, seed)
    temperature = temperature_of(energy, seed)
    drawn = draw(energy, temperature, args, seed)
    found = {"width": width(drawn), "temperature": temperature, "seconds": seconds}
    return {**modes(drawn, CENTRES, 3 * DEVIATION), **found}


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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; each is a run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "seeds")}
    results = Measured(Path(args.output_dir) / "energy_grid.json", {**settings, "torch": torch.__version__})
    print("| seed | modes of 25 | good points | KL of shares | width / data | temperature | seconds |")
    print("|---|---|---|---|---|---|---|")
    for seed in args.seeds:
        each = results.get(str(seed), lambda seed=seed: measure(args, seed))
        quality = f"{each['covered']} | {each['high_quality']:.1%} | {each['reverse_kl']:.4f} | {each['width']:.2f}"
        quality += f" | {each['temperature']:.2g}"
        print(f"| {seed} | {quality} | {each['seconds']:.0f} |", flush=True)
    print(f"\nWrote {results.file}")


if __name__ == "__main__":
    main()
