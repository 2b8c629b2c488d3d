"""Sampling from a generator in one pass, and finding the latents of images, for which there is no encoder."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from hfgen.distributions.likelihoods import build_likelihood
from hfgen.utils.arguments import checked

from .base import HFGenPipeline, PipelineOutput
from .classes import check_classes
from .inputs import (
    Generators,
    check_latents,
    check_network,
    count_of,
    labels_of,
    noise_of,
    sample_shape_of,
    uniform_of,
)
from .latents import ClassLatentMixin, NormalisedLatentsMixin
from .outputs import require_finite
from .projection import PIXEL_NOISE, STARTS, Labelled, check_search, descend, nearest_candidates

PROJECTION_BATCH = 64
"""Images that are projected together."""

FEATURE_WEIGHT = 0.1
"""Weight of the features' error."""

LARGEST_PIXEL = 4.0
"""Largest size of a pixel that is projected: a generator without tanh makes pixels outside [-1, 1]."""


class GANPipeline(ClassLatentMixin, NormalisedLatentsMixin, HFGenPipeline):
    """Images x = G(z), z ~ N(0, I), of a generator trained against a discriminator (Goodfellow et al. 2014,
    https://arxiv.org/abs/1406.2661) or by moment matching (Li et al. 2015, https://arxiv.org/abs/1502.02761). A latent
    is (d, 1, 1). With `vae`, G(z) is a normalised latent of that autoencoder, and its decoder makes the image.

    Args:
        generator: called as generator(z (B, d), class_labels (B,) or None).sample, with `sample_size`, `out_channels`
            and `latent_channels` in its configuration.
        discriminator: called as discriminator(x, class_labels).features. It is saved, but loaded only with
            `from_pretrained(..., discriminator=True)`: to continue training, and for a better `project`.
        num_classes: number of classes, None for an unconditional model.
        label_names: the classes' names, to be used in place of numbers.
        vae: called as diffusers' `AutoencoderKL`; None: the generator makes images.
        likelihood, likelihood_sigma, likelihood_components, sample_size: of the autoencoder, see `LatentPipeline`.
        classifier: called as classifier(x, 0).logits (B, num_classes), trained in the same game: Triple-GAN (Li et al.
            2017, https://arxiv.org/abs/1703.02291). None: there is none, and `classify` is refused.

    Raises:
        ValueError: no generator, an autoencoder without a scale or of other latents, an unknown likelihood, or a
            classifier of other classes.
    """

    model_cpu_offload_seq = "generator->vae->discriminator->classifier"
    largest_pixel = LARGEST_PIXEL
    _optional_components = ["discriminator", "vae", "classifier"]  # noqa: RUF012 - as diffusers has it
    _loaded_components = ("vae", "classifier")

    @checked
    def __init__(
        self,
        generator: ModelMixin,
        discriminator: ModelMixin | None = None,
        num_classes: int | None = None,
        label_names: list[str] | None = None,
        vae: ModelMixin | None = None,
        likelihood: str | None = None,
        likelihood_sigma: float = 0.1,
        likelihood_components: int = 5,
        sample_size: list[int] | None = None,
        classifier: ModelMixin | None = None,
    ):
        super().__init__()
        check_network("generator", generator, ("config.latent_channels",), "a generator of `build_gan`")
        check_classes(num_classes, label_names, generator)
        build_likelihood(likelihood or "gaussian", likelihood_sigma, likelihood_components)  # refuses an unknown one
        if vae is not None:
            check_network("vae", vae, ("encode", "decode", "config"), "an AutoencoderKL, or an autoencoder of hfgen")
            self._check_scale(vae, "generator", sample_shape_of(generator)[0])
        if classifier is not None and classifier.config.num_classes != num_classes:
            raise ValueError(f"{num_classes=}, and the classifier has {classifier.config.num_classes} classes.")
        self.register_modules(generator=generator, discriminator=discriminator, vae=vae, classifier=classifier)
        self.register_to_config(
            num_classes=num_classes,
            label_names=label_names,
            likelihood=likelihood,
            likelihood_sigma=likelihood_sigma,
            likelihood_components=likelihood_components,
            sample_size=sample_size,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (d, 1, 1)."""
        return (self.generator.config.latent_channels, 1, 1)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of an image."""
        return sample_shape_of(self.generator) if self.vae is None else self._image_shape()

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
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: number of images; default 1, or as many as there are labels or latents.
            class_labels: a class, or one for each image, by number or name. None: random classes, if the model has any.
            num_inference_steps: None or 1: it is one pass.
            generator: one, or one for each image; with a list, an image is the same alone and in any batch.
            latents: z (B, d) or (B, d, 1, 1) in place of random ones.
            truncation: draw z from the normal distribution between -truncation and truncation: the lower, the more
                typical and less diverse are the images (see `truncate`). None: the whole distribution.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent`, as generated.
            return_dict: return a `PipelineOutput`, else a tuple of the images.

        Raises:
            ValueError: more than one step, a number out of range, or labels or latents that do not fit the model.
        """
        if num_inference_steps not in (None, 1):
            raise ValueError(f"{num_inference_steps=}: a GANPipeline draws in one pass. Leave the steps out.")
        if truncation is not None and (not 0 < truncation < math.inf or latents is not None):
            raise ValueError(
                f"{truncation=} must be above 0 and finite, and is for random latents, not for given ones."
            )
        batch_size = count_of(batch_size, latents)
        count, labels = self._labels(class_labels, batch_size)
        latents = latents[:, :, None, None] if latents is not None and latents.ndim == 2 else latents
        z = noise_of((count, *self.latent_shape), latents, generator, self._execution_device)
        if truncation is not None:
            z = truncate(z, truncation)
        if labels is None and self.config.num_classes is not None:
            labels = (uniform_of((count,), generator, "cpu") * self.config.num_classes).long()
        images = self.to_images(self.decode(z, labels), output_type)
        return PipelineOutput(images=images) if return_dict else (images,)

    @checked
    @torch.no_grad()
    def decode(self, latents: Tensor, class_labels: Any = None) -> Tensor:
        """Return G(z), (B, C, H, W), for latents (B, d, 1, 1) and a class, or one for each image; see also `of_class`.

        Images are as generated: if the generator has no tanh, values may lie outside [-1, 1].

        Raises:
            ValueError: labels or latents that do not fit the model, or no labels where it needs them.
        """
        check_latents(latents, self.latent_shape)
        labels = self._all_labels(class_labels, len(latents))
        rows = torch.arange(len(latents))
        images = self._by_batch(rows, lambda i: self._generated(latents.flatten(1)[i], labels[i.cpu()]))
        return require_finite(images, "images", self.components, latents)

    @checked
    @torch.no_grad()
    def classify(self, images: Any) -> Tensor:
        """Return p(class | image), (B, num_classes) in float32.

        Args:
            images: see `image_batch`.

        Raises:
            ValueError: there is no classifier, or images that do not fit the model.
        """
        if self.classifier is None:
            raise ValueError("This GANPipeline has no classifier; hfgen train triple_gan makes one with its generator.")
        images = self._batch(images)
        logits = self._by_batch(images, lambda x: self.classifier(x.to(self.classifier.dtype), 0).logits.float())
        return require_finite(logits.softmax(1), "probabilities", self.components, images)

    @checked
    def encode(self, images: Any, class_labels: Any = None) -> Tensor:
        """Return `project` with its defaults."""
        return self.project(images, class_labels)

    @checked
    def project(self, images: Any, class_labels: Any = None, steps: int = 300, learning_rate: float = 0.1) -> Tensor:
        """Search latents (B, d, 1, 1) whose images are near the given ones, see `projection`.

        The search uses the discriminator's features if the discriminator is loaded. An image has the same latent alone
        and in any batch, up to rounding.

        Args:
            images: see `image_batch`.
            class_labels: their class or classes, by number or name, if the model has classes.
            steps, learning_rate: of the search.

        Raises:
            ValueError: images or labels that do not fit the model, or fewer steps than one.
        """
        return self._encode(self._batch(images), class_labels, steps, learning_rate)

    @torch.no_grad()
    def _encode(self, images: Tensor, class_labels: Any = None, steps: int = 300, learning_rate: float = 0.1) -> Tensor:
        labels = self._all_labels(class_labels, len(images))
        check_search(steps, learning_rate)
        features, device = None if self.discriminator is None else self._features, self._execution_device
        options, latents = (features, self.latent_shape[0], steps, learning_rate), []
        batches = zip(images.split(PROJECTION_BATCH), labels.split(PROJECTION_BATCH), strict=True)
        with self.progress_bar(total=steps * -(-len(images) // PROJECTION_BATCH)) as bar:
            for x, y in batches:
                latents.append(projection(x.to(device).float(), y.to(device), self._generated, *options, bar.update))
        self.maybe_free_model_hooks()
        return require_finite(torch.cat(latents), "latents", self.components, images)[:, :, None, None]

    def _labels(self, class_labels: Any, batch_size: int | None) -> tuple[int, Tensor | None]:
        return labels_of(class_labels, batch_size, self.config.num_classes, self.config.label_names)

    def _all_labels(self, class_labels: Any, count: int) -> Tensor:
        """Return a label for each image, (B,); zeros if the model has no classes."""
        _, labels = self._labels(class_labels, count)
        if labels is None and self.config.num_classes is not None:
            raise ValueError("This model needs to know classes: give class_labels, or use of_class(label).")
        return torch.zeros(count, dtype=torch.long) if labels is None else labels

    def _generated(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return images in float32 for latents (B, d) and labels (B,); a model without classes gets no labels."""
        classes = None if self.config.num_classes is None else labels.to(z.device)
        items = self.generator(z.to(self.generator.dtype), classes).sample.float()
        if self.vae is None:
            return items
        latents = self.latent_scale.restore(items).to(self.vae.dtype)
        return self.likelihood.mean(self.vae.decode(latents).sample).float()

    def _features(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the discriminator's features of images, before its last layer, (B, F) in float32."""
        classes = None if self.config.num_classes is None else labels.to(x.device)
        return self.discriminator(x.to(self.discriminator.dtype), classes).features.float().flatten(1)


def truncate(z: Tensor, bound: float) -> Tensor:
    """Map standard normal numbers to the normal distribution between -bound and bound, each at its quantile:

        F^-1( F(-bound) + F(z) (F(bound) - F(-bound)) ),    F that of N(0, 1).

    That is the distribution of BigGAN's truncation trick (Brock et al. 2019, https://arxiv.org/abs/1809.11096), which
    draws again what is out of bounds. Here an image moves towards the typical one as the bound falls, and does not
    change at a large bound.
    """
    normal, exact = torch.distributions.Normal(0.0, 1.0), z.double().cpu()
    share = 2 * normal.cdf(torch.tensor(bound, dtype=torch.float64)) - 1
    return normal.icdf((1 - share) / 2 + normal.cdf(exact) * share).clamp(-bound, bound).to(z)


def projection(
    images: Tensor,
    labels: Tensor,
    generate: Labelled,
    features: Labelled | None,
    size: int,
    steps: int,
    learning_rate: float,
    tick: Callable[[], object],
) -> Tensor:
    """Return latents z (B, d) of images x (B, C, H, W): for each image by itself, Adam minimises

        mean (x - G(z))^2 + PIXEL_NOISE^2 |z|^2 / D + FEATURE_WEIGHT mean (f(x) - f(G(z)))^2 / mean f(x)^2

    over D pixels, with a learning rate that goes to 0 as a cosine. The first two terms are -log p(z | x) for
    x ~ N(G(z), PIXEL_NOISE^2) and z ~ N(0, I), up to scale and constants (after Creswell & Bharath 2018,
    https://arxiv.org/abs/1802.05701; features f after Yeh et al. 2017, https://arxiv.org/abs/1607.07539).

    Args:
        images, labels: x in float32, and their classes (B,).
        generate: G.
        features: f; None: without that term.
        size: d.
        steps, learning_rate: of Adam.
        tick: called after each step.
    """
    x, y = images.repeat_interleave(STARTS, 0), labels.repeat_interleave(STARTS, 0)  # (B S, C, H, W), (B S,)
    start = nearest_candidates(images, labels, generate, size)  # (B, S, d)
    target = None if features is None else features(x, y).detach()

    def errors(z: Tensor) -> Tensor:
        samples = generate(z, y)
        error = (x - samples).square().flatten(1).mean(1) + PIXEL_NOISE**2 * z.square().sum(1) / images[0].numel()
        if features is not None:
            distance = (features(samples, y) - target).square().mean(1) / target.square().mean(1).clamp(min=1e-12)
            error = error + FEATURE_WEIGHT * distance
        return error  # (B S,)

    return descend(start, errors, steps, learning_rate, tick)
