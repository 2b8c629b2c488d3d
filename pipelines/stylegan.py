"""Images by styles: sampling with truncation and noise, and the styles of given images."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import ModelMixin
from torch import Tensor

from hfgen.utils.arguments import checked
from hfgen.utils.seeds import generator_of

from .base import HFGenPipeline, PipelineOutput
from .classes import check_classes
from .inputs import (
    Generators,
    check_latents,
    check_network,
    check_number,
    check_shape,
    count_of,
    labels_of,
    noise_of,
    sample_shape_of,
    uniform_of,
)
from .outputs import require_finite
from .projection import CANDIDATES, PIXEL_NOISE, STARTS, check_search, descend
from .styles import StyleMixin

MEAN_LATENTS = 4096
"""Latents, always the same, whose mean style truncation goes to."""


class StyleGANPipeline(StyleMixin, HFGenPipeline):
    """Images x = S(w, noise), w = M(z), z ~ N(0, I), of a style-based generator (Karras et al. 2019,
    https://arxiv.org/abs/1812.04948; 2020, https://arxiv.org/abs/1912.04958).

    `encode`, `decode`, `interpolate` and the other methods of latents work on styles (L, style_dim), one row for each
    layer (the space W+). `styles` makes them of latents z.

    Args:
        generator: a `StyleGeneratorModel`, or another with its call, `num_layers`, `noise_size` and `modulations`.
        discriminator: it is saved, but loaded only with `from_pretrained(..., discriminator=True)`, to continue
            training.
        num_classes: number of classes, None for an unconditional model.
        label_names: the classes' names, to be used in place of numbers.

    Raises:
        ValueError: a generator without styles, or classes that it does not have.
    """

    model_cpu_offload_seq = "generator->discriminator"
    largest_pixel = 4.0
    _optional_components = ["discriminator"]  # noqa: RUF012 - as diffusers has it

    @checked
    def __init__(
        self,
        generator: ModelMixin,
        discriminator: ModelMixin | None = None,
        num_classes: int | None = None,
        label_names: list[str] | None = None,
    ):
        super().__init__()
        needs = ("config.latent_channels", "config.style_dim", "num_layers", "noise_size", "modulations")
        check_network("generator", generator, needs, "a generator of `build_stylegan`")
        check_classes(num_classes, label_names, generator)
        self.register_modules(generator=generator, discriminator=discriminator)
        self.register_to_config(num_classes=num_classes, label_names=label_names)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Return (L, style_dim), the shape of the styles of an image."""
        return (self.generator.num_layers, self.generator.config.style_dim)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of an image."""
        return sample_shape_of(self.generator)

    @checked
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        truncation: float | None = None,
        noise: Tensor | None = None,
        noise_strength: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: number of images; default 1, or as many as there are labels or latents.
            class_labels: a class, or one for each image, by number or name. None: random classes, if the model has any.
            num_inference_steps: None or 1: it is one pass.
            generator: one, or one for each image; with a list, an image is the same alone and in any batch.
            latents: z (B, d) in place of random ones.
            truncation: distance of styles from the mean style of their class, as a share, see `styles`: the lower, the
                more typical and less diverse are the images; 0: the mean style's image. None: 1, no truncation.
            noise: values (B, N) or (1, N) of all noise maps, see `noise_size`, in place of random ones.
            noise_strength: factor of the noise; 0: images depend on the latents alone.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent`, as generated.
            return_dict: return a `PipelineOutput`, else a tuple of the images.

        Raises:
            ValueError: more than one step, a number out of range, or labels, latents or noise that do not fit the
                model.
        """
        if num_inference_steps not in (None, 1):
            raise ValueError(f"{num_inference_steps=}: a StyleGANPipeline draws in one pass. Leave the steps out.")
        check_number("noise_strength", noise_strength, 0.0)
        count, labels = labels_of(
            class_labels, count_of(batch_size, latents), self.config.num_classes, self.config.label_names
        )
        device = self._execution_device
        z = noise_of((count, self.generator.config.latent_channels), latents, generator, device)
        drawn = noise_of((count, self.noise_size), None, generator, device) if noise is None else noise
        if labels is None and self.config.num_classes is not None:
            labels = (uniform_of((count,), generator, "cpu") * self.config.num_classes).long()
        styles = self.styles(z, labels, truncation)
        images = self.decode(styles, drawn * noise_strength if noise_strength else None)
        images = self.to_images(images, output_type)
        return PipelineOutput(images=images) if return_dict else (images,)

    @property
    def noise_size(self) -> int:
        """Return N, the number of values of all noise maps of an image."""
        return self.generator.noise_size

    @checked
    @torch.no_grad()
    def styles(self, latents: Tensor, class_labels: Any = None, truncation: float | None = None) -> Tensor:
        """Return the styles of latents z (B, d), the same in each layer: (B, L, style_dim).

        With truncation psi they are m + psi (w - m), where m is the mean style (Karras et al. 2019, appendix B).

        Args:
            latents: z.
            class_labels: their class or classes, by number or name, if the model has classes.
            truncation: psi, at least 0; None: 1.

        Raises:
            ValueError: latents or labels that do not fit the model, or a psi out of range.
        """
        check_latents(latents, (self.generator.config.latent_channels,))
        if truncation is not None:
            check_number("truncation", truncation, 0.0)
        labels = self._all_labels(class_labels, len(latents))
        w = self._mapped(latents.to(self._execution_device), labels)
        if truncation is not None:
            w = torch.lerp(self._means(labels), w, float(truncation))
        return w[:, None].expand(-1, self.generator.num_layers, -1)

    @checked
    @torch.no_grad()
    def mean_style(self, class_label: int | str | None = None) -> Tensor:
        """Return the mean of the styles of many latents, always the same ones: (L, style_dim).

        Args:
            class_label: of one class, by number or name; None: of a model without classes, and of all classes.

        Raises:
            ValueError: a class that the model does not have.
        """
        classes = self.config.num_classes
        if class_label is None and classes is not None:
            w = self._means(torch.arange(classes)).mean(0)
        else:
            w = self._means(self._all_labels(class_label, 1))[0]
        return w.expand(self.latent_shape)

    @checked
    @torch.no_grad()
    def decode(self, latents: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) of styles (B, L, style_dim), as generated: values may lie a little outside [-1,
        1].

        Args:
            latents: the styles.
            noise: values (B, N) of all noise maps, or (1, N), the same for all; None: no noise.

        Raises:
            ValueError: styles or noise that do not fit the model.
        """
        check_latents(latents, self.latent_shape)
        if noise is not None:
            check_shape(noise, (self.noise_size,), "noise")
            if len(noise) not in (1, len(latents)):
                raise ValueError(f"There are {len(noise)} rows of noise for {len(latents)} images. Give one for each.")
            noise = noise.expand(len(latents), -1)

        def made(rows: Tensor) -> Tensor:
            return self._synthesised(latents[rows.cpu()], None if noise is None else noise[rows.cpu()])

        images = self._by_batch(torch.arange(len(latents)), made)
        return require_finite(images, "images", self.components, latents)

    @checked
    def encode(self, images: Any) -> Tensor:
        """Return `project` with its defaults."""
        return self.project(images)

    @checked
    def project(
        self, images: Any, space: Literal["w", "w+"] = "w+", steps: int = 300, learning_rate: float = 0.1
    ) -> Tensor:
        """Search styles (B, L, style_dim) whose images, without noise, are near the given ones (after Abdal et al.
        2019, https://arxiv.org/abs/1904.03189, and Karras et al. 2020, section 5.1).

        For each image by itself, Adam minimises from several starts

            mean (x - S(w))^2 + PIXEL_NOISE^2 sum_l |(w_l - m) / s|^2 / (L D)

        over D pixels, where m and s are mean and deviation of the numbers of styles over many latents. That is -log
        p(w | x), up to scale, if pixels and styles are normal, and each row of styles counts 1 / L.

        Args:
            images: see `image_batch`.
            space: `w`: all layers have one style, as those of latents; `w+`: each has its own, which is nearer to any
                image, and less like what the model draws.
            steps, learning_rate: of the search, in units of s.

        Raises:
            ValueError: images that do not fit the model, or a number out of range.
        """
        check_search(steps, learning_rate)
        return self._encode(self._batch(images), space, steps, learning_rate)

    @torch.no_grad()
    def _encode(self, images: Tensor, space: str = "w+", steps: int = 300, learning_rate: float = 0.1) -> Tensor:
        x = images.to(self._execution_device).float()
        rows = self.generator.num_layers if space == "w+" else 1  # with a style of their own
        w, samples = self._candidates()
        mean, deviation = w.mean(0), w.std(0).clamp(min=1e-6)  # (style_dim,)
        nearest = torch.cdist(x.flatten(1), samples.flatten(1)).topk(STARTS, largest=False).indices
        start = ((w - mean) / deviation)[nearest][:, :, None].expand(-1, -1, rows, -1)  # (B, S, rows, style_dim)
        target = x.repeat_interleave(STARTS, 0)

        def styles_of(u: Tensor) -> Tensor:
            return (mean + deviation * u).expand(-1, self.generator.num_layers, -1)

        def errors(u: Tensor) -> Tensor:
            error = (target - self._synthesised(styles_of(u), None)).square().flatten(1).mean(1)
            return error + PIXEL_NOISE**2 * u.square().sum(2).mean(1) / x[0].numel()  # (B S,)

        with self.progress_bar(total=steps) as bar:
            u = descend(start, errors, steps, learning_rate, bar.update)
        self.maybe_free_model_hooks()
        return require_finite(styles_of(u), "styles", self.components, x)

    def _all_labels(self, class_labels: Any, count: int) -> Tensor | None:
        """Return a label for each item, (B,); None if the model has no classes."""
        _, labels = labels_of(class_labels, count, self.config.num_classes, self.config.label_names)
        if labels is None and self.config.num_classes is not None:
            raise ValueError("This model needs to know classes: give class_labels.")
        return labels

    def _mapped(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Return w (B, style_dim) of latents (B, d) and labels (B,)."""
        classes = None if labels is None else labels.to(z.device)
        return self.generator(z.to(self.generator.dtype), classes, synthesis=False).styles[:, 0].float()

    def _means(self, labels: Tensor | None) -> Tensor:
        """Return the mean style of each label (B,), (B, style_dim); without classes (1, style_dim)."""
        size = self.generator.config.latent_channels
        z = torch.randn(MEAN_LATENTS, size, generator=generator_of("mean style")).to(self._execution_device)
        if labels is None:
            return self._mapped(z, None).mean(0, keepdim=True)
        different, places = labels.unique(return_inverse=True)
        means = [self._mapped(z, label.expand(len(z))).mean(0) for label in different]
        return torch.stack(means)[places.to(z.device)]

    def _candidates(self) -> tuple[Tensor, Tensor]:
        """Return styles w (CANDIDATES, style_dim) of random latents, of all classes in turn, and their images."""
        size, classes = self.generator.config.latent_channels, self.config.num_classes
        z = torch.randn(CANDIDATES, size, generator=generator_of("candidates")).to(self._execution_device)
        w = self._mapped(z, None if classes is None else torch.arange(CANDIDATES) % classes)
        return w, self._synthesised(w[:, None].expand(-1, self.generator.num_layers, -1), None)

    def _synthesised(self, styles: Tensor, noise: Tensor | None) -> Tensor:
        """Return images in float32 of styles (B, L, style_dim) and noise (B, N)."""
        device, dtype = self._execution_device, self.generator.dtype
        noise = None if noise is None else noise.to(device, dtype)
        return self.generator(styles=styles.to(device, dtype), noise=noise).sample.float()
