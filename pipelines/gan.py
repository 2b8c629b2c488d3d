"""Sampling from a generator in one pass."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from .base import HFGenPipeline, PipelineOutput
from .generating import GeneratingMixin
from .inputs import noise_of, uniform_of


class GANPipeline(GeneratingMixin, HFGenPipeline):
    """Images x = G(z), z ~ N(0, I), of a generator trained against a discriminator (Goodfellow et al. 2014,
    https://arxiv.org/abs/1406.2661). A latent is (d, 1, 1).

    Args:
        generator: called as generator(z (B, d), class_labels (B,) or None).sample, with `sample_size`, `out_channels`
            and `latent_channels` in its configuration.
        discriminator: called as discriminator(x, class_labels).features; saved, but loaded only with
            `from_pretrained(..., discriminator=True)`: for training that goes on, and for a better `project`.
        num_classes: number of classes, None for an unconditional model.
        label_names: the classes' names, to be used in place of numbers.
    """

    model_cpu_offload_seq = "generator->discriminator"
    _optional_components = ["discriminator"]  # noqa: RUF012 - as diffusers has it

    def __init__(
        self,
        generator: ModelMixin,
        discriminator: ModelMixin | None = None,
        num_classes: int | None = None,
        label_names: list[str] | None = None,
    ):
        super().__init__()
        self.register_modules(generator=generator, discriminator=discriminator)
        self.register_to_config(num_classes=num_classes, label_names=label_names)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        truncation: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: how many; default 1, or as many as there are labels or latents.
            class_labels: a class or one an image, by number or name. None: classes at random, where there are any.
            num_inference_steps: None or 1: it is one pass.
            generator: one, or one an image; with a list, an image is the same alone and in any batch.
            latents: z (B, d) or (B, d, 1, 1) in place of those drawn.
            truncation: z is drawn from the normal distribution between -truncation and truncation: images are the more
                typical and the less diverse, the lower (see `truncated`). None: all of it.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent`, as generated.
            return_dict: `PipelineOutput`, or a tuple of the images.

        Raises:
            ValueError: more than one step, a number out of range, or labels or latents that do not fit the model.
        """
        if num_inference_steps not in (None, 1):
            raise ValueError(f"{num_inference_steps=}: a GANPipeline draws in one pass. Leave the steps out.")
        if truncation is not None and (truncation <= 0 or latents is not None):
            raise ValueError(f"{truncation=} must be positive, and is for latents that are drawn, not for given ones.")
        batch_size = len(latents) if batch_size is None and latents is not None else batch_size
        count, labels = self._labels(class_labels, batch_size)
        latents = latents[:, :, None, None] if latents is not None and latents.ndim == 2 else latents
        z = noise_of((count, *self.latent_shape), latents, generator, self._execution_device)
        if truncation is not None:
            z = truncated(z, truncation)
        if labels is None and self.config.num_classes is not None:
            labels = (uniform_of((count,), generator, "cpu") * self.config.num_classes).long()
        images = self.to_images(self.decode(z, labels), output_type)
        return PipelineOutput(images=images) if return_dict else (images,)


def truncated(z: Tensor, bound: float) -> Tensor:
    """Standard normal numbers as numbers of the normal distribution between -bound and bound, each at its quantile:

        F^-1( F(-bound) + F(z) (F(bound) - F(-bound)) ),    F that of N(0, 1).

    That is the distribution of BigGAN's truncation trick (Brock et al. 2019, https://arxiv.org/abs/1809.11096), which
    draws again what is out of bounds; here an image moves towards the typical one as the bound falls, and stays itself
    as it grows.
    """
    normal, exact = torch.distributions.Normal(0.0, 1.0), z.double().cpu()
    share = 2 * normal.cdf(torch.tensor(bound, dtype=torch.float64)) - 1
    found = normal.icdf((1 - share) / 2 + normal.cdf(exact) * share).clamp(-bound, bound)
    return found.to(z)
