"""All samplers of diffusers, with their options, for a model of each kind; the best of them is the peer in a race."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

diffusers.utils.logging.set_verbosity_error()  # notes of singlestep solvers on their numbers of steps

Make = Callable[[], Any]
"""Makes a new scheduler."""

MODEL = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}
"""The model that is sampled: ε on DDPM's linear table. Heun and KDPM2 have other betas by default, those of Stable
Diffusion, and would sample another model without a word."""


def ode_samplers() -> dict[str, Make]:
    """Return the samplers without noise for a model that predicts ε on DDPM's linear table."""
    ddim, multistep = diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler
    singlestep, unipc = diffusers.DPMSolverSinglestepScheduler, diffusers.UniPCMultistepScheduler
    deis, heun, euler = (
        diffusers.DEISMultistepScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.EulerDiscreteScheduler,
    )
    rows: dict[str, Make] = {
        f"DDIM{'' if clip else ' without clipping'}, {spacing}": partial(
            ddim, clip_sample=clip, timestep_spacing=spacing, **MODEL
        )
        for clip in (True, False)
        for spacing in ("leading", "trailing", "linspace")
    }
    solvers = {
        "DPMSolverMultistep": (multistep, ("order 2", "order 3", "karras", "lu", "trailing", "leading", "noise")),
        "DPMSolverSinglestep": (singlestep, ("order 2", "order 3", "karras")),
        "UniPC": (unipc, ("order 2", "order 3", "bh1", "karras", "trailing", "leading")),
        "DEIS": (deis, ("order 2", "order 3", "trailing")),
        "Heun": (heun, ("default", "karras", "trailing")),
        "Euler": (euler, ("default", "karras", "trailing", "leading")),
        "KDPM2": (diffusers.KDPM2DiscreteScheduler, ("default", "karras")),
        "PNDM": (partial(diffusers.PNDMScheduler, skip_prk_steps=True), ("default", "trailing")),
    }
    for name, (make, variants) in solvers.items():
        rows |= {f"{name}, {variant}": partial(make, **MODEL, **VARIANTS[variant]) for variant in variants}
    return rows


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "order 2": {},
    "order 3": {"solver_order": 3},
    "karras": {"use_karras_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "bh1": {"solver_type": "bh1"},
    "noise": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading"},
}
"""Options by the words of a row's name. "noise" is DPM-Solver, which integrates ε; all others integrate x_0."""


def sde_samplers() -> dict[str, Make]:
    """Return the samplers with noise for the same model."""
    return {
        "DDPM": partial(diffusers.DDPMScheduler, **MODEL),
        "Euler ancestral": partial(diffusers.EulerAncestralDiscreteScheduler, **MODEL),
        "KDPM2 ancestral": partial(diffusers.KDPM2AncestralDiscreteScheduler, **MODEL),
        "DPMSolverMultistep, SDE": partial(
            diffusers.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++", **MODEL
        ),
    }


def flow_samplers() -> dict[str, Make]:
    """Return the samplers for a model of the velocity on the straight path."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return {
        "FlowMatchEuler": diffusers.FlowMatchEulerDiscreteScheduler,
        "FlowMatchHeun": diffusers.FlowMatchHeunDiscreteScheduler,
        "DPMSolverMultistep": partial(diffusers.DPMSolverMultistepScheduler, **flow),
        "DPMSolverMultistep, order 3": partial(diffusers.DPMSolverMultistepScheduler, solver_order=3, **flow),
        "DPMSolverSinglestep": partial(diffusers.DPMSolverSinglestepScheduler, **flow),
        "UniPC, order 2": partial(diffusers.UniPCMultistepScheduler, **flow),
        "UniPC, order 3": partial(diffusers.UniPCMultistepScheduler, solver_order=3, **flow),
        "DEIS": partial(diffusers.DEISMultistepScheduler, **flow),
    }


def most_steps(make: Make, evaluations: int) -> int | None:
    """Return the largest number of steps with at most this many network evaluations; None if there is none."""
    for steps in range(evaluations, 0, -1):
        scheduler = make()
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, RuntimeError):  # too few steps for this sampler; each has its own error
            continue
        if len(scheduler.timesteps) <= evaluations:
            return steps
    return None


@torch.no_grad()
def draw(network: nn.Module, scheduler: Any, steps: int, noise: Tensor, generators: Any = None) -> Tensor:
    """Draw images (B, C, H, W) in [0, 1] as pipelines of diffusers do, and keep them in float32 between evaluations.

    (A `DDIMPipeline` in bfloat16 also rounds the images themselves after each step, and can't return arrays.)

    Args:
        network: of diffusers' form, in any precision.
        scheduler: of diffusers.
        steps: number of steps.
        noise (B, C, H, W): standard normal, float32.
        generators: of the samplers with noise, one for each image or one for all.
    """
    scheduler.set_timesteps(steps)
    noisy = "generator" in type(scheduler).step.__code__.co_varnames
    options = {"generator": generators} if noisy and generators is not None else {}
    x = noise * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(seen.to(network.dtype), t).sample.float()
        x = scheduler.step(output, t, x, **options).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)
