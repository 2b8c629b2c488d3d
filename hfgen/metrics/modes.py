"""Modes, and distances of discrete distributions: what a generator covers, and by how much two histograms differ."""

import math

import torch
from torch import Tensor


def shares(index: Tensor, count: int) -> Tensor:
    """Shares float64 (K,) of the numbers 0 .. K - 1 among integers (N,)."""
    return torch.bincount(index, minlength=count).double() / max(1, len(index))


def covered(fake: Tensor, real: Tensor) -> int:
    """How many of the modes that occur have at least a tenth of their share (K,) among generated samples (K,)."""
    return int(((fake >= real / 10) & (real > 0)).sum())


def modes(points: Tensor, centres: Tensor, radius: float) -> dict[str, float]:
    """How points (N, d) cover equally likely modes with centres (K, d); each belongs to the nearest.

    - covered: modes with at least a tenth of their share, 1/K of all points, within `radius`;
    - high_quality: share of points within `radius` (Srivastava et al. 2017, https://arxiv.org/abs/1705.07761: three
      standard deviations);
    - reverse_kl: KL of the points' shares from equal ones in nats, 0 to log K (Lin et al. 2018,
      https://arxiv.org/abs/1712.04086).

    Raises:
        ValueError: no points, shapes that don't match, or a radius that is not above 0.
    """
    if points.dim() != 2 or not len(points) or points.shape[1:] != centres.shape[1:] or not radius > 0:
        raise ValueError(
            f"points {tuple(points.shape)} must be (N, d), centres {tuple(centres.shape)} (K, d), {radius=} above 0."
        )
    distance, mode = torch.cdist(points.double(), centres.double()).min(1)
    good, count = distance <= radius, len(centres)
    equal = torch.full((count,), 1 / count, dtype=torch.float64)
    return {
        "covered": covered(shares(mode[good], count) * good.double().mean(), equal),
        "high_quality": good.double().mean().item(),
        "reverse_kl": kl_divergence(shares(mode, count), equal),
    }


def kl_divergence(p: Tensor, q: Tensor) -> float:
    """KL(p || q) = sum p log(p / q) in nats of probabilities (K,) on one support; infinite where q alone is 0.

    Raises:
        ValueError: not two distributions on one support.
    """
    p, q = _distributions(p, q)
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum().item()


def js_divergence(p: Tensor, q: Tensor) -> float:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, in nats: 0 to log 2 (Lin 1991,
    https://doi.org/10.1109/18.61115). Raises ValueError as `kl_divergence`."""
    middle = (p + q) / 2
    return (kl_divergence(p, middle) + kl_divergence(q, middle)) / 2


def wasserstein_distance(points: Tensor, others: Tensor, p: Tensor, q: Tensor) -> float:
    """The least mean Euclidean distance by which mass p (N,) on points (N, d) moves to mass q (M,) on others (M, d):
    SciPy's linear program, for a few hundred points.

    Raises:
        ValueError: masses that are no distributions, or other shapes.
    """
    from scipy.stats import wasserstein_distance_nd

    return float(wasserstein_distance_nd(points.double().numpy(), others.double().numpy(), p.numpy(), q.numpy()))


def optimal_discriminator(p: Tensor, q: Tensor) -> Tensor:
    """p / (p + q): the probability that a sample is a real one at each point of a support, for real samples from p (K,)
    and as many generated ones from q (K,) (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661, proposition 1)."""
    return p / (p + q)


def of_classes(real: Tensor, fake: Tensor) -> dict[str, float]:
    """How images cover classes, by a classifier's scores of real (N, K) and generated ones (M, K).

    - classes: classes of the real images;
    - covered: of those, how many have at least a tenth of their real share;
    - reverse_kl: KL of the generated classes' shares from the real ones' in nats, half an image added to each class.
    """
    count = real.shape[1]
    (p, n), (q, m) = ((shares(logits.argmax(1), count), len(logits)) for logits in (real, fake))
    smooth = [(share * size + 0.5) / (size + count / 2) for share, size in ((q, m), (p, n))]
    return {"classes": int((p > 0).sum()), "covered": covered(q, p), "reverse_kl": kl_divergence(*smooth)}


def _distributions(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    p, q = p.double(), q.double()
    for each in (p, q):
        if p.shape != q.shape or p.dim() != 1 or (each < 0).any() or not math.isclose(each.sum(), 1, abs_tol=1e-6):
            raise ValueError(f"{p} and {q} are not two distributions on one support: (K,), not negative, of sum 1.")
    return p, q
