"""How probable images are to an autoencoder: bounds on log p(x) by sampling its latents."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hfgen.distributions.bounds import log_mean_exp, log_ratio
from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior

from .inputs import check_images, check_levels, noise_of, uniform_of

CHUNK = 50
"""Latents of an image that are drawn and decoded at a time, at most."""

Generators = torch.Generator | list[torch.Generator] | None


class BoundMixin:
    """Bounds for a pipeline with `autoencoder`, `prior`, `likelihood`, `image_shape` and `latent_shape`. With z_k from
    q(z | x) and w_k = p(x | z_k) p(z_k) / q(z_k | x), whose mean is p(x), see `hfgen.distributions.bounds`:

        E log w_1 = ELBO <= E log 1/K sum_k w_k <= log p(x)    (Burda et al. 2016, https://arxiv.org/abs/1509.00519)

    and the middle one rises to log p(x) with K. Under `bernoulli` x is the image made binary by numbers of the
    generator, see `hfgen.distributions.likelihoods`.
    """

    def elbo(
        self, images: Tensor, num_samples: int = 10, generator: Generators = None, batch_size: int = 800
    ) -> Tensor:
        """The evidence lower bound in nats, (B,) float64: the mean over K samples of log w. Arguments and errors: see
        `log_likelihood`."""
        return self._bound(self.likelihood.log_prob, lambda w: w.mean(1), images, num_samples, generator, batch_size)

    def log_likelihood(
        self, images: Tensor, num_samples: int = 100, generator: Generators = None, batch_size: int = 800
    ) -> Tensor:
        """log p(x) in nats, (B,) float64, by importance sampling with K samples: a lower bound in expectation, the
        tighter the more samples. Figures need their K. For a `gaussian` p is a density in units of [-1, 1].

        Args:
            images: (B, C, H, W) in [-1, 1].
            num_samples: K.
            generator: one, or one an image; with a list, an image's value is the same alone and in any batch.
            batch_size: latents decoded at a time.

        Raises:
            ValueError: images of another shape, a number out of range, or a model trained without q(z | x).
        """
        return self._bound(self.likelihood.log_prob, log_mean_exp, images, num_samples, generator, batch_size)

    def bits_per_dim(
        self, images: Tensor, num_samples: int = 100, generator: Generators = None, batch_size: int = 800
    ) -> Tensor:
        """Bits per dimension of 8-bit images, (B,) float64: -log2 P(x) / d with P the mass of the levels, by importance
        sampling with K samples; an upper bound in expectation. Below 8 is better than guessing.

        Args:
            images: 8-bit images as k / 127.5 - 1, (B, C, H, W) in [-1, 1].
            num_samples, generator, batch_size: see `log_likelihood`.

        Raises:
            ValueError: the likelihood is of binary pixels, images are not on the 256 levels, and as `log_likelihood`.
        """
        check_images(images, self.image_shape)
        check_levels(images)
        mass = self.likelihood.log_mass
        nats = self._bound(mass, log_mean_exp, images, num_samples, generator, batch_size)
        return -nats / (images[0].numel() * math.log(2))

    @torch.no_grad()
    def _bound(
        self,
        log_prob: Callable[[Tensor, Tensor, int], Tensor],
        reduce: Callable[[Tensor], Tensor],
        images: Tensor,
        num_samples: int,
        generator: Generators,
        batch_size: int,
    ) -> Tensor:
        """reduce(log w (B, K)), (B,), with `log_prob` in the place of log p(x | z)."""
        check_images(images, self.image_shape)
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"{num_samples=} and {batch_size=} must be at least 1.")
        if not self.config.variational:
            raise ValueError(
                "This autoencoder was trained without q(z | x), so no bound on log p(x) holds for it. Train with "
                "--objective elbo or iwae."
            )
        device = self._execution_device
        seen = self.likelihood.prepare(images.to(device), lambda x: uniform_of(x.shape, generator, device))
        size, values = max(1, batch_size // min(num_samples, CHUNK)), []
        for start in self.progress_bar(range(0, len(seen), size)):
            x = seen[start : start + size]
            own = generator[start : start + size] if isinstance(generator, list) else generator
            counts = [min(CHUNK, num_samples - drawn) for drawn in range(0, num_samples, CHUNK)]
            weights = torch.cat([self._log_weights(log_prob, x, count, own) for count in counts], 1)  # (b, K)
            values.append(reduce(weights.to(self._real)))
        self.maybe_free_model_hooks()
        return torch.cat(values)

    def _log_weights(
        self, log_prob: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, count: int, generator: Generators
    ) -> Tensor:
        """log w of `count` latents for each of the images x (b, C, H, W): (b, count)."""
        dtype, shape = self.autoencoder.dtype, (len(x), count, *self.latent_shape)
        noise = noise_of(shape, None, generator, self._execution_device)
        coded = AutoencoderWithPrior(self.autoencoder, self.prior)(x.to(dtype), noise.to(dtype))
        ratio = log_ratio(coded.latents, coded.mean, coded.log_variance, coded.log_prior)
        return log_prob(coded.decoded, x.unsqueeze(1), 2) + ratio
