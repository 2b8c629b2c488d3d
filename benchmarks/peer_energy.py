"""Energy matching on two half moons by torchebm, in an environment of its own: points, and the time of a step.

    python -m venv outputs/torchebm && outputs/torchebm/bin/pip install torchebm==0.8.9 numpy
    outputs/torchebm/bin/python benchmarks/peer_energy.py --output_dir outputs/peer_energy --steps 200 20

The settings are those of torchebm's own example of energy matching in the plane: three hidden layers of 256, its
coupling and chains, batches of 128, Adam at 1e-4, 20,000 steps of the flow and 2,000 of both parts. The moons are drawn
anew in each step, in place of its 8,000 points. They have unit size, and deviation 0.05. `--steps` are those of the
flow, and of both parts together. One thread.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn


def moons(count: int, generator: torch.Generator) -> Tensor:
    """Draw points (N, 2) of two half circles."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    side = torch.rand(count, 1, generator=generator) < 0.5
    middle = torch.tensor([0.5, 0.25])
    return torch.where(side, upper, lower) - middle + 0.05 * torch.randn(count, 2, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/peer_energy", help="folder for points and seconds")
    parser.add_argument("--steps", type=int, nargs=2, default=[20_000, 2_000], help="of the flow, and of both parts")
    parser.add_argument("--batch", type=int, default=128, help="points of a step")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    args = parser.parse_args()

    from torchebm.core import BaseModel, TemperatureScheduler
    from torchebm.couplings import SinkhornCoupling
    from torchebm.losses import EnergyMatchingLoss
    from torchebm.samplers import LangevinDynamics

    class Potential(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            sizes = [2, 256, 256, 256]
            layers = [part for i in range(3) for part in (nn.Linear(sizes[i], sizes[i + 1]), nn.SiLU())]
            self.layers = nn.Sequential(*layers, nn.Linear(256, 1))

        def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
            return self.layers(x)[:, 0]

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    potential = Potential()
    coupling = SinkhornCoupling(reg=0.01)
    loss_fn = EnergyMatchingLoss(potential, coupling=coupling, lambda_cd=0.0, cd_trim_fraction=0.0, cd_clamp=None)
    optimizer, seconds = torch.optim.Adam(potential.parameters(), lr=1e-4), []
    for weight, count in zip((0.0, 2.0), args.steps, strict=True):
        loss_fn.lambda_cd, start = weight, time.perf_counter()
        for _ in range(count):
            loss = loss_fn(moons(args.batch, generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    temperature = TemperatureScheduler(0.15, 0.8, n_steps=200, t_end=1.0)
    chain = LangevinDynamics(model=potential, step_size=0.01, noise_scale=temperature)
    points = chain.sample(x=torch.randn(10_000, 2, generator=generator), n_steps=200).detach()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(points, folder / "points.pt")
    facts = {"seconds": seconds, "steps": args.steps, "batch": args.batch, "torch": torch.__version__}
    (folder / "peer_energy.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{seconds[0]:.0f} s for {args.steps[0]} steps, {seconds[1]:.0f} s for {args.steps[1]}; wrote {folder}")


if __name__ == "__main__":
    main()
