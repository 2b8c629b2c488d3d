"""The part of every pipeline that is shipped with saved folders, and therefore works without hfgen."""

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.logging import tqdm as diffusers_bar
from torch import Tensor

from hfgen.console.watching import BAR_DELAY, bar_may_show

from .outputs import NotFiniteError


class PipelineOutput(BaseOutput):
    """Images. A pipeline of another item returns a `BaseOutput` of its own, whose first field holds the samples:
    `actions`, `positions`, ... Code for any pipeline reads `output[0]`.

    Args:
        images: list of PIL images, (B, H, W, C) array in [0, 1], or (B, C, H, W) tensor in [0, 1].
        trajectory (steps + 1, B, C, H, W): x_t after each step, from noise on, in the model's range; only on request.
    """

    images: Any
    trajectory: Tensor | None = None

    @property
    def samples(self) -> Any:
        """Return `images` under the name that fits any item."""
        return self.images


class PipelineParts:
    """Base of hfgen's pipelines beside DiffusionPipeline. A subclass says its `sample_shape`, the shape of one sample:
    (C, H, W) for images, (T, D) for sequences."""

    sample_shape: tuple[int, ...]
    samples_by = "path"
    """What the pipeline's schedulers follow, a key of `hfgen.registry.SAMPLERS_BY`."""

    def named_scheduler(self, name: str, model: Any) -> Any:
        """Raise ValueError: names of schedulers are hfgen's. Where it is installed, this returns the scheduler."""
        raise ValueError(
            f"scheduler={name!r} is a name of hfgen's, and this pipeline was loaded without it. Give a scheduler: "
            "its_class.from_config(pipeline.scheduler.config)."
        )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return `sample_shape` under its earlier name."""
        return self.sample_shape

    def register_modules(self, **components: Any) -> None:
        """Register components as diffusers does, and put networks in evaluation mode, as loading does."""
        for component in components.values():
            if isinstance(component, torch.nn.Module):
                component.eval()
        super().register_modules(**components)

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """Return diffusers' progress bar. It appears after a second and goes without a trace, and where nobody watches
        there is none; `set_progress_bar_config(leave=True, disable=False, ...)` changes that, as in diffusers."""
        chosen = getattr(self, "_progress_bar_config", None) or {}
        config = {"delay": BAR_DELAY, "leave": False, "disable": not bar_may_show(), **chosen}
        return diffusers_bar(iterable, **config) if iterable is not None else diffusers_bar(total=total, **config)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple:
        """Read an index as diffusers does. Lists are saved as {"0": a, "1": b}, since a list there is a component."""
        return super().extract_init_dict({key: as_list(value) for key, value in config_dict.items()}, **kwargs)

    @property
    def _real(self) -> torch.dtype:
        """Return the dtype of sums, which does not depend on the networks' own."""
        return torch.float32 if self._execution_device.type == "mps" else torch.float64

    @staticmethod
    def to_images(x: Tensor, output_type: str = "pil") -> Any:
        """Convert images (B, C, H, W) in [-1, 1].

        Args:
            x: the images.
            output_type: `pil` (C is 1, grey, 3, RGB, or 4, RGBA), `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in
                [0, 1], or `latent` for no change.

        Raises:
            ValueError: an unknown output type, items that are no images, values that are not finite, or a channel count
                that PIL has no mode for.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type={output_type!r} is not known. Choose pil, np, pt or latent.")
        if output_type != "latent" and x.ndim != 4:
            raise ValueError(f"Items of shape {tuple(x.shape[1:])} are no images; use output_type='latent'.")
        if output_type == "pil" and x.shape[1] not in (1, 3, 4):
            raise ValueError(f"Images with {x.shape[1]} channels have no PIL mode; use output_type='np' or 'pt'.")
        if not x.isfinite().all():
            raise NotFiniteError("The images have values that are not finite, which no picture has. Check the weights.")
        return VaeImageProcessor().postprocess(x.float(), output_type=output_type)


def as_list(value: Any) -> Any:
    """Return [a, b, ...] for {"0": a, "1": b, ...}, and anything else as it is."""
    numbers = [str(i) for i in range(len(value))] if isinstance(value, dict) else []
    return [value[i] for i in numbers] if numbers and set(numbers) == set(value) else value
