"""What every pipeline has with or without hfgen: this file is shipped with what is saved, so it knows nothing of it."""

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from torch import Tensor


class PipelineOutput(BaseOutput):
    """What a pipeline returns.

    Args:
        images: list of PIL images, (B, H, W, C) array in [0, 1], or (B, C, H, W) tensor in [0, 1].
        trajectory (steps + 1, B, C, H, W): the samples on their way from noise, in the model's range; only on request.
    """

    images: Any
    trajectory: Tensor | None = None


class PipelineParts:
    """Mixed into a DiffusionPipeline: networks ready for use, and tensors as images."""

    def register_modules(self, **components: Any) -> None:
        """As diffusers'; networks are put in evaluation mode, as loading does, so that saving changes nothing."""
        for component in components.values():
            if isinstance(component, torch.nn.Module):
                component.eval()
        super().register_modules(**components)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple:
        """As diffusers'; lists return from {"0": a, "1": b}, as an index keeps them: a list there is a component."""
        return super().extract_init_dict({key: listed(value) for key, value in config_dict.items()}, **kwargs)

    @property
    def _real(self) -> torch.dtype:
        """What sums are computed in, whatever the networks' own dtype."""
        return torch.float32 if self._execution_device.type == "mps" else torch.float64

    @staticmethod
    def to_images(x: Tensor, output_type: str = "pil") -> Any:
        """(B, C, H, W) in [-1, 1] as `pil` images, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or
        untouched as `latent`. C is 1 (grey), 3 (RGB) or 4 (RGBA) for PIL.

        Raises:
            ValueError: an unknown output type, or a channel count PIL has no mode for.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type={output_type!r} is not known. Choose pil, np, pt or latent.")
        if output_type == "pil" and x.shape[1] not in (1, 3, 4):
            raise ValueError(f"Images with {x.shape[1]} channels have no PIL mode; use output_type='np' or 'pt'.")
        return VaeImageProcessor().postprocess(x.float(), output_type=output_type)


def listed(value: Any) -> Any:
    """The list that {"0": a, "1": b, ...} stands for; anything else as it is."""
    numbers = [str(i) for i in range(len(value))] if isinstance(value, dict) else []
    return [value[i] for i in numbers] if numbers and set(numbers) == set(value) else value
