"""Coverage of modes and classes by generated samples, and distances between discrete distributions."""

import math

import torch
from torch import Tensor

from ..utils.arguments import checked
from .distances import check_features, common_scale
from .neighbours import nearest_neighbours


@checked
def shares(index: Tensor, count: int) -> Tensor:
    """Compute the share of each of the numbers 0, ..., K - 1 among integers (N,): float64 (K,)."""
    return torch.bincount(index, minlength=count).double() / max(1, len(index))


@checked
def count_covered(fake: Tensor, real: Tensor) -> int:
    """Count the covered modes, given shares (K,) of generated and of real samples.

    A mode of positive real share is covered if its generated share is at least a tenth of that.
    """
    return int(((fake >= real / 10) & (real > 0)).sum())


@checked
def modes(points: Tensor, centres: Tensor, radius: float) -> dict[str, float]:
    """Measure how points (N, d) cover equally likely modes with centres (K, d). A point belongs to its nearest mode.

    Returns:
        - covered: number of modes with at least a tenth of their share, 1/K of all points, within `radius`;
        - high_quality: share of points within `radius` of their mode (Srivastava et al. 2017,
          https://arxiv.org/abs/1705.07761, use three standard deviations);
        - reverse_kl: KL of the points' shares from equal ones in nats, 0 to log K (Lin et al. 2018,
          https://arxiv.org/abs/1712.04086).

    Raises:
        ValueError: no points, shapes that do not match, values that are not finite, or a radius that is not positive.
    """
    shaped = points.dim() == 2 and len(points) and points.shape[1:] == centres.shape[1:]
    if not shaped or not 0 < radius < math.inf:
        raise ValueError(
            f"points {tuple(points.shape)} must be (N, d), centres {tuple(centres.shape)} (K, d), {radius=} above 0."
        )
    check_features(centres, points, 1)
    scale = common_scale(points, centres)
    distance, mode = (found[:, 0] for found in nearest_neighbours(points.double() / scale, centres.double() / scale))
    near, count = distance * scale <= radius, len(centres)
    equal = torch.full((count,), 1 / count, dtype=torch.float64)
    return {
        "covered": count_covered(shares(mode[near], count) * near.double().mean(), equal),
        "high_quality": near.double().mean().item(),
        "reverse_kl": kl_divergence(shares(mode, count), equal),
    }


@checked
def kl_divergence(p: Tensor, q: Tensor) -> float:
    """Compute KL(p || q) = sum p log(p / q) in nats for probabilities (K,) on one support.

    It is infinite if q is 0 where p is not.

    Raises:
        ValueError: not two distributions on one support.
    """
    p, q = _distributions(p, q)
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum().item()


@checked
def js_divergence(p: Tensor, q: Tensor) -> float:
    """Compute (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, in nats: 0 to log 2 (Lin 1991,
    https://doi.org/10.1109/18.61115).

    Raises:
        ValueError: not two distributions on one support.
    """
    middle = (p + q) / 2
    return (kl_divergence(p, middle) + kl_divergence(q, middle)) / 2


@checked
def wasserstein_distance(points: Tensor, others: Tensor, p: Tensor, q: Tensor) -> float:
    """Compute the Wasserstein-1 distance of mass p (N,) on points (N, d) and mass q (M,) on others (M, d).

    It is the least mean Euclidean distance of a transport from the first to the second, by SciPy's linear program: for
    a few hundred points.

    Raises:
        ValueError: masses that are no distributions, or shapes that do not match.
    """
    from scipy.stats import wasserstein_distance_nd

    return float(wasserstein_distance_nd(points.double().numpy(), others.double().numpy(), p.numpy(), q.numpy()))


@checked
def optimal_discriminator(p: Tensor, q: Tensor) -> Tensor:
    """Compute p / (p + q), the optimal discriminator's output at each point of a support, (K,).

    It is the probability that a sample at that point is real, if there are as many real samples from p (K,) as
    generated ones from q (K,) (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661, proposition 1).
    """
    return p / (p + q)


@checked
def class_coverage(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Measure how generated images cover classes, given a classifier's scores of real (N, K) and generated ones (M, K).

    Returns:
        - classes: number of classes among the real images;
        - covered: number of those with at least a tenth of their real share among the generated images;
        - reverse_kl: KL of the generated class shares from the real ones in nats, with half an image added to each
          class.

    Raises:
        ValueError: no images, scores that are not finite, or of two classifiers.
    """
    check_features(real, fake, 1)
    count = real.shape[1]
    (p, n), (q, m) = ((shares(logits.argmax(1), count), len(logits)) for logits in (real, fake))
    smooth = [(share * size + 0.5) / (size + count / 2) for share, size in ((q, m), (p, n))]
    return {"classes": int((p > 0).sum()), "covered": count_covered(q, p), "reverse_kl": kl_divergence(*smooth)}


def _distributions(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return p and q in float64, or refuse them."""
    p, q = p.double(), q.double()
    for masses in (p, q):
        negative, total = (masses < 0).any(), masses.sum()
        if p.shape != q.shape or p.dim() != 1 or negative or not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(
                f"{p} and {q} are not two distributions on one support: both must be (K,), not negative, and sum to 1."
            )
    return p, q
