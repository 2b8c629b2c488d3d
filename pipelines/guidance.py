"""The guided output of a network in a call: guides (`guides.py`), and the forms of classifier-free guidance.

Lin et al. 2024, https://arxiv.org/abs/2305.08891 (rescale).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hfgen.models.conditions import Condition
from hfgen.paths import Path, broadcast, coefficients, compose, decompose, determinant, path_facts, path_from_config
from hfgen.schedulers.configuration import network_facts

from .guides import Autoguidance, Guide, NoisyState, ProjectedGuidance, split_guides
from .inputs import check_number
from .sampling import guided

LEAST_SIGNAL = 1e-3
"""The least alpha / sigma at which guides see a sample."""


class GuidedPrediction:
    """The guided output of a network in one call of a pipeline: guides, and the form of classifier-free guidance.

    Args:
        network: the denoiser.
        scheduler: whose configuration states path and prediction.
        condition, kwargs: of `hfgen.pipelines.sampling.guided`.
        shape: of an item.
        guidance: guides; None: there are none.
        method: `cfg`, `apg`, or a `ProjectedGuidance`.
        rescale: share of the output that has the standard deviation of the class's own (Lin et al. 2024).

    Raises:
        ValueError: something else than guides, an unknown method, a number out of range, or models that do not fit.
    """

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        condition: Condition | None,
        kwargs: Mapping[str, Tensor],
        shape: tuple[int, ...],
        guidance: Guide | Sequence[Guide] | None,
        method: str | ProjectedGuidance,
        rescale: float,
    ):
        guidance = () if guidance is None else guidance
        self.network, self.condition, self.kwargs = network, condition, kwargs
        self.rescale, self.channels = rescale, shape[0]
        check_number("guidance_rescale", rescale, 0.0)
        if rescale > 1:
            raise ValueError(f"guidance_rescale={rescale} must be from 0 to 1, the share that is rescaled.")
        if method not in ("cfg", "apg") and not isinstance(method, ProjectedGuidance):
            raise ValueError(
                f"guidance_method={method!r} is not known. Choose one of: cfg, apg; or give a ProjectedGuidance."
            )
        self.projection = ProjectedGuidance() if method == "apg" else None if method == "cfg" else method
        self.plain = isinstance(guidance, Sequence) and not guidance and self.projection is None and not rescale
        self._earlier: Tensor | None = None  # the running difference of a projection with momentum
        if not self.plain:
            facts = network_facts(scheduler.config)
            self.path: Path = path_from_config(facts)
            self.kind = facts["prediction_type"]
            self.energies, self.rivals = split_guides(guidance, path_facts(facts), shape)

    def __call__(self, x: Tensor, t: Tensor, scale: float, r: Tensor | None = None) -> Tensor:
        """Return the output for scaled samples x (B, *item) at time step t, with classifier-free guidance `scale`.

        Raises:
            ValueError: a flow map is guided, whose steps end at r.
        """
        if self.plain:  # reads no time step, for which a device would be waited for
            return guided(self.network, x, t, self.condition, self.kwargs, scale, r)
        time = self.path.time_of(torch.as_tensor(t, dtype=torch.float64).cpu())
        energies = [guide for guide in self.energies if guide.scale and guide.inside(float(time))]
        if r is not None and (self.energies or self.rivals or self.projection):
            raise ValueError(
                "A flow map's steps can't be guided. Use a scheduler of a rectified flow, such as 'euler'."
            )
        if not energies:
            return self._output(x, t, time, scale, r)
        near = self._time_of_guides(time)  # also where x_t says nothing of the data
        step = torch.as_tensor(t if near == time else self.path.timestep(near), device=x.device)
        point, factor = self.path(near).like(x), broadcast(self.path.input_scale(near), x)
        output = None
        with torch.enable_grad():
            x_t = (x / broadcast(self.path.input_scale(time), x)).detach().requires_grad_()
            scaled, x_0 = x_t * factor, None
            if any(guide.sees_data for guide in energies):
                seen = self._output(scaled, step, near, scale, None)
                x_0, _ = decompose(self.kind, point, x_t, seen[:, : self.channels])
                output = seen.detach() if near == time else None
            state = NoisyState(x_t, x_0, near.to(x.device, x.dtype), scaled, step)
            total = sum(guide.scale * guide.energy(state).sum() for guide in energies)
            (slope,) = torch.autograd.grad(total, x_t)
        output = self._output(x, t, time, scale, r) if output is None else output
        change = point.sigma * determinant(self.kind, point) / point.alpha * slope
        return add_to_prediction(output, change.to(output.dtype))

    def _time_of_guides(self, time: Tensor) -> Tensor:
        """Return the time at which guides see a sample: the sample's own, or the first at which x_t knows the data.

        At pure noise, where a rectified flow starts, the tilt of the data does not show in x_t, but it shows in the
        estimate of x_0: its limit is taken at alpha = sigma / 1000.
        """
        first = self.path.time(torch.tensor(2 * math.log(LEAST_SIGNAL), dtype=torch.float64))
        return torch.minimum(time, first)

    def _output(self, x: Tensor, t: Tensor, time: Tensor, scale: float, r: Tensor | None) -> Tensor:
        """Return the output with classifier-free guidance and autoguidance."""
        plain = self.projection is None and not self.rescale
        combine = None if plain else lambda *outputs: self._combined(*outputs, scale, x, time)
        output = guided(self.network, x, t, self.condition, self.kwargs, scale, r, combine)
        for guide in self.rivals:
            if guide.scale != 1 and guide.inside(float(time)):
                output = self._away(guide, output, x, t, time)
        return output

    def _combined(self, conditional: Tensor, unconditional: Tensor, scale: float, x: Tensor, time: Tensor) -> Tensor:
        """Return the output of classifier-free guidance in this call's form."""
        output = torch.lerp(unconditional, conditional, scale)
        c, whole, given = self.channels, output, conditional
        output, conditional, unconditional = output[:, :c], conditional[:, :c], unconditional[:, :c]
        if self.projection is not None:
            point = self.path(time).like(x)
            gain = broadcast(coefficients(self.kind, self.path(time)).x_from_output, x)
            x_0, _ = decompose(self.kind, point, x / broadcast(self.path.input_scale(time), x), conditional)
            change = gain * (conditional - unconditional)
            if self._earlier is not None:
                change = change + self.projection.momentum * self._earlier
            self._earlier = change.detach()
            output = conditional + (scale - 1) * self.projection.difference(change, x_0) / gain
        if self.rescale:
            dims = tuple(range(1, output.ndim))
            ratio = conditional.std(dims, keepdim=True) / output.std(dims, keepdim=True).clamp(min=1e-12)
            output = torch.lerp(output, output * ratio, self.rescale)
        return output if whole.shape[1] == c else torch.cat([output, given[:, c:]], 1)

    def _away(self, guide: Autoguidance, output: Tensor, x: Tensor, t: Tensor, time: Tensor) -> Tensor:
        """Return the output, led away from that of a worse model."""
        known = guide.kind is None or getattr(guide.bad, "condition", None) is not None
        bad = guided(guide.network, x, t, self.condition, self.kwargs if known else {})[:, : self.channels]
        if guide.kind not in (None, self.kind):
            point, x_t = self.path(time), x / broadcast(self.path.input_scale(time), x)
            bad = compose(self.kind, point, *decompose(guide.kind, point, x_t, bad)).to(bad.dtype)
        return add_to_prediction(output, (guide.scale - 1) * (output[:, : self.channels] - bad))


def add_to_prediction(output: Tensor, change: Tensor) -> Tensor:
    """Add a change (B, C, ...) to the prediction in an output, which may have further channels of a variance."""
    channels = change.shape[1]
    whole = output[:, :channels] + change
    return whole if output.shape[1] == channels else torch.cat([whole, output[:, channels:]], 1)
