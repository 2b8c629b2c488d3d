"""word2vec: skip-gram and continuous bag of words, with negative sampling."""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, COUNT, check_range
from .base import Loss, Objective, Step, choose, loss_with_logs


class NegativeSampling(Objective):
    """Tell words near each other from words drawn at random (Mikolov et al. 2013, https://arxiv.org/abs/1310.4546):

        L = -E [ log sigmoid(s(w, c)) + sum_k log sigmoid(-s(w, n_k)) ],    n_k ~ P_n(n) ~ count(n)^power

    for pairs of a word w and a word c near it, with the scores s of `WordVectorsModel`. `skip_gram`: the centre of a
    window is w, and each other word is a c. `cbow`: the other words together are w, and the centre is c. The
    noise words of a centre are drawn once for all of its pairs.

    A window reaches b words to each side, b uniform in 1, ..., `window`. Frequent words are left out of windows: a word
    whose share of the text is f stays with probability sqrt(t / f) + t / f, at most 1.

    Where scores are free, the best ones are s(w, c) = log(P(w, c) / (P(w) P_n(c))) - log(negatives): with power 1 the
    pointwise mutual information, shifted (Levy & Goldberg 2014,
    https://papers.nips.cc/paper/5477-neural-word-embedding-as-implicit-matrix-factorization).

    Args:
        counts (V,): how often each word is in the text.
        method: `skip_gram` or `cbow`.
        negatives: number of noise words of a pair.
        subsample: t; 0: no word is left out.
        power: of the counts, for noise words.
        player: name of the network.

    Raises:
        ValueError: an unknown method, a number out of range, or counts that are all 0.
    """

    @checked
    def __init__(
        self,
        counts: Tensor,
        method: Literal["skip_gram", "cbow"] = "skip_gram",
        negatives: int = 5,
        subsample: float = 1e-3,
        power: float = 0.75,
        player: str = "vectors",
    ):
        choose("method", method, ("skip_gram", "cbow"))
        check_range("negatives", negatives, COUNT)
        check_range("subsample", subsample, AT_LEAST_0)
        check_range("power", power, AT_LEAST_0)
        if not (counts.ndim == 1 and len(counts) and (counts >= 0).all() and counts.sum() > 0):
            raise ValueError(f"counts {tuple(counts.shape)} must be numbers (V,) from 0, not all of them 0.")
        self.method, self.negatives, self.players = method, negatives, (player,)
        share = counts.double() / counts.sum()
        ratio = subsample / share.clamp(min=1e-300)
        self._kept = (ratio.sqrt() + ratio).clamp(max=1) if subsample else torch.ones_like(share)
        self._noise = torch.where(counts > 0, share**power, 0.0).cumsum(0)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the mean loss of a pair.

        Args:
            player, networks, step: see `Objective`.
            batch: "x" (B, 2 window + 1), the windows of words by their numbers; -1 is no word.
        """
        windows = self.windows(batch["x"], step)
        width = windows.shape[1] // 2
        centre, around = windows[:, width : width + 1], torch.cat([windows[:, :width], windows[:, width + 1 :]], 1)
        words, targets = (centre, around) if self.method == "skip_gram" else (around, centre)
        near = (targets >= 0) & (words >= 0).any(1, keepdim=True)  # (B, T): pairs of this window
        noise = self.noise(len(windows), step).to(windows.device)
        scores = networks[player](words, torch.cat([targets.clamp(min=0), noise], 1)).float()
        true, false = scores.split((targets.shape[1], self.negatives), 1)
        pairs = near.sum().clamp(min=1)
        positive = -(F.logsigmoid(true) * near).sum()
        negative = -(F.logsigmoid(-false).sum(1) * near.sum(1)).sum()
        value = (positive + negative) / pairs
        return loss_with_logs(value, {"pairs": pairs.float()})

    def windows(self, x: Tensor, step: Step) -> Tensor:
        """Return windows int64 (B, 2 window + 1) with -1 for words that are left out, or beyond their reach."""
        width, x = x.shape[1] // 2, x.long()
        reach = 1 + (step.rand("reach", len(x)) * width).long().to(x.device)  # b (B,)
        distance = (torch.arange(x.shape[1], device=x.device) - width).abs()
        u = step.uniform("subsample", x.double())
        kept = u < self._kept.to(x.device)[x.clamp(min=0)]
        return torch.where(kept & (distance <= reach[:, None]), x, -1)

    def noise(self, count: int, step: Step) -> Tensor:
        """Return noise words int64 (B, negatives), on the CPU."""
        u = step.rand("noise words", count * self.negatives).view(count, -1) * self._noise[-1]
        return torch.searchsorted(self._noise, u, right=True).clamp(max=len(self._noise) - 1)
