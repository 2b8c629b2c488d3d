"""Steps of Markov chains on a density exp(-E(x)): Langevin dynamics, Hamiltonian dynamics, and their acceptance.

Samplers and objectives share them: contrastive divergence draws its negatives by the chain that draws samples.
"""

import math

import torch
from torch import Tensor


def langevin_step(x: Tensor, gradient: Tensor, noise: Tensor, step_size: float, temperature: float = 1.0) -> Tensor:
    """Return the next state of unadjusted Langevin dynamics, (B, *item):

        x' = x - h dE/dx + sqrt(2 h T) z,

    whose stationary density is exp(-E(x) / T) / Z, up to an error of order h (Roberts & Tweedie 1996,
    https://doi.org/10.2307/3318418). At T = 0 it is gradient descent.

    Args:
        x: the state.
        gradient: dE/dx at x.
        noise: z, standard normal.
        step_size: h.
        temperature: T, at least 0.
    """
    x = torch.add(x, gradient, alpha=-step_size)
    return torch.add(x, noise, alpha=math.sqrt(2 * step_size * temperature)) if temperature else x


def clipped_gradient(gradient: Tensor, largest: float | None) -> Tensor:
    """Return gradients (B, *item), those with a root mean square above `largest` scaled down to it; None: all as they
    are."""
    if largest is None:
        return gradient
    size = root_mean_square(gradient)
    return gradient * (largest / size.clamp(min=largest)).reshape(-1, *[1] * (gradient.ndim - 1))


def root_mean_square(x: Tensor) -> Tensor:
    """Return sqrt(mean x^2) of each item (B, *item): (B,)."""
    return x.flatten(1).square().mean(1).sqrt()


def kinetic_energy(momentum: Tensor) -> Tensor:
    """Return |p|^2 / 2 of momenta (B, *item): (B,), in float64 where the device has it."""
    dtype = torch.float32 if momentum.device.type == "mps" else torch.float64
    return momentum.to(dtype).flatten(1).square().sum(1) / 2


def acceptance(before: Tensor, after: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the probability of a move by Metropolis' rule, min(1, exp((H - H') / T)), (B,).

    A state whose energy is not finite is never accepted.

    Args:
        before, after: H and H' (B,), the total energy of the state and of the proposal.
        temperature: T, above 0.
    """
    probability = ((before - after) / temperature).clamp(max=0).exp()
    return torch.where(after.isfinite() & probability.isfinite(), probability, 0.0)
