"""Schedulers: the way from noise back to data. One algorithm per file, each a table of rows for the engine `solver`."""

from .annealed_langevin import AnnealedLangevinScheduler
from .consistency import ConsistencyScheduler
from .ddim import DDIMInverseScheduler, DDIMScheduler
from .ddpm import DDPMScheduler
from .descent import GradientDescentScheduler
from .dpm_solver import DPMSolverPlusPlusScheduler
from .hamiltonian import HamiltonianScheduler
from .langevin import LangevinScheduler
from .rectified_flow import RectifiedFlowScheduler
from .sde import ScoreSDEScheduler

__all__ = [
    "AnnealedLangevinScheduler",
    "ConsistencyScheduler",
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverPlusPlusScheduler",
    "GradientDescentScheduler",
    "HamiltonianScheduler",
    "LangevinScheduler",
    "RectifiedFlowScheduler",
    "ScoreSDEScheduler",
]
