"""Paths from data to noise, and the five quantities that a network may predict on them.

A path is the pair (alpha_t, sigma_t) in

    x_t = alpha_t x_0 + sigma_t eps,    eps ~ N(0, I),    t in [0, 1].

**t = 0 is data and t = 1 is noise**, as in diffusers; texts on rectified flow often use the other direction. Diffusion
and flow matching differ only in the path and in the prediction kind. This file holds both:

    target = c_x x_0 + c_e eps,    (c_x, c_e) a row of `PREDICTIONS`.

Together with x_t this is a 2x2 linear system, so any prediction can be converted into any other. `compose` computes the
training target, and `decompose` recovers (x_0, eps).

Sources: Song et al. 2021, https://arxiv.org/abs/2011.13456 (VP, VE); Kingma & Gao 2023,
https://arxiv.org/abs/2303.00848 (one objective in the log-SNR); Liu et al. 2023, https://arxiv.org/abs/2209.03003
(the straight path); Salimans & Ho 2022, https://arxiv.org/abs/2202.00512 (v-prediction).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .utils.arguments import checked


class Point(NamedTuple):
    """A path at times t: the scales of signal and noise and their derivatives in t, each of the shape of t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    def like(self, x: Tensor) -> "Point":
        """Return the same point in x's device and dtype, reshaped from (B,) to (B, 1, ..., 1) to broadcast to x."""
        return Point(*(broadcast(value, x) for value in self))


def broadcast(value: Tensor, x: Tensor) -> Tensor:
    """Reshape `value` (B,) or () to (B, 1, ..., 1), in the device and dtype of x (B, ...)."""
    return value.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class Path(ABC):
    """A path x_t = alpha_t x_0 + sigma_t eps for t in [0, 1]. It is immutable and computes in the dtype of t.

    `timestep(t)` is the network's input for the time t: 1000 t, or the index into the table of a discrete path. It is
    the time step of diffusers' schedulers, so checkpoints can be used by both.
    """

    num_train_timesteps: int = 1000

    @abstractmethod
    def __call__(self, t: Tensor) -> Point:
        """Compute scales and derivatives at times t of any shape."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """Compute the t at which log(alpha^2 / sigma^2) equals `log_snr`: the inverse of `log_snr(t)`."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Compute log(alpha_t^2 / sigma_t^2) in nats. It falls from data to noise. Solvers use half of it, lambda."""
        alpha, sigma, _, _ = self(t)
        return 2 * (alpha.log() - sigma.log())

    def timestep(self, t: Tensor) -> Tensor:
        """Compute the network's time step at time t: 1000 t."""
        return self.num_train_timesteps * t

    def time_of(self, timestep: Tensor) -> Tensor:
        """Compute the time t of a time step: the inverse of `timestep`."""
        return timestep / self.num_train_timesteps

    def snap(self, t: Tensor) -> Tensor:
        """Move t to the nearest later time that training may use. On a continuous path this is t itself."""
        return t

    def input_scale(self, t: Tensor) -> Tensor:
        """Compute the factor of x_t at the network's input: 1, except on paths whose variance is not bounded."""
        return torch.ones_like(t)

    def mix(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Compute x_t = alpha_t x_0 + sigma_t eps for x_0 and eps (B, ...) and times t (B,) or ()."""
        point = self(t).like(x_0)
        return point.alpha * x_0 + point.sigma * eps


class StraightPath(Path):
    """alpha = 1 - t, sigma = t: rectified flow, and flow matching (Lipman et al. 2023, https://arxiv.org/abs/2210.02747)."""

    def __call__(self, t: Tensor) -> Point:
        one = torch.ones_like(t)
        return Point(1 - t, t.clone(), -one, one)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


class VEPath(Path):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t: the variance-exploding SDE.

    Data lie in [-1, 1], so a noise of sigma_max = 50 hides them. The network's input is x_t / sqrt(1 + sigma^2), whose
    variance is that of a VP path.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """

    @checked
    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: VE needs 0 < sigma_min < sigma_max < inf.")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._rate = math.log(sigma_max / sigma_min)

    def __call__(self, t: Tensor) -> Point:
        sigma = self.sigma_min * torch.exp(self._rate * t)
        return Point(torch.ones_like(t), sigma, torch.zeros_like(t), self._rate * sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2 - math.log(self.sigma_min)) / self._rate

    def input_scale(self, t: Tensor) -> Tensor:
        return (1 + self(t).sigma ** 2) ** -0.5


class VPPath(Path):
    """alpha^2 + sigma^2 = 1, defined by log alpha_t: the variance-preserving SDE with beta(t) = -2 d(log alpha)/dt."""

    @abstractmethod
    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log alpha_t and its derivative in t."""

    @abstractmethod
    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Compute the t at which log alpha_t has this value: the inverse of `log_alpha`."""

    def __call__(self, t: Tensor) -> Point:
        log_alpha, slope = self.log_alpha(t)
        log_alpha = log_alpha.clamp(max=0)  # rounding at t = 0 must not make sigma^2 negative
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        d_alpha = alpha * slope
        return Point(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.time_of_log_alpha(-0.5 * torch.nn.functional.softplus(-log_snr))


class LinearVPPath(VPPath):
    """beta(t) = beta_min + t (beta_max - beta_min): continuous-time DDPM (Song et al. 2021, appendix B).

    Raises:
        ValueError: not 0 < beta_min < beta_max.
    """

    @checked
    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        if not 0 < beta_min < beta_max < math.inf:
            raise ValueError(f"beta_min={beta_min}, beta_max={beta_max}: VP needs 0 < beta_min < beta_max < inf.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        span = self.beta_max - self.beta_min
        return -t * (span * t / 4 + self.beta_min / 2), -(span * t + self.beta_min) / 2

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        span = self.beta_max - self.beta_min
        return -4 * log_alpha / (self.beta_min + (self.beta_min**2 - 4 * span * log_alpha).sqrt())


class CosineVPPath(VPPath):
    """alpha_t = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)), s = 0.008 (Nichol & Dhariwal 2021)."""

    @checked
    def __init__(self, offset: float = 0.008):
        if not 0 <= offset < math.inf:
            raise ValueError(f"offset={offset}: a cosine path needs an offset of at least 0; 0.008 is usual.")
        self._scale = math.pi / 2 / (1 + offset)
        self._offset = self._scale * offset

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = self._scale * t + self._offset
        cosine, least = angle.cos(), math.cos(math.pi / 2)
        slope = torch.where(cosine < least, -self._scale / least, -self._scale * angle.tan())
        # In float32 the angle at t = 1 is rounded to more than pi/2, where the cosine is negative.
        return cosine.clamp(min=least).log() - math.log(math.cos(self._offset)), slope

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        return (torch.acos(log_alpha.exp() * math.cos(self._offset)) - self._offset) / self._scale


class DiscretePath(VPPath):
    """The path through a DDPM table: alpha_t^2 = alphas_cumprod[i] at t = (i + 1)/T, and 1 at t = 0.

    Between entries log alpha is linear: the VP SDE whose beta(t) is constant on each step. The network's time step is
    the index T t - 1. Training snaps t to the table, so a DDPM trained here is the DDPM of Ho et al. 2020
    (https://arxiv.org/abs/2006.11239), and any scheduler of diffusers with the same betas can sample from it.

    Args:
        alphas_cumprod (T,): the table, strictly falling, in [0, 1). Entries below 1e-20 leave nothing of the signal
            (zero terminal SNR, very large betas). They are replaced by slowly falling ones, so that the path is
            invertible.

    Raises:
        ValueError: not such a table.
    """

    @checked
    def __init__(self, alphas_cumprod: Tensor):
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        vanished = (table <= 1e-20).long().cummax(0).values
        if table.ndim != 1 or not len(table) or not table[0] < 1 or not (table.diff()[vanished[1:] == 0] < 0).all():
            raise ValueError("alphas_cumprod must be a table of strictly falling numbers in [0, 1); check the betas.")
        self.num_train_timesteps = len(table)
        log_alpha = torch.where(vanished > 0, math.log(1e-20) - 1e-6 * vanished.cumsum(0).double(), table.log()) / 2
        self._log_alpha = torch.cat([table.new_zeros(1), log_alpha])

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = self._log_alpha.to(t.device, t.dtype)
        position = (t * self.num_train_timesteps).clamp(0, self.num_train_timesteps)
        nearest = position.round()  # (i + 1)/T * T may miss i + 1 by one unit in the last place
        position = torch.where((position - nearest).abs() < 1e-9 * self.num_train_timesteps, nearest, position)
        left = (position.ceil() - 1).clamp(min=0).long()
        rise = table[left + 1] - table[left]
        return table[left] + (position - left) * rise, rise * self.num_train_timesteps

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        table = self._log_alpha.to(log_alpha.device, log_alpha.dtype)
        right = torch.searchsorted(-table, -log_alpha.contiguous()).clamp(1, self.num_train_timesteps)
        left = right - 1
        return (left + (log_alpha - table[left]) / (table[right] - table[left])) / self.num_train_timesteps

    def timestep(self, t: Tensor) -> Tensor:
        """Compute the index into the table, T t - 1."""
        return self.num_train_timesteps * t - 1

    def time_of(self, timestep: Tensor) -> Tensor:
        return (timestep + 1) / self.num_train_timesteps

    def snap(self, t: Tensor) -> Tensor:
        return (t * self.num_train_timesteps).ceil().clamp(min=1) / self.num_train_timesteps


# --- prediction kinds -------------------------------------------------------------------------------------------------

PREDICTIONS: dict[str, Callable[[Point], tuple[Any, Any]]] = {
    "sample": lambda p: (torch.ones_like(p.alpha), torch.zeros_like(p.alpha)),
    "epsilon": lambda p: (torch.zeros_like(p.alpha), torch.ones_like(p.alpha)),
    "v_prediction": lambda p: (-p.sigma, p.alpha),
    "flow_prediction": lambda p: (p.d_alpha, p.d_sigma),
    "score": lambda p: (torch.zeros_like(p.alpha), -1 / p.sigma),
}
"""Prediction kind -> (c_x, c_e) in target = c_x x_0 + c_e eps, at a point. `flow_prediction` is dx_t/dt."""


class Decomposition(NamedTuple):
    """Coefficients of x_0 = x_from_x_t x_t + x_from_output output, and likewise of eps."""

    x_from_x_t: Tensor
    x_from_output: Tensor
    eps_from_x_t: Tensor
    eps_from_output: Tensor


def prediction_row(kind: str) -> Callable[[Point], tuple[Any, Any]]:
    """Return the row of `PREDICTIONS` called `kind`.

    Raises:
        ValueError: there is none; names the choices.
    """
    if kind not in PREDICTIONS:
        raise ValueError(f"prediction_type={kind!r} is not known. Choose one of: {', '.join(PREDICTIONS)}.")
    return PREDICTIONS[kind]


def determinant(kind: str, point: Point) -> Tensor:
    """Compute alpha c_e - sigma c_x. Where it is 0, x_t and the prediction do not determine x_0."""
    c_x, c_e = prediction_row(kind)(point)
    return point.alpha * c_e - point.sigma * c_x


def coefficients(kind: str, point: Point) -> Decomposition:
    """Invert the 2x2 system. Each coefficient has the shape of t. Where the system is singular, they are infinite or
    NaN, but for what the prediction says by itself: a multiple of eps is known to the end of a path."""
    (c_x, c_e), det = prediction_row(kind)(point), determinant(kind, point)
    eps_from_output = torch.where(c_x == 0, 1 / c_e, point.alpha / det)
    x_from_output = torch.where(c_e == 0, 1 / c_x, -point.sigma / det)
    return Decomposition(c_e / det, x_from_output, -c_x / det, eps_from_output)


def compose(kind: str, point: Point, x_0: Tensor, eps: Tensor) -> Tensor:
    """Compute the training target c_x x_0 + c_e eps, for x_0 and eps (B, ...) at a point with scales (B,)."""
    c_x, c_e = prediction_row(kind)(point)
    return broadcast(c_x, x_0) * x_0 + broadcast(c_e, x_0) * eps


def decompose(kind: str, point: Point, x_t: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Compute (x_0, eps) from x_t and a prediction of this kind, both (B, ...), at a point with scales (B,)."""
    a, b, c, d = (broadcast(value, x_t) for value in coefficients(kind, point))
    return a * x_t + b * output, c * x_t + d * output


def start_time(path: Path, kind: str, ratio: float | None = None) -> float:
    """Return the time from which sampling starts: 1, or 0.999 if the prediction does not determine x_0 at t = 1, as
    `epsilon` does not if alpha = 0 there; or the earlier time where sigma / alpha is `ratio`."""
    latest = 1.0 if determinant(kind, path(torch.ones((), dtype=torch.float64))).abs() > 1e-4 else 1 - 1e-3
    level = torch.tensor(-2 * math.log(1 if ratio is None else ratio), dtype=torch.float64)
    return latest if ratio is None else min(latest, float(path.snap(path.time(level))))


# --- configurations ---------------------------------------------------------------------------------------------------


def betas_of(schedule: str, num: int, beta_start: float, beta_end: float) -> Tensor:
    """Return the table of `num` betas that diffusers calls `schedule`, (num,) float64; ValueError for another."""
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num, dtype=torch.float64) ** 2
    if schedule == "sigmoid":
        ramp = torch.sigmoid(torch.linspace(-6, 6, num, dtype=torch.float64))
        return ramp * (beta_end - beta_start) + beta_start
    if schedule == "squaredcos_cap_v2":
        path, edges = CosineVPPath(), torch.arange(num + 1, dtype=torch.float64) / num
        return (-torch.expm1(2 * path.log_alpha(edges)[0].diff())).clamp(max=0.999)
    names = "linear, scaled_linear, sigmoid or squaredcos_cap_v2"
    raise ValueError(f"beta_schedule={schedule!r} is not known. Choose {names}, or give the table as trained_betas.")


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Move a table so that its last entry is 0 (Lin et al. 2024, https://arxiv.org/abs/2305.08891)."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


_BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
PATH_OPTIONS: dict[str, dict[str, Any]] = {
    "straight": {},
    "discrete": {**_BETAS, "trained_betas": None, "rescale_betas_zero_snr": False},
    "linear_vp": {},
    "cosine_vp": {},
    "ve": {"sigma_min": 0.01, "sigma_max": 50.0},
}
"""Path -> its parameters in a scheduler configuration, and their defaults."""


def path_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option `path`, its parameters and `num_train_timesteps`, with every default explicit.

    Without that option, betas mean `discrete`, and diffusers' options of flow matching mean `straight`.

    Raises:
        ValueError: the configuration states no path that hfgen knows.
    """
    name = config.get("path") or ("straight" if config.get("use_flow_sigmas") else None)
    if name is None and config.get("snr_shift_scale") in (None, 1.0):  # a shift of CogVideoX that no other class knows
        betas = config.get("beta_schedule") is not None or config.get("trained_betas") is not None
        name = "discrete" if betas else None if config.get("shift") is None else "straight"
    if name not in PATH_OPTIONS:
        owner, names = config.get("_class_name", "this configuration"), ", ".join(PATH_OPTIONS)
        raise ValueError(f"path={name!r} of {owner} is not known. Choose one of: {names}.")
    facts = {key: default if config.get(key) is None else config[key] for key, default in PATH_OPTIONS[name].items()}
    return {"path": name, "num_train_timesteps": config.get("num_train_timesteps") or 1000, **facts}


def path_from_config(config: Mapping[str, Any]) -> Path:
    """Make the path that a scheduler configuration, ours or diffusers', describes. Raises as `path_facts` does."""
    facts = path_facts(config)
    path = _PATHS[facts["path"]](facts)
    if not isinstance(path, DiscretePath):
        path.num_train_timesteps = facts["num_train_timesteps"]
    return path


def _discrete(facts: Mapping[str, Any]) -> DiscretePath:
    betas = facts["trained_betas"]
    if betas is None:
        betas = betas_of(*(facts[key] for key in ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end")))
    # In float32, as in diffusers: near data the rounding is 2e-4 of sigma^2, and networks are trained with it.
    table = torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float32), 0)
    return DiscretePath(zero_terminal_snr(table) if facts["rescale_betas_zero_snr"] else table)


_PATHS: dict[str, Callable[[Mapping[str, Any]], Path]] = {
    "straight": lambda facts: StraightPath(),
    "discrete": _discrete,
    "linear_vp": lambda facts: LinearVPPath(),
    "cosine_vp": lambda facts: CosineVPPath(),
    "ve": lambda facts: VEPath(facts["sigma_min"], facts["sigma_max"]),
}
