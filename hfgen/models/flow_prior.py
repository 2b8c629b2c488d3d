"""A normalizing flow as the prior of an autoencoder's latents."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..utils.arguments import checked
from .coupling_flow import CouplingFlowModel
from .layers import real
from .priors import Encode, check_latents


class FlowPriorModel(ModelMixin, ConfigMixin):
    """p(z) of latents (B, d, h, w): the density of a flow of couplings between all their numbers (Kingma et al. 2016,
    https://arxiv.org/abs/1606.04934, has flows as posteriors; Chen et al. 2017, https://arxiv.org/abs/1611.02731,
    section 3.2, as priors).

    It takes the place of `GaussianMixturePriorModel` in a pipeline. `MaximumLikelihood("none", log_prob=...)` trains it
    on latents of data, z ~ q(z | x), where its output is log p(z).

    Args:
        latent_shape: (d, h, w) or any other shape of at least two numbers.
        num_layers: number of couplings.
        hidden_channels: width of their networks.
        elementwise: map of the numbers, see `CouplingFlowModel`.
        components: logistic distributions of a mixture, or bins of a spline.

    Raises:
        ValueError: a single number, or an unknown map.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        latent_shape: tuple[int, ...],
        num_layers: int = 6,
        hidden_channels: int = 128,
        elementwise: str = "affine",
        components: int = 8,
    ):
        super().__init__()
        maps = {"elementwise": elementwise, "components": components}
        sizes = {"layers_per_level": num_layers, "hidden_channels": hidden_channels, "network_depth": 2}
        shape = {"sample_size": 1, "in_channels": math.prod(latent_shape), "num_levels": 1, "squeeze": 1}
        self.couplings = CouplingFlowModel(**shape, **sizes, **maps, network="mlp", mixing="convolution", actnorm=True)

    def forward(self, z: Tensor, encode: Encode | None = None) -> Tensor:
        """Compute log p(z) in nats, (B,), for latents (B, d, h, w). The encoder is not used.

        Raises:
            ValueError: latents of another shape.
        """
        check_latents(z, self.config.latent_shape)
        base, log_det = self.couplings(_vectors(z), return_dict=False)
        return log_det - (base.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2

    def log_prob(self, z: Tensor) -> Tensor:
        """Compute what a call does."""
        return self(z)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | str | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw latents (count, d, h, w).

        Args:
            count: number of latents.
            generator: one generator, or a list with one for each latent. With a list, a latent does not depend on the
                others of its batch.
            device: device of the latents; None: that of the prior.
            temperature: standard deviation of the flow's own latents; 1 for p itself.

        Raises:
            ValueError: a list of generators of another length than `count`.
        """
        shape, home = (count, *self.config.latent_shape), next(self.parameters()).device
        base = temperature * randn_tensor(shape, generator=generator, device=home, dtype=torch.float32)
        return self.couplings.inverse(_vectors(base)).view(shape).to(device or home)

    def initialise(self, z: Tensor) -> None:
        """Set the actnorms by latents (B, d, h, w), before training."""
        self.couplings.initialise(_vectors(z))


def _vectors(z: Tensor) -> Tensor:
    """Return latents as images (B, D, 1, 1)."""
    return real(z).flatten(1)[:, :, None, None]
