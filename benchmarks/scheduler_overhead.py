"""Time of one `step` of a scheduler, for hfgen and diffusers, beside the tensor arithmetic that a step needs.

    python benchmarks/scheduler_overhead.py --output_dir outputs/scheduler_overhead

The limit is the time of the same linear combinations, with one pass over the tensors for each scaling and each added
term, and of the noise. Values are medians of many calls after a warm-up, in one thread. Prints a table and writes
scheduler_overhead.json.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from hfgen import schedulers as ours

SHAPES = {"1x4x64x64": (1, 4, 64, 64), "64x3x32x32": (64, 3, 32, 32)}
STEPS = 50


def pairs() -> dict[str, tuple[Callable[[], Any], Callable[[], Any], int, bool]]:
    """Return by name: our scheduler, that of diffusers, passes over the tensors of our rule, whether it adds noise."""
    published = {"solver_order": 2, "method": "multistep", "timestep_spacing": "linspace"}
    return {
        "DDPM": (ours.DDPMScheduler, diffusers.DDPMScheduler, 4, True),
        "DDIM": (ours.DDIMScheduler, lambda: diffusers.DDIMScheduler(clip_sample=False), 4, False),
        "DPMSolver++ 2M": (
            lambda: ours.DPMSolverPlusPlusScheduler(**published),
            diffusers.DPMSolverMultistepScheduler,
            5,
            False,
        ),
        "DPMSolver++ default": (
            ours.DPMSolverPlusPlusScheduler,
            lambda: diffusers.UniPCMultistepScheduler(solver_order=3),
            9,
            False,
        ),
        "Flow Euler": (
            lambda: ours.RectifiedFlowScheduler(solver="euler"),
            diffusers.FlowMatchEulerDiscreteScheduler,
            1,
            False,
        ),
        "Flow default": (ours.RectifiedFlowScheduler, diffusers.FlowMatchHeunDiscreteScheduler, 5, False),
    }


def step_time(scheduler: Any, x: Tensor, output: Tensor, repeats: int) -> float:
    """Measure the median seconds of a step, over whole trajectories."""
    samples = []
    for trial in range(repeats + 1):
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            begin = time.perf_counter()
            scheduler.step(output, t, x)
            if trial:
                samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def limit_time(x: Tensor, output: Tensor, passes: int, noise: bool, repeats: int) -> float:
    """Measure the median seconds of the arithmetic alone."""
    samples = []
    for trial in range((repeats + 1) * STEPS):
        begin = time.perf_counter()
        y = x
        for _ in range(passes):
            y = torch.add(y, output, alpha=0.1)
        if noise:
            y = torch.add(y, torch.randn_like(x), alpha=0.1)
        if trial >= STEPS:
            samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/scheduler_overhead", help="folder for the JSON file")
    parser.add_argument("--repeats", type=int, default=20, help=f"number of trajectories of {STEPS} steps")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    titles = ("shape", "hfgen", "diffusers", "limit", "faster", "/limit")
    print(f"{'microseconds per step':22s}" + "".join(f"{title:>12s}" for title in titles))
    for name, (make, theirs, passes, noise) in pairs().items():
        for shape_name, shape in SHAPES.items():
            x, output = torch.randn(shape), torch.randn(shape)
            mine, other = (step_time(factory(), x, output, args.repeats) * 1e6 for factory in (make, theirs))
            limit = limit_time(x, output, passes, noise, args.repeats) * 1e6
            rows.append({"scheduler": name, "shape": shape_name, "hfgen": mine, "diffusers": other, "limit": limit})
            numbers = (mine, other, limit, other / mine, mine / limit)
            print(f"{name:22s}{shape_name:>12s}" + "".join(f"{number:12.1f}" for number in numbers))
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scheduler_overhead.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(f"\nWrote {folder}/scheduler_overhead.json")


if __name__ == "__main__":
    main()
