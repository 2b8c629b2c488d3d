"""Denoising of two kinds of items together, each at a time of its own."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, PROBABILITY, check_range
from .base import Loss, Objective, Step, loss_with_logs
from .denoising import Denoising, NoisyItems


class UniDiffusion(Objective):
    """UniDiffuser's objective (Bao et al. 2023, https://arxiv.org/abs/2303.06555): `Denoising` of images x and of
    latents z of their texts, with independent noise and independent times t and s:

        L = E_{t, s}   w(t) || f(x_t, z_s, t, s) - y_t(x_0, eps) ||^2 / d_x
                     + a w(s) || g(x_t, z_s, t, s) - y_s(z_0, eta) ||^2 / d_z

    A time of 1 hides a kind, so that the other is learnt without it; a time of 0 gives it. The modes of sampling need
    the edges of the square of times, which uniform times hardly reach: a share of the items, `end_share`, has one of
    both times at an end, each of the four edges as often. There a kind without noise has no loss.

    The batch holds "x" (B, C, H, W), and "captions" (B,), numbers of texts.

    Args:
        denoising: path, prediction, times and weights of both kinds; without a condition.
        texts (M, K, d): the latents of the texts.
        text_weight: a, the weight of the latents' loss.
        end_share: share of the items with a time at an end.

    Raises:
        ValueError: a number out of range, a condition, or texts of another form.
    """

    players = ("denoiser",)
    call = ("timestep", "text", "text_timestep")

    @checked
    def __init__(self, denoising: Denoising, texts: Tensor, text_weight: float = 1.0, end_share: float = 0.5):
        check_range("text_weight", text_weight, AT_LEAST_0)
        check_range("end_share", end_share, PROBABILITY)
        if denoising.condition is not None:
            raise ValueError("denoising has a condition, and the text takes its place. Make it without one.")
        if texts.ndim != 3 or not texts.is_floating_point():
            raise ValueError(f"texts have shape {tuple(texts.shape)} and type {texts.dtype}; give numbers (M, K, d).")
        self.denoising, self.texts = denoising, texts
        self.text_weight, self.end_share = text_weight, end_share

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the weighted sum of both errors, with each in the logs.

        Raises:
            ValueError: a batch without captions.
        """
        if "captions" not in batch:
            raise ValueError(f'The batch has no "captions", only {", ".join(batch)}. Load the images with captions.')
        x, rows = batch["x"], batch["captions"]
        z = self.texts[rows.to(self.texts.device)].to(x)  # (B, K, d)
        steps = step, dataclasses.replace(step, turn=step.turn + 1)  # draws of their own
        times = self.with_ends([self.denoising.times(each, len(x)) for each in steps], step)
        noisy = [self.denoising.noisy({"x": item}, each, t) for item, each, t in zip((x, z), steps, times, strict=True)]
        output = networks[player](noisy[0].scaled, noisy[0].timestep, noisy[1].scaled, noisy[1].timestep)
        errors = [self._error(*pair) for pair in zip((output.sample, output.text), noisy, strict=True)]
        return loss_with_logs(errors[0] + self.text_weight * errors[1], {"image": errors[0], "text": errors[1]})

    def with_ends(self, times: list[Tensor], step: Step) -> list[Tensor]:
        """Return times t and s, (B,) each, with those of a share of the items moved to an end."""
        draw = step.rand("ends", len(times[0]))
        edge = torch.where(draw < self.end_share, (4 * draw / max(self.end_share, 1e-12)).long().clamp(max=3), 4)
        moved = []
        for number, t in enumerate(times):
            t = torch.where(edge == 2 * number, self.first_time, t)
            moved.append(torch.where(edge == 2 * number + 1, self.denoising.path.snap(torch.ones_like(t)), t))
        return moved

    @property
    def first_time(self) -> Tensor:
        """Return the time, (), of a kind that is given: the first one that has a target."""
        return self.denoising.path.snap(torch.tensor(self.denoising.earliest, dtype=torch.float64))

    def _error(self, output: Tensor, noisy: NoisyItems) -> Tensor:
        """Return the mean weighted error of one kind, (), where it has noise."""
        error = self.denoising.error(output, noisy)  # (B,)
        weight = torch.where(noisy.t > self.first_time, self.denoising.weight(noisy.t), 0.0)
        return (weight.to(error) * error).mean()
