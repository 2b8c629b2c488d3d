"""Accuracy per network evaluation, for schedulers of hfgen and diffusers, on a problem with a known score.

    python benchmarks/solver_accuracy.py --output_dir outputs/solver_accuracy

The data are a mixture of Gaussians in 64 dimensions, so the perfect network for every prediction kind is a formula. The
error is the RMSE per coordinate, as the median over samples, against the solution of the probability-flow ODE from the
same noise with 4000 Runge-Kutta steps. Every scheduler has at most N network evaluations. Of diffusers, all samplers
without noise take part, with all their grids and orders; the best of them is the one to compare with. Prints two tables
and writes solver_accuracy.json, and solver_accuracy.png if matplotlib is installed.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import peer_samplers
import torch
from torch import Tensor

from hfgen import paths
from hfgen.schedulers import DDIMScheduler, DPMSolverPlusPlusScheduler, RectifiedFlowScheduler

DIM, COMPONENTS, SAMPLES = 64, 4, 256
F64 = torch.float64


class Mixture:
    """K Gaussians with diagonal covariances in DIM dimensions."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.means = 0.3 * torch.randn(COMPONENTS, DIM, generator=generator, dtype=F64)
        self.variances = (0.2 + 0.3 * torch.rand(COMPONENTS, DIM, generator=generator, dtype=F64)) ** 2

    def x_0(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Compute E[x_0 | x_t = x] for x (B, DIM)."""
        total = alpha**2 * self.variances + sigma**2  # (K, DIM)
        square = (x**2) @ (1 / total).T - 2 * x @ (alpha * self.means / total).T
        logits = -0.5 * (square + ((alpha * self.means) ** 2 / total + total.log()).sum(-1))
        share = torch.softmax(logits, 1)  # (B, K)
        gain = alpha * self.variances / total
        return share @ gain * x + share @ (self.means - gain * alpha * self.means)


def reference(problem: Mixture, alpha: float, sigma: float, x: Tensor, steps: int = 4000) -> Tensor:
    """Solve the ODE from x at these scales to its end, by Runge-Kutta in straight coordinates."""
    rho = alpha + sigma
    y, start = x / rho, sigma / rho
    grid = [start * (1 - i / steps) ** 2 for i in range(steps + 1)]

    def velocity(y: Tensor, s: float) -> Tensor:
        return (y - problem.x_0(y, 1 - s, s)) / s

    for s, end in pairwise(grid[:-1]):
        h, half = end - s, (s + end) / 2
        k_1 = velocity(y, s)
        k_2 = velocity(y + h / 2 * k_1, half)
        k_3 = velocity(y + h / 2 * k_2, half)
        y = y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + velocity(y + h * k_3, end))
    return problem.x_0(y, 1 - grid[-2], grid[-2])


def sample(scheduler: Any, steps: int, problem: Mixture, x: Tensor, path: paths.Path, kind: str) -> tuple[Tensor, int]:
    """Draw samples; return them and the number of network evaluations."""
    scheduler.set_timesteps(steps)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        point = path(path.time_of(t.to(F64)))
        alpha, sigma = float(point.alpha), float(point.sigma)
        x_0 = problem.x_0(seen.to(F64), alpha, sigma)
        eps = (seen.to(F64) - alpha * x_0) / sigma
        c_x, c_e = (float(value) for value in paths.prediction_row(kind)(point))
        x = scheduler.step(c_x * x_0 + c_e * eps, t, x).prev_sample.to(F64)
    return x, len(scheduler.timesteps)


def vp_schedulers() -> dict[str, Callable[[], Any]]:
    """Return our schedulers on DDPM's table, and all samplers of diffusers without noise."""
    return {
        "hfgen DPMSolver++ (default)": DPMSolverPlusPlusScheduler,
        "hfgen DPMSolver++ order 2": lambda: DPMSolverPlusPlusScheduler(solver_order=2),
        "hfgen DPMSolver++ 2M, lambda": lambda: DPMSolverPlusPlusScheduler(
            method="multistep", solver_order=2, grid_type="lambda"
        ),
        "hfgen DDIM (default)": DDIMScheduler,
        **{f"diffusers {name}": make for name, make in peer_samplers.ode_samplers().items()},
    }


def flow_schedulers() -> dict[str, Callable[[], Any]]:
    return {
        "hfgen RectifiedFlow (default)": RectifiedFlowScheduler,
        **{
            f"hfgen RectifiedFlow {name}": lambda name=name: RectifiedFlowScheduler(solver=name)
            for name in ("adams_bashforth2", "euler", "midpoint", "heun")
        },
        "hfgen DPMSolver++ (default)": lambda: DPMSolverPlusPlusScheduler(
            path="straight", prediction_type="flow_prediction"
        ),
        **{f"diffusers {name}": make for name, make in peer_samplers.flow_samplers().items()},
    }


def compare(schedulers: dict[str, Callable[[], Any]], counts: list[int], path: paths.Path, kind: str) -> dict[str, Any]:
    """Measure the median RMSE of each scheduler at each count; None if it needs more evaluations."""
    problem = Mixture()
    noise = torch.randn(SAMPLES, DIM, generator=torch.Generator().manual_seed(1), dtype=F64)
    end = path(torch.ones((), dtype=F64))
    # Every scheduler takes standard normal noise as the sample at the end of the path, and so does the reference.
    truth = reference(problem, float(end.alpha), float(end.sigma), noise)
    table: dict[str, Any] = {}
    for name, make in schedulers.items():
        table[name] = []
        for count in counts:
            steps = peer_samplers.most_steps(make, count)
            x = sample(make(), steps, problem, noise, path, kind)[0] if steps else None
            table[name].append(None if x is None else float((x - truth).square().mean(1).sqrt().median()))
    return table


def show(title: str, table: dict[str, list[float | None]], counts: list[int]) -> None:
    print(f"\n{title}\n{'evaluations':42s}" + "".join(f"{count:>10d}" for count in counts))
    for name, errors in table.items():
        print(f"{name:42s}" + "".join("         -" if e is None else f"{e:10.2e}" for e in errors))
    for side in ("hfgen", "diffusers"):
        best = [fewest_error(table, side, column) for column in range(len(counts))]
        print(f"{f'best of {side}':42s}" + "".join(f"{error:10.2e}" for error, _ in best))
        print(f"  {', '.join(f'{count}: {name}' for count, (_, name) in zip(counts, best, strict=True))}")


def fewest_error(table: dict[str, list[float | None]], side: str, column: int) -> tuple[float, str]:
    """Return the smallest error of a side in a column, and the scheduler's name."""
    errors = {name: row[column] for name, row in table.items() if name.startswith(side)}
    name = min(errors, key=lambda name: math.inf if errors[name] is None or math.isnan(errors[name]) else errors[name])
    return math.nan if errors[name] is None else errors[name], name.removeprefix(f"{side} ")


def plot(tables: dict[str, dict[str, list[float | None]]], counts: list[int], file: Path) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tables), figsize=(6.5 * len(tables), 5), squeeze=False)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        peers = [name for name in table if name.startswith("diffusers")]
        for name in peers:
            axis.loglog(counts, _plotted(table[name]), color="0.8", lw=0.8)
        best = [fewest_error(table, "diffusers", column)[0] for column in range(len(counts))]
        axis.loglog(counts, best, "--x", color="0.2", label=f"the best of diffusers' {len(peers)} (grey)")
        for name in table:
            if name not in peers:
                axis.loglog(counts, _plotted(table[name]), "-o", label=name, lw=2 if "default" in name else 1, ms=4)
        axis.set(title=title, xlabel="network evaluations", ylabel="median RMSE", ylim=(None, 1.5))
        axis.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    return True


def _plotted(errors: list[float | None]) -> list[float]:
    return [math.nan if error is None else error for error in errors]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/solver_accuracy", help="folder for the JSON file and the plot")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20, 50], help="numbers of network evaluations"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    vp = paths.path_from_config(diffusers.DDPMScheduler().config)
    tables = {
        "VP path, linear betas, epsilon prediction": compare(vp_schedulers(), args.counts, vp, "epsilon"),
        "Straight path, flow prediction": compare(
            flow_schedulers(), args.counts, paths.StraightPath(), "flow_prediction"
        ),
    }
    for title, table in tables.items():
        show(title, table, args.counts)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    result = {"counts": args.counts, "diffusers": diffusers.__version__, "median_rmse": tables}
    (folder / "solver_accuracy.json").write_text(json.dumps(result, indent=2) + "\n")
    drawn = plot(tables, args.counts, folder / "solver_accuracy.png")
    print(f"\nWrote {folder}/solver_accuracy.json" + (" and .png" if drawn else " (no plot: matplotlib is missing)"))


if __name__ == "__main__":
    main()
