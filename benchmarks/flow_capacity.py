"""Normalizing flows of equal numbers of parameters: implicit ones beside residual ones, VFlow beside the plain flow.

    python benchmarks/flow_capacity.py --seeds 0,1,2

Each pair of sides has as many parameters, up to 5 %, and is trained with the same steps, rate and batches: on two
densities in the plane, and on scikit-learn's 8 x 8 digits. What is measured is the mean of -log p of held-out items: in
nats in the plane, in bits per dimension of the 256 levels (uniform dequantisation) for digits. Densities of residual
and implicit flows are exact. That of a VFlow is the mean of K draws of its noise inside the logarithm, a bound. Prints
a table with the mean over the seeds, the standard deviation, and the difference of each pair for each seed; writes
flow_capacity.json. Finished trainings are not repeated.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    seeds: str = option("0,1,2", "seeds of weights, order and noise, separated by commas")
    steps: int = option(700, "steps of each training in the plane")
    digit_steps: int = option(250, "steps of each training on digits")
    draws: int = option(20, "K, draws of the noise of a VFlow for each item")
    problems: str = option("checkerboard,rings,digits", "problems, separated by commas")
    output_dir: str = option("outputs/flow_capacity", "folder for the JSON file")


PAIRS = (("residual", "implicit"), ("plain", "vflow"))
"""The side that came first, and the one that is said to be better."""

BATCH = 256
RATE = 3e-3


def plane(problem: str, count: int, seed: int) -> Any:
    """Draw points (count, 2, 1, 1) of a density in the plane: a checkerboard of 4 x 4 squares, or two thin rings."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, count, generator=generator)
    if problem == "checkerboard":
        row = torch.randint(0, 4, (count,), generator=generator)
        column = 2 * torch.randint(0, 2, (count,), generator=generator) + row % 2
        points = torch.stack([column + first, row + second], 1) - 2
    else:
        radius = 1 + (second > 0.5) + 0.08 * torch.randn(count, generator=generator)
        angle = 2 * math.pi * first
        points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return points[:, :, None, None]


def digits(held_out: bool) -> Any:
    """Return levels in [-1, 1] of digits, (N, 1, 8, 8): the first 1,500 to train on, the other 297 held out."""
    import hfgen
    from hfgen.options import DataArgs
    from hfgen.utils.pixels import from_levels

    split = "train[1500:]" if held_out else "train[:1500]"
    return from_levels(hfgen.load_images(DataArgs(dataset="digits", dataset_split=split)).images)


def flow_of(name: str, problem: str) -> Any:
    """Build a side. Widths make the numbers of parameters of a pair equal."""
    import hfgen

    couplings = {"num_levels": 1, "mixing": "convolution", "actnorm": True}
    if problem == "digits":
        shape = {"sample_size": 8, "in_channels": 1}
        couplings |= {"layers_per_level": 6, "network_depth": 1}
        residual = {"num_layers": 4, "squeeze": 2, "hidden_channels": 64, "log_det": "estimate"}
        width, inside = (16, 14), (1, 8)
    else:
        shape = {"sample_size": 1, "in_channels": 2}
        couplings |= {"layers_per_level": 4, "squeeze": 1, "network": "mlp"}
        residual = {"num_layers": 4, "network": "mlp", "hidden_channels": 32}
        width, inside = (36, 28), (2, 8)
    if name in ("residual", "implicit"):
        return hfgen.ResidualFlowModel(**shape, **residual, kind=name)
    if name == "plain":
        return hfgen.CouplingFlowModel(**shape, **couplings, hidden_channels=width[0])
    extra, hidden = inside
    couplings |= {**shape, "in_channels": shape["in_channels"] + extra, "hidden_channels": width[1]}
    return hfgen.AugmentedFlowModel("CouplingFlowModel", couplings, extra, hidden_channels=hidden)


def train(flow: Any, data: Callable[[int], Any], steps: int, seed: int, noisy: bool) -> None:
    """Train a flow by Adam, at a rate that falls to 0, with the batches data(step) (B, C, H, W)."""
    import torch

    import hfgen
    from hfgen.objectives.base import Step

    objective = hfgen.MaximumLikelihood("uniform" if noisy else "none", noise_shape=getattr(flow, "noise_shape", None))
    flow.initialise(objective.with_noise(data(0), Step(0, seed)))
    optimizer = torch.optim.Adam(flow.parameters(), RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        loss = objective.loss("flow", {"flow": flow}, {"x": data(step)}, Step(step, seed))
        optimizer.zero_grad()
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()


def held_out_loss(flow: Any, x: Any, draws: int) -> Any:
    """Return -log p of each item (B,) in nats."""
    import torch

    from hfgen.distributions.bounds import log_mean_exp
    from hfgen.distributions.densities import flow_log_prob

    shape, generator = getattr(flow, "bound_noise_shape", None), torch.Generator().manual_seed(1)
    with torch.no_grad():
        if shape is None:
            return -torch.cat([flow_log_prob(flow(part)) for part in x.split(100)])
        noises = (torch.randn(len(x), *shape, generator=generator) for _ in range(draws))
        return -log_mean_exp(torch.stack([flow_log_prob(flow(x, noise=noise)) for noise in noises], 1))


def measure(name: str, problem: str, seed: int, options: Options) -> dict[str, float]:
    """Train and measure a side."""
    import torch

    from hfgen.distributions.densities import dequantised, level_bits

    torch.manual_seed(seed)
    flow, start = flow_of(name, problem), time.perf_counter()
    if problem == "digits":
        images, test = digits(False), digits(True)
        order = torch.Generator().manual_seed(seed)
        rows = [torch.randint(len(images), (64,), generator=order) for _ in range(options.digit_steps)]
        train(flow, lambda step: images[rows[step]], options.digit_steps, seed, True)
        noise = torch.rand(test.shape, generator=torch.Generator().manual_seed(0))
        value = level_bits(-held_out_loss(flow, dequantised(test, noise), options.draws), 64)
    else:
        train(flow, lambda step: plane(problem, BATCH, 10_000 * (seed + 1) + step), options.steps, seed, False)
        value = held_out_loss(flow, plane(problem, 2000, 1), options.draws)
    parameters = sum(parameter.numel() for parameter in flow.parameters())
    return {"loss": float(value.mean()), "parameters": parameters, "seconds": time.perf_counter() - start}


def report(problem: str, rows: dict[str, list[dict[str, float]]]) -> None:
    """Print a line for each side of a problem, and one for the differences of each pair."""
    unit = "bits per dimension" if problem == "digits" else "nats"
    for first, second in PAIRS:
        for name in (first, second):
            losses = [row["loss"] for row in rows[name]]
            spread = statistics.stdev(losses) if len(losses) > 1 else math.nan
            seconds = statistics.mean(row["seconds"] for row in rows[name])
            size = f"{rows[name][0]['parameters']:,}"
            value = f"{statistics.mean(losses):.3f} ± {spread:.3f} {unit}"
            print(f"| {problem} | {name} | {size} | {value} | {seconds:.0f} s |")
        gains = [a["loss"] - b["loss"] for a, b in zip(rows[first], rows[second], strict=True)]
        print(f"{problem}: {second} below {first} by {', '.join(f'{gain:+.3f}' for gain in gains)} {unit}")


def main() -> None:
    """Train and measure all sides; print and write the table."""
    example = "python benchmarks/flow_capacity.py --seeds 0,1,2"
    command = parser("flow_capacity.py", __doc__.splitlines()[0], example, Options, config=False)
    (options,) = parse(command, None, Options)
    settings = {key: getattr(options, key) for key in ("steps", "digit_steps", "draws")}
    results = Measured(Path(options.output_dir) / "flow_capacity.json", settings)
    for problem in options.problems.split(","):
        rows: dict[str, list[dict[str, float]]] = {name: [] for pair in PAIRS for name in pair}
        for seed in map(int, options.seeds.split(",")):
            for name in rows:
                key = f"{problem}, {name}, {seed}"
                rows[name].append(results.get(key, lambda n=name, s=seed, p=problem: measure(n, p, s, options)))
        report(problem, rows)
    print(f"Wrote {results.file}")


if __name__ == "__main__":
    main()
