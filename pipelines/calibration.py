"""Calibration of a denoiser's reverse variances: what they are is measured, and stated in the scheduler."""

from typing import Any, Literal

import torch
from torch import Tensor

from hfgen.paths import path_from_config
from hfgen.schedulers.configuration import network_facts, without_variances
from hfgen.schedulers.grids import lambda_to_share
from hfgen.schedulers.reverse_variance import measured_variances, measurement_times
from hfgen.schedulers.table import scales
from hfgen.utils.arguments import checked

from .images import image_batch
from .inputs import Generators, check_count, noise_of
from .outputs import require_finite


class CalibrationMixin:
    """For a pipeline with `_kwargs`, `_predict`, `sample_shape`, `item_shape`, `to_items` and a scheduler."""

    @checked
    @torch.no_grad()
    def calibrate(
        self,
        x: Any,
        class_labels: Any = None,
        kind: Literal["analytic", "residual"] = "analytic",
        num_levels: int = 64,
        repeats: int = 4,
        generator: Generators = None,
        batch_size: int = 64,
    ) -> Any:
        """Measure the variance of the data given x_t at levels of noise, and state it in the scheduler from now on.

        `DDPMScheduler` then draws with these variances (`variance_type="analytic"`), at any times and number of steps;
        `use_scheduler("ddim", optimal_variance=True)` is DDIM with them. All else of the scheduler stays as it is.
        `use_scheduler("ddpm", variance_type="fixed_small")` draws as before. Save the pipeline to keep it.

        Args:
            x: data (B, *item) like those of the training, or images, see `image_batch`; some thousands of images.
            class_labels: a class, or one for each sample, by number or name. None: the null label.
            kind: `analytic`, from the mean square of the network's estimate of the noise, Analytic-DPM; `residual`,
                from the mean squared error of its estimate of x, which is the same for a perfect network and the best
                variance of any other. Of data in [-1, 1] the estimate is clamped there, as `DDPMScheduler` does.
            num_levels: levels of noise.
            repeats: evaluations of each sample, at different levels.
            generator: of the noise.
            batch_size: samples in one pass, with a progress bar over batches.

        Returns:
            The pairs (s, variance) that the scheduler now has as `data_variances`.

        Raises:
            ValueError: data or labels that do not fit the model, or a number out of range.
        """
        if kind not in ("analytic", "residual"):
            raise ValueError(f"kind={kind!r} is not known. Choose one of: analytic, residual.")
        for name, value in (("num_levels", num_levels), ("repeats", repeats), ("batch_size", batch_size)):
            check_count(name, value)
        x = self.to_items(image_batch(x, self.sample_shape, "x", torch.inf))
        kwargs, facts = self._kwargs(len(x), class_labels, 1.0)[1], network_facts(self.scheduler.config)
        path, channels = path_from_config(facts), self.item_shape[0]
        times = torch.tensor(measurement_times(path, facts["prediction_type"], num_levels), dtype=torch.float64)
        if len(x) * repeats < len(times):
            raise ValueError(
                f"{len(x)} samples and {repeats=} are fewer evaluations than {len(times)} levels of noise."
            )
        bound = 1.0 if float(x.abs().max()) <= 1 else None
        totals, counts = torch.zeros_like(times), torch.zeros_like(times)
        order = torch.arange(len(x) * repeats)
        for rows in self.progress_bar(order.split(batch_size)):
            # Evaluation i is of sample i modulo B; levels go round, so that each has nearly as many, of other samples.
            items, levels = rows % len(x), (rows + rows // len(x)) % len(times)
            clean = x[items].to(self._execution_device, torch.float32)
            part = {name: value[items.to(value.device)] for name, value in kwargs.items()}
            noise = noise_of(clean.shape, None, _chosen(generator, items), clean.device).to(clean.dtype)

            def predict(x: Tensor, t: Tensor, part: dict[str, Tensor] = part) -> Tensor:
                return self._predict(x, t, part, 1.0)[:, :channels]

            values = measured_variances(
                predict, path, facts["prediction_type"], clean, noise, times[levels], kind == "residual", bound
            )
            totals.index_add_(0, levels, values)
            counts.index_add_(0, levels, torch.ones_like(values))
        self.maybe_free_model_hooks()
        means = require_finite(totals / counts, "variances", self.components).clamp(min=0).tolist()
        shares = [lambda_to_share(scales(path, t).lam) for t in times.tolist()]
        self._state_variance("analytic", [list(pair) for pair in zip(shares, means, strict=True)])
        return self.scheduler.config["data_variances"]

    def forget_variances(self) -> None:
        """Take what was measured or learnt of reverse variances out of the pipeline, as for other weights."""
        if network_facts(self.scheduler.config) != network_facts(without_variances(self.scheduler.config)):
            self.scheduler = type(self.scheduler).from_config(without_variances(self.scheduler.config))
        self.register_modules(variance_head=None)

    def _state_variance(self, variance_type: str, table: list[list[float]] | None = None) -> None:
        """Put the scheduler's like with this kind of variance, and a table of variances, in its place."""
        stated = {"variance_type": variance_type} | ({} if table is None else {"data_variances": table})
        if "path" not in self.scheduler.config:  # one of diffusers', which keeps it for hfgen's
            self.scheduler.register_to_config(**stated)
            return
        self.scheduler = type(self.scheduler).from_config({**self.scheduler.config, **stated})


def _chosen(generator: Generators, items: Tensor) -> Generators:
    """Return the generators of some samples, where each has one."""
    return [generator[i] for i in items.tolist()] if isinstance(generator, list) else generator
