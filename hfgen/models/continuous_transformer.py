"""A causal transformer over continuous tokens: a small flow draws each of them, given those before it."""

import dataclasses

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .conditionals import guided_labels, pad_rows, require_finite_params
from .layers import check_class_labels, guided_outputs, pair, real
from .patches import PatchGrid
from .token_transformer import ROWS, KeyValueCache, TokenTransformer

EDGE = 1e-6
"""Uniform numbers are kept so far from 0 and 1, where normal quantiles are infinite."""


@dataclasses.dataclass
class ContinuousOutput(BaseOutput):
    """Output of `ContinuousTransformerModel`, for tokens in their order.

    Args:
        sample (B, N, D): the predicted velocities.
        target (B, N, D): noise - x, the velocities to predict.
    """

    sample: Tensor
    target: Tensor | None = None  # accelerate rebuilds outputs from one mapping, so other fields need a default


class FlowBlock(nn.Module):
    """h + gate MLP(norm(h) (1 + scale) + shift), (..., W), where scale, shift and gate are computed from a condition c
    (..., W). At first the gate is 0."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.modulation = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(c).chunk(3, -1)
        return h + gate * self.mlp(self.norm(h) * (1 + scale) + shift)


class FlowHead(nn.Module):
    """The velocity v(x_t, t; z) of a token on its way from noise to data, given the transformer's output z (MAR, Li et
    al. 2024, https://arxiv.org/abs/2406.11838, with the straight path of flow matching).

    Args:
        size: numbers D of a token.
        context: width of z.
        width: W.
        layers: number of `FlowBlock`s.
    """

    def __init__(self, size: int, context: int, width: int, layers: int):
        super().__init__()
        self.width = width
        self.input, self.context, self.time = nn.Linear(size, width), nn.Linear(context, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(FlowBlock(width) for _ in range(layers))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, time: Tensor, contexts: Tensor) -> Tensor:
        """Return velocities (B, n, D) of tokens x (B, n, D) at times (B, n) in [0, 1], 0 is data."""
        angles = get_timestep_embedding(1000 * time.flatten(), self.width).unflatten(0, time.shape)
        weight = self.input.weight
        c = F.silu(self.context(contexts) + self.time(angles.to(weight.dtype)))
        h = self.input(x.to(weight.dtype))
        for block in self.blocks:
            h = block(h, c)
        return real(self.output(self.norm(h)))


class ContinuousTransformerModel(ModelMixin, ConfigMixin):
    """A decoder-only transformer over patches of real numbers, such as those of latents, without a codebook. Each token
    has a `FlowHead`, which is trained by flow matching and draws it in a few Euler steps (MAR, Li et al. 2024,
    https://arxiv.org/abs/2406.11838).

    Tokens follow row by row, or in a random order, which is new for each image. The input at a position then holds the
    token before, the place of that token, and the place of the token to draw. The class is the first token's embedding.

    Args:
        sample_size: H = W, or (H, W); multiples of `patch_size`.
        in_channels: channels C.
        patch_size: side p of a patch; a token has D = C p^2 numbers.
        num_layers: blocks of the transformer.
        hidden_size: width of a token.
        num_attention_heads: heads of its attention.
        head_size: width of the head, an even number.
        head_layers: blocks of the head.
        random_order: whether tokens are in any order.
        num_class_embeds: number of classes, including the one that means 'no class', the last one; None: unconditional.

    Raises:
        ValueError: patches do not tile the image, or heads do not divide the width.
    """

    _supports_gradient_checkpointing = True

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        patch_size: int = 4,
        num_layers: int = 4,
        hidden_size: int = 128,
        num_attention_heads: int = 4,
        head_size: int = 128,
        head_layers: int = 3,
        random_order: bool = False,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        self.patches = PatchGrid(sample_size, in_channels, patch_size)
        self.length, self.size = self.patches.length, self.patches.size
        self.input = nn.Linear(self.size, hidden_size)
        self.places, self.queries = (nn.Parameter(0.02 * torch.randn(self.length, hidden_size)) for _ in range(2))
        self.prefix = nn.Embedding(num_class_embeds or 1, hidden_size)
        self.transformer = TokenTransformer(num_layers, hidden_size, num_attention_heads)
        self.head = FlowHead(self.size, hidden_size, head_size, head_layers)
        self.gradient_checkpointing = False
        nn.init.normal_(self.prefix.weight, std=0.02)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    @property
    def noise_shape(self) -> tuple[int, int]:
        """The shape of the uniform numbers that `draw` makes one image of: (N, D), or (N, D + 1) with an order."""
        return (self.length, self.size + self.config.random_order)

    def forward(
        self,
        sample: Tensor,
        noise: Tensor,
        time: Tensor,
        class_labels: Tensor | None = None,
        order: Tensor | None = None,
        return_dict: bool = True,
    ) -> ContinuousOutput | tuple[Tensor, Tensor]:
        """Return the velocities at x_t = (1 - t) x + t noise, and those to predict.

        Args:
            sample (B, C, H, W): images x.
            noise (B, C, H, W): standard normal.
            time (B, N): t of each token in [0, 1].
            class_labels (B,): classes; None for a network without classes.
            order (B, N): places of the tokens in the order in which they are predicted; None: row by row.
            return_dict: whether to return a ContinuousOutput instead of a tuple.

        Raises:
            ValueError: classes that the network needs or does not take.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        order = self._rows(sample) if order is None else order
        x, eps = (_ordered(self.patches.tokens(real(each)), order) for each in (sample, noise))
        contexts = self._contexts(x, order, class_labels)
        t = time[..., None].to(x)
        velocity, target = self.head((1 - t) * x + t * eps, time, contexts), eps - x
        return ContinuousOutput(sample=velocity, target=target) if return_dict else (velocity, target)

    def tokens_above(self, row: int) -> int:
        """Return the number of tokens above a row of pixels, see `PatchGrid.tokens_above`."""
        return self.patches.tokens_above(row)

    @torch.no_grad()
    def draw(
        self,
        uniform: Tensor,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        known: Tensor | None = None,
        num_known: int = 0,
        num_steps: int = 20,
        use_cache: bool = True,
    ) -> Tensor:
        """Draw images (B, C, H, W), one token after the other, each by Euler steps from noise.

        Args:
            uniform (B, *noise_shape): numbers in [0, 1), whose normal quantiles are the noise; with a random order the
                last of a token says when its turn comes.
            class_labels (B,): classes.
            guidance_scale: of the velocities; 1 is no guidance. It needs the class that means 'no class', the last one.
            temperature: multiplies the noise.
            known (B, C, H, W): images whose first tokens, row by row, are kept.
            num_known: how many.
            num_steps: Euler steps of a token.
            use_cache: whether to keep keys and values of earlier tokens; otherwise all are computed again each time.

        Raises:
            ValueError: classes that do not fit, guidance without classes, or numbers that are not finite.
        """
        check_class_labels(class_labels, self.config.num_class_embeds, guidance_scale)
        count, u = len(uniform), pad_rows(uniform, ROWS)
        labels, copies = guided_labels(class_labels, guidance_scale, self.config.num_class_embeds, ROWS)
        order = self._order(u, num_known)
        noise = temperature * torch.special.ndtri(real(u[..., : self.size]).clamp(EDGE, 1 - EDGE))
        noise, x = _ordered(noise, order), torch.zeros_like(noise)
        if num_known:
            x[:, :num_known] = _ordered(self.patches.tokens(real(pad_rows(known, ROWS))).to(x), order)[:, :num_known]
        cache = self.transformer.cache(copies * len(u), self.length, self.input.weight) if use_cache else None
        places, done = order.repeat(copies, 1), 0
        for n in range(num_known, self.length):
            contexts = self._contexts(x.repeat(copies, 1, 1), places, labels, done, n + 1 if use_cache else None, cache)
            context, done = contexts[:, n - done : n - done + 1], n + 1 if use_cache else 0
            x[:, n : n + 1] = self._token(noise[:, n : n + 1], context, guidance_scale, num_steps)
        require_finite_params(x.isfinite().all())
        return self.patches.image(_ordered(x, order.argsort(1)))[:count]

    def _token(self, x: Tensor, context: Tensor, scale: float, num_steps: int) -> Tensor:
        """Return tokens (B, 1, D) of their noise, by Euler steps from t = 1 to 0."""
        copies = len(context) // len(x)
        for step in range(num_steps):
            time = x.new_full((len(context), 1), 1 - step / num_steps)
            velocity = self.head(x.repeat(copies, 1, 1), time, context)
            x = x - (velocity if copies == 1 else guided_outputs(velocity, scale)) / num_steps
        return x

    def _contexts(
        self,
        x: Tensor,
        order: Tensor,
        labels: Tensor | None,
        start: int = 0,
        end: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the transformer's outputs (B, n, width) for the tokens from `start` to before `end` in their order,
        which depend on those before each of x (B, N, D); the cache holds those before `start`."""
        places = self.places[order]  # (B, N, width)
        earlier = self.input(x.to(self.input.weight.dtype)) + places
        first = self.prefix(torch.zeros_like(order[:, 0]) if labels is None else labels)
        inputs = torch.cat([first[:, None], earlier[:, :-1]], 1) + self.queries[order]
        again = torch.is_grad_enabled() and self.gradient_checkpointing
        return self.transformer(
            inputs[:, start:end], start, cache, self._gradient_checkpointing_func if again else None
        )

    def _order(self, u: Tensor, num_known: int) -> Tensor:
        """Return the places (B, N) of tokens in their order: the known ones first, row by row."""
        if not self.config.random_order:
            return self._rows(u)
        turns = u[..., -1].clone()
        turns[:, :num_known] = torch.arange(num_known, device=u.device) / self.length - 1  # below all others
        return turns.argsort(1)

    def _rows(self, like: Tensor) -> Tensor:
        """Return the order row by row, (B, N)."""
        return torch.arange(self.length, device=like.device).expand(len(like), -1)


def _ordered(tokens: Tensor, order: Tensor) -> Tensor:
    """Return tokens (B, N, D) in an order (B, N)."""
    return tokens.gather(1, order[..., None].expand_as(tokens))
