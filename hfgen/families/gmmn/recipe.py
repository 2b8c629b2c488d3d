"""The recipe of moment matching: data, generator, objective and pipeline that belong together, in pixels or latents."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

import hfgen

from ...data.encoded import LatentData
from ...data.summary import sample
from ...distributions.latents import scale_of
from ...evaluation.reference import reference_rows
from ...models.build_gan import LATENTS, MLP_SHAPES
from ...options import DataArgs, Parsed
from ...utils.pixels import from_levels
from ...utils.seeds import seed_initialisation
from ..gan.preview import GANPreview
from ..latent.autoencoder import load_autoencoder
from ..latent.recipe import check_images
from ..latent_data import latent_data, refuse_changing_images
from ..rollback import check_rollback
from ..trained_data import take_data_of
from .options import bandwidths_of

MEASURED = 1000
"""Items of whose distances the median is taken, at most."""

ADVICE = (
    "Raise --train_batch_size, give other --bandwidths or lower --learning_rate; changed --bandwidths begin anew in "
    "another --output_dir."
)


class GMMNRecipe:
    """Data, generator, objective and pipeline of a moment matching network.

    Attributes:
        title, kind: names of the model.
        autoencoder: in whose latents moments are matched; None: in pixels.
        data: the images or their latents.
        bandwidths: of the kernels, in units of the items.

    Args:
        run: the `Run`.
        parsed: the options, those of `options.GROUPS`.

    Raises:
        ValueError: options, autoencoder or images that do not go together.
    """

    kind = "generative moment matching"

    def __init__(self, run: Any, parsed: Parsed):
        _, self.network_args, self.args, health_args, _, self.train_args = parsed
        self.run, self.title, self.autoencoder = run, "Moment matching network", None
        self._check(run)
        check_rollback(health_args.on_collapse, health_args.health_steps, run.args, "on_collapse", "health_steps")
        if self.args.autoencoder is not None:
            refuse_changing_images(run.data_args)
            self.title = "Moment matching network of latents"
            self.autoencoder = load_autoencoder(self.args.autoencoder, run.output)
            scale_of(self.autoencoder.network, f"--autoencoder {self.args.autoencoder}")  # refuses one without
            self.autoencoder.network.to(run.accelerator.device)
            if self.autoencoder.pipeline is not None:
                take_data_of(run, self.autoencoder.pipeline, parsed.given_of(DataArgs))
            check_images(self.autoencoder.network, run.data, self.autoencoder.name)
        self.data = run.data if self.autoencoder is None else self._latents()
        self.bandwidths = self._bandwidths()

    def _check(self, run: Any) -> None:
        """Raise ValueError for options that do not go together, before anything is loaded."""
        if run.args.gradient_checkpointing:
            raise ValueError(f"--gradient_checkpointing is not for --model {self.network_args.model}. Leave it out.")
        if self.args.autoencoder is not None and self.network_args.model != "mlp":
            raise ValueError(
                f"--model {self.network_args.model} makes pixels from -1 to 1, and latents have no bounds. Leave out "
                "--model or --autoencoder."
            )
        if run.args.train_batch_size < 2:
            raise ValueError(
                f"--train_batch_size {run.args.train_batch_size} has no two images to compare. Give hundreds."
            )

    def _latents(self) -> LatentData:
        """Return the latents of the images, which are encoded once."""
        folder = Path(self.args.latent_dir or self.run.output / "latents")
        encoder = self.autoencoder.encoder(self.run.data, self.run.args.seed)
        data = latent_data(encoder, folder, elsewhere="--latent_dir or --output_dir")
        data.extend_fingerprint(scale_of(self.autoencoder.network))
        return data

    def _items(self) -> Tensor:
        """Return some of what the objective sees, (N, *item): the same for the same data and seed."""
        seed = self.run.args.seed
        if self.autoencoder is None:
            return from_levels(sample(self.data, MEASURED, seed)[0])
        batch = self.data.finish(self.data.read(reference_rows(self.data, MEASURED)), 0, seed)
        return scale_of(self.autoencoder.network).normalise(batch["x"])

    def _bandwidths(self) -> tuple[float, ...]:
        numbers = bandwidths_of(self.args.bandwidths)
        unit = hfgen.median_distance(self._items()) if self.args.bandwidth_unit == "median" else 1.0
        return tuple(number * unit for number in numbers)

    @property
    def _latent_channels(self) -> int:
        given = self.network_args.latent_channels
        return LATENTS[self.network_args.model_size] if given is None else given

    def network(self) -> nn.Module:
        """Return a new generator of images or latents. Raises ValueError for images that are too small for it."""
        size, data = self.network_args.model_size, self.run.data
        seed_initialisation(self.run.args.seed)
        if self.autoencoder is None:
            shape = data.resolution, data.channels
            return hfgen.build_gan(self.network_args.model, size, *shape, self._latent_channels)[0]
        channels, *sides = self.data.item_shape
        return hfgen.MLPGeneratorModel(tuple(sides), channels, self._latent_channels, MLP_SHAPES[size], "none")

    def objective(self) -> Any:
        """Return the loss: MMD of images or, with an autoencoder, of latents."""
        kernel = hfgen.GaussianKernel(self.bandwidths)
        matching = hfgen.MomentMatching(self._latent_channels, kernel, self.args.estimator, self.args.root)
        if self.autoencoder is None:
            return matching
        return hfgen.Encoded(matching, self.autoencoder.network, self.autoencoder.variational)

    def pipeline(self, generator: nn.Module) -> Any:
        """Return the pipeline of the generator, with the autoencoder if there is one."""
        if self.autoencoder is None:
            return hfgen.GANPipeline(generator)
        options = self.autoencoder.decoder_options(self.run.data)
        options.pop("variational", None)
        return hfgen.GANPipeline(generator, vae=self.autoencoder.network, **options)

    def reserve(self, pipeline: Any) -> float:
        """Return the seconds of the encoding, which count as training."""
        return getattr(self.data, "seconds", 0.0)

    @property
    def facts(self) -> dict[str, str]:
        """Return rows of the card."""
        numbers = ", ".join(f"{value:.3g}" for value in self.bandwidths)
        facts = {"kernel": f"a sum of Gaussians with deviations {numbers}"}
        if self.autoencoder is not None:
            facts["latents"] = f"of {self.autoencoder.name} ({type(self.autoencoder.network).__name__}), normalised"
        return facts


class GMMNPreview(GANPreview):
    """Samples, a film between latents, and the curves of the collapse monitor."""

    card_options = ("model", "model_size", "estimator", "root", "bandwidths", "bandwidth_unit")
