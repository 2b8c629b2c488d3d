"""Flows of images with noise that a network shapes: auxiliary channels (VFlow), and noise in the bins of levels."""

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..utils.arguments import checked
from .coupling_flow import CouplingFlowModel, NormalizingFlowOutput
from .elementwise import MAX_LOG_SCALE, bounded
from .flow_layers import ConvConditioner, clear
from .layers import check_class_labels, pair, real
from .residual_flow import ResidualFlowModel
from .transformer_flow import TransformerFlowModel

INNER_FLOWS = {
    "CouplingFlowModel": CouplingFlowModel,
    "ResidualFlowModel": ResidualFlowModel,
    "TransformerFlowModel": TransformerFlowModel,
}

LOGISTIC_SCALE = 1.6
"""Standard deviation of normal numbers whose logistic function is nearly uniform."""


class ConditionalNormal(nn.Module):
    """q(v | x) = N(mean(x), scale(x)^2) for numbers v (B, C_v, H, W), drawn as mean + scale * eps.

    Args:
        in_shape: (C, H, W) of x.
        channels: C_v.
        hidden, depth: of the network.
        num_class_embeds: number of classes; None: none.
        scale: of each number at first; the mean is 0.
    """

    def __init__(self, in_shape: tuple[int, int, int], channels: int, hidden: int, depth: int, num_class_embeds, scale):
        super().__init__()
        self.network = ConvConditioner(in_shape, 2 * channels, hidden, depth, num_class_embeds)
        self.log_scale = math.log(scale)
        clear(self.network.output)

    def forward(self, x: Tensor, labels: Tensor | None, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return v, and log q(v | x) (B,) in nats, for x (B, C, H, W) and standard normal eps (B, C_v, H, W)."""
        params = real(self.network(x.to(self.network.output.weight.dtype), labels)).to(x)
        mean, raw = params.chunk(2, 1)
        log_scale = self.log_scale + bounded(raw, MAX_LOG_SCALE)
        density = log_scale + (eps.square() + math.log(2 * math.pi)) / 2
        return mean + log_scale.exp() * eps, -density.flatten(1).sum(1)


class AugmentedFlowModel(ModelMixin, ConfigMixin):
    """A flow of images and of noise that a network makes from them, whose density is a lower bound:

        log p(x) >= E log p(x, v) - log q(v | x),    v ~ q(v | x)

    (VFlow, Chen et al. 2020, https://arxiv.org/abs/2002.09741). The flow's own density p(x, v) has more dimensions, and
    so fewer topological limits. Without auxiliary channels v this is the plain flow; if the flow is a linear one, v
    being the latents, it is the bound of a variational autoencoder.

    Variational dequantisation (Ho et al. 2019, https://arxiv.org/abs/1902.00275, section 3.1) is the same bound for the
    probability of levels: the noise u in their bins is drawn from a q(u | x), too.

    In the output `log_det` is log|det| of the flow, less log q of the noise. So the log-density that is computed from
    it is the bound for this noise, whose expectation is the bound above.

    Args:
        flow: class of the flow p(x, v): `CouplingFlowModel`, `TransformerFlowModel` or `ResidualFlowModel`.
        flow_config: its arguments, without `num_class_embeds`. Its `in_channels` are those of images and of v together.
        extra_channels: channels of v, for each pixel; 0: none.
        dequantise: whether there is a q(u | x).
        hidden_channels: width of the networks of q.
        network_depth: their residual blocks.
        num_class_embeds: number of classes that all networks are told, including the one that means 'no class'; None:
            unconditional.

    Raises:
        ValueError: an unknown flow, or a number out of range.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        flow: str = "CouplingFlowModel",
        flow_config: dict | None = None,
        extra_channels: int = 1,
        dequantise: bool = False,
        hidden_channels: int = 32,
        network_depth: int = 1,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if flow not in INNER_FLOWS:
            raise ValueError(f"{flow=} is not known. Choose one of: {', '.join(INNER_FLOWS)}.")
        self.joint = INNER_FLOWS[flow](**{**(flow_config or {}), "num_class_embeds": num_class_embeds})
        inside, *sides = self.joint.sample_shape
        if not 0 <= extra_channels < inside:
            raise ValueError(f"{extra_channels=} must be from 0 to below the flow's in_channels={inside}.")
        self._shape = (inside - extra_channels, *sides)
        sizes = (hidden_channels, network_depth, num_class_embeds)
        self.auxiliary = ConditionalNormal(self._shape, extra_channels, *sizes, 1.0) if extra_channels else None
        self.bins = ConditionalNormal(self._shape, self._shape[0], *sizes, LOGISTIC_SCALE) if dequantise else None

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of images."""
        return self._shape

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (C + extra_channels, H, W) of latents."""
        return self.joint.sample_shape

    @property
    def bound_noise_shape(self) -> tuple[int]:
        """The shape of the noise of a bound for each image: a number for each of v and u."""
        area = math.prod(self._shape[1:])
        return ((self.config.extra_channels + (self._shape[0] if self.config.dequantise else 0)) * area,)

    @property
    def noise_shape(self) -> tuple[int] | None:
        """The shape of the noise of training for each image: that of a bound, and what the flow itself takes; None if
        there is none."""
        inner = getattr(self.joint, "noise_shape", None)
        count = self.bound_noise_shape[0] + (0 if inner is None else math.prod(inner))
        return (count,) if count else None

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        noise: Tensor | None = None,
        bin_width: float = 0.0,
        return_dict: bool = True,
    ) -> NormalizingFlowOutput | tuple[Tensor, Tensor]:
        """Return the latents of images and of their noise, and log|det| - log q of the noise.

        Args:
            sample (B, C, H, W): images; levels if there is a bin width.
            class_labels (B,): classes; None for a network without classes.
            noise (B, *noise_shape) or (B, *bound_noise_shape): standard normal. None: all of it is 0, so that v and u
                are the medians of q; then what comes out is no bound.
            bin_width: width of the bins of levels, in which noise of q(u | x) is added; 0: none is.
            return_dict: whether to return a NormalizingFlowOutput instead of a tuple.

        Raises:
            ValueError: classes that do not fit, noise of another shape, or bins without a q(u | x).
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        x = real(sample)
        auxiliary, bins, rest = self._parts(noise, x)
        log_det = x.new_zeros(len(x))
        if bin_width:
            if self.bins is None:
                raise ValueError(f"{bin_width=} needs a model with dequantise=True: its noise is that of q(u | x).")
            logits, log_q = self.bins(x, class_labels, bins)
            x = x + (torch.sigmoid(logits) - 0.5) * bin_width
            slopes = F.logsigmoid(logits) + F.logsigmoid(-logits)
            log_det = log_det - (log_q - slopes.flatten(1).sum(1))
        if self.auxiliary is not None:
            v, log_q = self.auxiliary(x, class_labels, auxiliary)
            x, log_det = torch.cat([x, v], 1), log_det - log_q
        output = self.joint(x, class_labels, **({} if rest is None else {"noise": rest}))
        z, log_det = output.latents, output.log_det + log_det
        return NormalizingFlowOutput(latents=z, log_det=log_det) if return_dict else (z, log_det)

    def inverse(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        num_segments: int | None = None,
        num_iterations: int | None = None,
    ) -> Tensor:
        """Return the images (B, C, H, W) of latents (B, C + extra_channels, H, W), without their auxiliary channels.

        Arguments and errors are those of the flow's `inverse`.
        """
        whole = self.joint.inverse(latents, class_labels, guidance_scale, num_segments, num_iterations)
        return whole[:, : self._shape[0]]

    @torch.no_grad()
    def initialise(self, sample: Tensor, class_labels: Tensor | None = None) -> None:
        """Let the flow initialise itself by images (B, C, H, W) and noise, see its `initialise`.

        Args:
            sample, class_labels: as those of a call.
        """
        noise = torch.randn(len(sample), self.config.extra_channels, *self._shape[1:], generator=torch.Generator())
        self.joint.initialise(torch.cat([real(sample), noise.to(sample)], 1), class_labels)

    def _parts(self, noise: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the noise (B, C_v, H, W) of v, that of u (B, C, H, W), and that of the flow, if there is any."""
        channels, *sides = self._shape
        sizes = (self.config.extra_channels, channels if self.config.dequantise else 0)
        count, inner = self.bound_noise_shape[0], getattr(self.joint, "noise_shape", None)
        if noise is None:
            noise = x.new_zeros(len(x), count)
        if tuple(noise.shape) not in ((len(x), count), (len(x), *(self.noise_shape or (0,)))):
            raise ValueError(f"noise has shape {tuple(noise.shape)}; this flow takes ({len(x)}, {count}).")
        auxiliary, bins = noise[:, :count].to(x).unflatten(1, (sum(sizes), *sides)).split(sizes, 1) if count else (x, x)
        rest = noise[:, count:].unflatten(1, inner) if noise.shape[1] > count else None
        return auxiliary, bins, rest


def augmented(flow: nn.Module, extra_channels: int, dequantise: bool, hidden: int) -> AugmentedFlowModel:
    """Return a new flow of images with noise, whose flow has the configuration of `flow`: one of images with
    `extra_channels` more channels."""
    given = {key: value for key, value in flow.config.items() if not key.startswith("_")}
    classes = given.pop("num_class_embeds")
    size = pair(given["sample_size"])
    given["sample_size"] = size[0] if size[0] == size[1] else list(size)
    return AugmentedFlowModel(type(flow).__name__, given, extra_channels, dequantise, hidden, 1, classes)
