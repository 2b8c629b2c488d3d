"""Schedulers: the way from noise back to data. One algorithm per file, each a table of rows for the engine `solver`."""

from .consistency import ConsistencyScheduler
from .ddim import DDIMInverseScheduler, DDIMScheduler
from .ddpm import DDPMScheduler
from .dpm_solver import DPMSolverPlusPlusScheduler
from .rectified_flow import RectifiedFlowScheduler
from .sde import ScoreSDEScheduler

__all__ = [
    "ConsistencyScheduler",
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverPlusPlusScheduler",
    "RectifiedFlowScheduler",
    "ScoreSDEScheduler",
]
