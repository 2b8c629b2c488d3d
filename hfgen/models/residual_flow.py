"""Residual and implicit flows: layers x + g(x) whose g is a contraction, and inverses of such layers."""

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..utils.arguments import checked
from .coupling_flow import NormalizingFlowOutput, refuse_iterations, squeezed_shape
from .fixed_point import fixed_point, implicit_solution
from .flow_layers import ActNorm, DiagonalScale
from .layers import check_class_labels, pair, real
from .lipschitz import ContractiveNetwork
from .residual_determinants import estimated_log_det, exact_log_det

KINDS = ("residual", "implicit")
CONTRACTIONS = ("mlp", "conv")
DETERMINANTS = ("exact", "estimate")


class ResidualLayer(nn.Module):
    """y = x + g(x) for a contraction g, or its inverse (Behrmann et al. 2019, https://arxiv.org/abs/1811.00995).

    Args:
        network: g.
        inverted: whether the layer is the inverse: y + g(y) = x.
    """

    def __init__(self, network: ContractiveNetwork, inverted: bool):
        super().__init__()
        self.network, self.inverted = network, inverted

    def forward(
        self, x: Tensor, labels: Tensor | None = None, noise: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return y and log|det dy/dx| (B,): exact without noise, else an unbiased estimate.

        Args:
            x, labels: images (B, C, H, W) and classes (B,).
            noise: the direction (B, C, H, W) and the uniform numbers (B,) of `estimated_log_det`.
        """
        weights = self.network.weights()
        y = self.mapped(x, labels, weights)
        place, sign = (y, -1) if self.inverted else (x, 1)

        def g(v: Tensor) -> Tensor:
            return self.network(v, labels, weights)

        with torch.autocast(x.device.type, enabled=False):
            return y, sign * (exact_log_det(g, place) if noise is None else estimated_log_det(g, place, *noise))

    def mapped(self, x: Tensor, labels: Tensor | None, weights: list[Tensor] | None = None) -> Tensor:
        """Return y alone."""
        weights = self.network.weights() if weights is None else weights
        if self.inverted:
            return implicit_solution(lambda y: self.network(y, labels, weights), x, self.network.slope)
        return x + self.network(x, labels, weights)

    def inverse(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return x."""
        weights = self.network.weights()
        if self.inverted:
            return y + self.network(y, labels, weights)
        return fixed_point(lambda x: y - self.network(x, labels, weights), y, self.network.slope)


class ResidualFlowModel(ModelMixin, ConfigMixin):
    """An invertible network z = f(x) of layers whose Jacobian is full, with log|det dz/dx|.

    Each layer is x + g(x), where g is a contraction (i-ResNet, Behrmann et al. 2019, https://arxiv.org/abs/1811.00995;
    residual flows, Chen et al. 2019, https://arxiv.org/abs/1906.02735). So no layer stretches by more than 1 + c. An
    implicit flow (Lu et al. 2021, https://arxiv.org/abs/2103.10906) also has the inverses of such layers, which stretch
    by up to 1 / (1 - c): a pair of layers solves x + g_x(x) = z + g_z(z) for z. With as many layers it has as many
    parameters.

    Inverses are fixed points, see `TOLERANCES` of `hfgen.models.fixed_point`. An actnorm stands before each layer;
    before training, `initialise` sets these by data.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: channels of images. A vector of D numbers is an image (D, 1, 1).
        num_layers: number of layers.
        kind: `residual`, or `implicit`: every other layer is an inverse.
        squeeze: side of patches of pixels, which become channels first; 1: none.
        network: of the layers: `mlp`, on all numbers of an image, or `conv`.
        hidden_channels: their width.
        network_depth: their hidden layers.
        slope: c, the bound of the slope of each g, above 0 and below 1.
        log_det: `exact`: from the whole Jacobian, with a time and memory that grow with the numbers of an image, for
            vectors and small images; `estimate`: calls with noise estimate it without bias, for training. Calls
            without noise are always exact.
        num_class_embeds: number of classes that the networks are told, including the one that means 'no class'; None:
            unconditional.

    Raises:
        ValueError: an unknown choice, a number out of range, or patches that do not tile the image.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 8,
        in_channels: int = 1,
        num_layers: int = 8,
        kind: str = "residual",
        squeeze: int = 1,
        network: str = "conv",
        hidden_channels: int = 64,
        network_depth: int = 2,
        slope: float = 0.9,
        log_det: str = "exact",
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        for name, known in {"kind": KINDS, "network": CONTRACTIONS, "log_det": DETERMINANTS}.items():
            if self.config[name] not in known:
                raise ValueError(f"{name}={self.config[name]!r} is not known. Choose one of: {', '.join(known)}.")
        if min(num_layers, squeeze, hidden_channels, network_depth) < 1 or not 0 < slope < 1:
            raise ValueError(
                f"{num_layers=}, {squeeze=}, {hidden_channels=} and {network_depth=} must be at least 1, and {slope=} "
                "above 0 and below 1."
            )
        shape, layers = squeezed_shape(self.sample_shape, squeeze), []
        for index in range(num_layers):
            sizes = (network, hidden_channels, network_depth, slope, num_class_embeds)
            layers.append(ResidualLayer(ContractiveNetwork(shape, *sizes), kind == "implicit" and index % 2 == 1))
        self.norms, self.layers = nn.ModuleList(ActNorm(shape[0]) for _ in layers), nn.ModuleList(layers)
        self.scale = DiagonalScale(shape)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of images and of latents."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """The shape of the noise for each image, (num_layers, D + 1): a direction, and a number that decides how long
        the series is; None if determinants are exact."""
        exact = self.config.log_det == "exact"
        return None if exact else (self.config.num_layers, math.prod(self.sample_shape) + 1)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> NormalizingFlowOutput | tuple[Tensor, Tensor]:
        """Return latents and log-determinants.

        Args:
            sample (B, C, H, W): images.
            class_labels (B,): classes; None for a network without classes.
            noise (B, *noise_shape): standard normal, for an estimate of the log-determinants; None: exact.
            return_dict: whether to return a NormalizingFlowOutput instead of a tuple.

        Raises:
            ValueError: classes that the network needs or does not take, or an inverse that can't be found.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        x = F.pixel_unshuffle(real(sample), self.config.squeeze)
        x, log_det = self.scale(x)
        for index, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            x, scaling = norm(x)
            x, change = layer(x, class_labels, None if noise is None else series_noise(noise[:, index], x))
            log_det = log_det + scaling + change
        z = F.pixel_shuffle(x, self.config.squeeze)
        return NormalizingFlowOutput(latents=z, log_det=log_det) if return_dict else (z, log_det)

    def inverse(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        num_segments: int | None = None,
        num_iterations: int | None = None,
    ) -> Tensor:
        """Return the images (B, C, H, W) of latents (B, C, H, W).

        Args:
            latents, class_labels: z, and classes (B,).
            guidance_scale, num_segments, num_iterations: those of `TransformerFlowModel`; here there are none.

        Raises:
            ValueError: classes that do not fit, guidance, segments, or an inverse that can't be found.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        refuse_iterations("residual flow", guidance_scale, num_segments, num_iterations)
        x = F.pixel_unshuffle(real(latents), self.config.squeeze)
        for norm, layer in zip(reversed(self.norms), reversed(self.layers), strict=True):
            x = norm.inverse(layer.inverse(x, class_labels))
        return F.pixel_shuffle(self.scale.inverse(x), self.config.squeeze)

    @torch.no_grad()
    def initialise(self, sample: Tensor, class_labels: Tensor | None = None) -> None:
        """Set the actnorms by images (B, C, H, W), layer by layer, if that was not done before.

        To have the same network in all processes, give each of them the same images, before the network is wrapped.

        Args:
            sample, class_labels: as those of a call.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        x, _ = self.scale(F.pixel_unshuffle(real(sample), self.config.squeeze))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            norm.initialise(x)
            x = layer.mapped(norm(x)[0], class_labels)


def series_noise(noise: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the direction (B, *item) and the uniform numbers (B,) of normal noise (B, D + 1), for items x."""
    noise = noise.to(x)
    return noise[:, 1:].view_as(x), torch.special.ndtr(noise[:, 0])
