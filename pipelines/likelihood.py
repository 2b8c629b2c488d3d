"""How probable images are to a pipeline's model: exactly by the ODE, from above by the variational bound."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from hfgen.paths import path_from_config
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.ode_likelihood import Velocity, bits, dequantise, log_density, variational_bound

from .inputs import check_images, check_levels, noise_of, uniform_of

EXACT_DIMENSIONS = 64
"""Up to so many dimensions `trace="auto"` is exact: an evaluation costs as many backward passes."""

Generators = torch.Generator | list[torch.Generator] | None


class LikelihoodMixin:
    """Likelihoods for a pipeline that has `_labels`, `_predict` and `image_shape`. What is computed, where and how
    accurately is in `hfgen/schedulers/ode_likelihood.py`."""

    @torch.no_grad()
    def log_likelihood(
        self,
        x: Tensor,
        class_labels: Any = None,
        num_inference_steps: int = 20,
        num_probes: int = 1,
        trace: Literal["auto", "exact", "hutchinson"] = "auto",
        generator: Generators = None,
        batch_size: int = 64,
    ) -> Tensor:
        """log p(x), or log p(x | class), in nats, (B,) float64, through the probability-flow ODE.

        Args:
            x: real-valued data (B, C, H, W); dequantised images rather than 8-bit ones, see `bits_per_dim`.
            class_labels: a class or one an image, by number or name. None: the null label.
            num_inference_steps: Runge-Kutta steps; the network is evaluated 4 (steps + 1) or 4 (steps + 2) times.
            num_probes: random vectors of Hutchinson's estimate; each costs a backward pass an evaluation.
            trace: `exact` costs C H W backward passes an evaluation; `hutchinson` is unbiased; `auto` is exact up to
                `EXACT_DIMENSIONS`.
            generator: of the probes: one, or one an image; with a list an image's value is the same in any batch.
            batch_size: images at a time, with a bar over batches; changes rounding alone.

        Raises:
            ValueError: data of another shape or not finite, labels that do not fit, or a number out of range.
        """
        labels = self._measured(x, class_labels, num_inference_steps, batch_size)
        if trace not in ("auto", "exact", "hutchinson") or num_probes < 1:
            raise ValueError(f"{trace=} must be auto, exact or hutchinson, and {num_probes=} at least 1.")
        if not x.isfinite().all():
            raise ValueError("x has values that are not finite; a likelihood is of numbers.")
        x = x.to(self._execution_device, self._real)
        exact = trace == "exact" or (trace == "auto" and x[0].numel() <= EXACT_DIMENSIONS)
        draws = 0 if exact else num_probes
        probes = [torch.where(uniform_of(x.shape, generator, x.device) < 0.5, -1.0, 1.0).to(x) for _ in range(draws)]
        config, values = self.scheduler.config, []
        path, kind = path_from_config(config), config.get("prediction_type") or "flow_prediction"
        for rows in self.progress_bar(torch.arange(len(x), device=x.device).split(batch_size)):
            velocity = Velocity(self._network(labels, rows), path, kind)
            few = [probe[rows] for probe in probes]
            values.append(log_density(velocity, x[rows], num_inference_steps, few))
        self.maybe_free_model_hooks()
        return torch.cat(values)

    @torch.no_grad()
    def bits_per_dim(
        self,
        images: Tensor,
        class_labels: Any = None,
        num_inference_steps: int = 20,
        num_probes: int = 1,
        trace: Literal["auto", "exact", "hutchinson"] = "auto",
        generator: Generators = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Bits per dimension of 8-bit images, (B,) float64: -log2 p(x + u) / d + log2 127.5, with one u uniform in the
        bin (1/127.5 wide, around the level) from `generator` for each pixel. Below 8 is better than guessing.

        Args:
            images: 8-bit images as k / 127.5 - 1, (B, C, H, W) in [-1, 1].
            class_labels, num_inference_steps, num_probes, trace, batch_size: see `log_likelihood`.
            generator: of dequantisation and probes.

        Raises:
            ValueError: images of another shape, outside [-1, 1] or not on the 256 levels, and as `log_likelihood`.
        """
        self._measured(images, class_labels, num_inference_steps, batch_size)
        check_levels(images)
        spread = dequantise(images.cpu(), uniform_of(images.shape, generator, "cpu").double())
        nats = self.log_likelihood(spread, class_labels, num_inference_steps, num_probes, trace, generator, batch_size)
        return bits(nats, images[0].numel())

    @torch.no_grad()
    def variational_bound(
        self,
        images: Tensor,
        class_labels: Any = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """An upper bound on the bits per dimension of 8-bit images, (B,) float64, to the chain that `DDPMScheduler`
        samples with: L_T + sum L_{t-1} + L_0 (Ho et al. 2020, eq. 5), see `variational_bound`.

        Args:
            images: 8-bit images as k / 127.5 - 1, (B, C, H, W) in [-1, 1].
            class_labels: a class or one an image, by number or name. None: the null label.
            num_inference_steps: length of the chain, an evaluation each; None: all of the training steps.
            generator: of the noise; one, or one an image, whose value is then the same in any batch.

        Raises:
            ValueError: as `bits_per_dim`; or the model's variances are learned.
        """
        labels = self._measured(images, class_labels, num_inference_steps)
        check_levels(images)
        x_0 = images.to(self._execution_device, self._real)
        scheduler = DDPMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(num_inference_steps)
        rows = torch.arange(len(x_0), device=x_0.device)
        nats = variational_bound(
            self._network(labels, rows),
            scheduler,
            scheduler.grid(scheduler.num_inference_steps),
            x_0,
            lambda: noise_of(x_0.shape, None, generator, x_0.device).to(x_0.dtype),
            self.progress_bar,
        )
        self.maybe_free_model_hooks()
        return nats / (x_0[0].numel() * math.log(2))

    def _measured(self, x: Tensor, class_labels: Any, steps: int | None, batch_size: int = 1) -> Tensor | None:
        """The labels (B,) of the data to be measured, which must fit the network."""
        check_images(x, self.image_shape)
        if batch_size < 1 or (steps is not None and steps < 1):
            raise ValueError(f"num_inference_steps={steps} and {batch_size=} must be at least 1.")
        return self._labels(len(x), class_labels, 1.0)[1]

    def _network(self, labels: Tensor | None, rows: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The network on some of the rows, without channels for a learned variance."""
        few, channels = None if labels is None else labels[rows], self.image_shape[0]
        return lambda x, timestep: self._predict(x, timestep, few, 1.0)[:, :channels]
