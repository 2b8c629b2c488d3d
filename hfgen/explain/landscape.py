"""An energy of points in the plane: chains that cool down on its landscape."""

import torch
from torch import Tensor

import hfgen

from ..distributions.chains import langevin_step
from .demo import FRAMES, Demo, DemoSetup, as_images, one_pass_times
from .networks import PointEnergy

HOT, COLD = 0.3, 0.003
"""Temperature of the first and of the last frame."""
STEPS, STEP_SIZE = 12, 0.02
"""Langevin steps from frame to frame, and their size."""


def temperature(t: float) -> float:
    """Return the temperature at a time: it falls geometrically from `HOT` at 1 to `COLD` at 0."""
    return COLD * (HOT / COLD) ** t


def energy_demo(setup: DemoSetup) -> Demo:
    """Train an energy by equilibrium matching, and draw samples by a Langevin chain whose temperature falls.

    The density of a frame is exp(-E(x) / T) at its temperature, but for a constant: at first one broad hill, then
    narrow ridges. That is what levels of noise do to a density, too. Noise is coupled to the nearest data: in the
    plane a point does not say how noisy it is, and ways that cross would leave no slope.
    """
    networks, seconds = setup.train(
        {"energy": PointEnergy()}, hfgen.EquilibriumMatching(coupling="optimal"), learning_rate=3e-3
    )
    landscape, x = networks["energy"], setup.noise()
    times, positions = one_pass_times(), [setup.noise()]
    generator = setup.generator("chain")
    for t in times[1:]:
        for _ in range(STEPS):
            noise = torch.randn(x.shape, generator=generator)
            x = langevin_step(x, slope(landscape, x).float(), noise, STEP_SIZE, temperature(t))
        positions.append(x)
    return Demo(
        title="Energy",
        method=f"{FRAMES * STEPS} Langevin steps",
        times=times,
        positions=torch.stack(positions),
        density=lambda x, t: -heights(landscape, x) / temperature(t),
        field=lambda x, t: -slope(landscape, x),
        field_name="downhill, whatever the time",
        exact_field=None,
        seconds=seconds,
    )


@torch.no_grad()
def heights(landscape: PointEnergy, x: Tensor) -> Tensor:
    """Return E (M,) at points x (M, 2)."""
    return landscape(as_images(x)).energy.double()


@torch.no_grad()
def slope(landscape: PointEnergy, x: Tensor) -> Tensor:
    """Return dE/dx (M, 2) at points x (M, 2)."""
    return landscape(as_images(x), with_gradient=True).gradient.flatten(1).double()
