"""A Gaussian mixture fitted to latents, in place of the prior that the autoencoder was trained with."""

from typing import Literal

import torch
from torch import Tensor

from ..console.progress import ProgressBar
from ..models.priors import GaussianMixturePriorModel
from ..utils.seeds import seed_of

MOST_ITERATIONS = 200
"""Iterations of the fit, at most."""


def fit_mixture(
    latents: Tensor, num_components: int, seed: int = 0, covariance: Literal["full", "diag"] = "full"
) -> GaussianMixturePriorModel:
    """Fit a mixture of Gaussians to latents by expectation maximisation (scikit-learn, started by k-means++).

    For latents drawn from q(z | x) of the training images, the mixture models the aggregate posterior E_x q(z | x),
    which is the best prior for a given encoder (Hoffman & Johnson 2016,
    http://approximateinference.org/accepted/HoffmanJohnson2016.pdf). As here, Ghosh et al. 2020,
    https://arxiv.org/abs/1903.12436, fit it after training.

    Args:
        latents (N, d, h, w): the latents.
        num_components: number of Gaussians.
        seed: of the start.
        covariance: whether covariances are full or diagonal.

    Returns:
        The mixture, a prior over latents (d, h, w).

    Raises:
        ValueError: fewer latents than dimensions or components, or latents that are not finite.
    """
    from sklearn.mixture import GaussianMixture

    shape, points = tuple(latents.shape[1:]), latents.flatten(1).double().cpu()
    if num_components < 1 or len(points) < max(num_components, points.shape[1] + 1):
        raise ValueError(
            f"A mixture of num_components={num_components} Gaussians in {points.shape[1]} dimensions can't be fitted "
            f"to {len(points)} latents: give more latents, or fewer components."
        )
    if not points.isfinite().all():
        raise ValueError("latents hold values that are not finite. Check the encoder and its training.")
    start = seed_of("mixture", seed) % 2**32  # the most that NumPy takes
    with ProgressBar(total=MOST_ITERATIONS, desc="Fitting a mixture", unit="iteration") as bar:

        class Counted(GaussianMixture):
            """The mixture, which moves the bar with each iteration."""

            def _e_step(self, *args, **kwargs):
                bar.update()
                return super()._e_step(*args, **kwargs)

        options = {"covariance_type": covariance, "init_params": "k-means++", "max_iter": MOST_ITERATIONS}
        mixture = Counted(num_components, random_state=start, **options).fit(points.numpy())
    covariances = torch.from_numpy(mixture.covariances_)
    prior = GaussianMixturePriorModel(latent_shape=shape, num_components=num_components, covariance=covariance)
    prior.weights.copy_(torch.from_numpy(mixture.weights_))
    prior.means.copy_(torch.from_numpy(mixture.means_))
    prior.scale_tril.copy_(torch.linalg.cholesky(covariances) if covariance == "full" else covariances.sqrt())
    return prior
