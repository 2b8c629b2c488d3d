"""How to come back from noise: one algorithm a file, all of them tables of rows for one engine (`solver`)."""

from .ddim import DDIMInverseScheduler, DDIMScheduler
from .ddpm import DDPMScheduler
from .dpm_solver import DPMSolverPlusPlusScheduler
from .rectified_flow import RectifiedFlowScheduler
from .sde import ScoreSDEScheduler

__all__ = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverPlusPlusScheduler",
    "RectifiedFlowScheduler",
    "ScoreSDEScheduler",
]
