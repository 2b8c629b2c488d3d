"""A draw along a path with guidance, whatever the condition and whatever the denoiser models."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hfgen.models.conditions import Condition
from hfgen.utils.arguments import checked

from .guidance import GuidedPrediction
from .images import default_output
from .inputs import Generators, noise_of, sample_shape_of
from .parts import PipelineOutput
from .sampling import SamplingMixin, guided


class DrawingMixin(SamplingMixin):
    """For a pipeline with a `denoiser`, a `scheduler` and a `condition`, which gives the null values of guidance. The
    denoiser models the samples themselves or, where `to_items` and `to_samples` say so, something else of them, such as
    latents."""

    condition: Condition | None

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Return the shape of what the denoiser models, and of noise."""
        return sample_shape_of(self.denoiser)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample, (C, H, W) for an image."""
        return self.item_shape

    @checked
    def to_items(self, samples: Tensor) -> Tensor:
        """Return what the denoiser models of samples (B, ...): here the samples themselves."""
        return samples

    @checked
    def to_samples(self, items: Tensor) -> Tensor:
        """Return the samples (B, ...) of what the denoiser models, the inverse of `to_items`."""
        return items

    @property
    def two_times(self) -> bool:
        """Return whether the denoiser is a flow map: a step of any length costs one evaluation. With a scheduler of
        flow maps it draws in 1, 2, 4, ... steps; with any other it is a rectified flow."""
        return bool(getattr(getattr(self.denoiser, "config", None), "two_times", False))

    def _draw(
        self,
        count: int,
        kwargs: dict[str, Tensor],
        check: Callable[[float], None],
        num_inference_steps: int | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: str | None = None,
        return_dict: bool = True,
        scheduler: Any = None,
        guidance: tuple[Any, Any, float] = (None, "cfg", 0.0),
        latents: Tensor | None = None,
        generator: Generators = None,
        condition: Condition | None = None,
        **options: Any,
    ) -> PipelineOutput | tuple:
        """Draw samples as a call returns them.

        Args:
            count: B.
            kwargs: the network's keyword arguments (B, ...) for the condition.
            check: raises ValueError for a guidance scale that can't be used, which a callback may have set.
            guidance: guides, the form of the guidance, and the share that is rescaled, see `GuidedPrediction`.
            condition: gives the null values of this call; None: the pipeline's own.
            options: of `SamplingMixin._sample`; the others are those of the pipelines' calls.
        """
        scheduler = self._scheduler_of(scheduler)
        network = self.denoiser, scheduler, condition or self.condition, kwargs, self.item_shape
        prediction = GuidedPrediction(*network, *guidance)

        def predict(x: Tensor, t: Tensor, scale: float, r: Tensor | None = None) -> Tensor:
            check(scale)
            return self._with_head(prediction(x, t, scale, r), x, t, scheduler)

        x, trajectory = self._sample(
            predict,
            noise_of((count, *self.item_shape), latents, generator, self._execution_device),
            num_inference_steps,
            *(callback_on_step_end, callback_on_step_end_tensor_inputs),
            generator=generator,
            scheduler=scheduler,
            copied=True,
            two_times=self.two_times,
            **options,
        )
        return self._output_of(x, trajectory, output_type, return_dict)

    def _with_head(self, output: Tensor, x: Tensor, t: Tensor, scheduler: Any) -> Tensor:
        """Return the output of the network for samples x at time step t, with the channels that a step needs."""
        return output

    def _output_of(
        self, x: Tensor, trajectory: Tensor | None, output_type: str | None, return_dict: bool
    ) -> PipelineOutput | tuple:
        """Return items (B, *item) as the call returns them."""
        if output_type is None:
            output_type = default_output(self.sample_shape)
        images = x if output_type == "latent" else self.to_images(self.to_samples(x).clamp(-1, 1), output_type)
        self.maybe_free_model_hooks()
        return PipelineOutput(images=images, trajectory=trajectory) if return_dict else (images, trajectory)

    def _predict(
        self, x: Tensor, t: Tensor, kwargs: dict[str, Tensor], scale: float, r: Tensor | None = None
    ) -> Tensor:
        """Return the network's (guided) output on (B, *item) at time step t, in the dtype of x; of a flow map that for
        a step to r."""
        return guided(self.denoiser, x, t, self.condition, kwargs, scale, r)
