"""The recipe of Triple-GAN: three networks, their objective, their pipeline, and the classifier's accuracy."""

from typing import Any

import hfgen

from ...data.partial_labels import LabelledPairs
from ...metrics import report
from ...metrics.measures import Measurement, mean_measurement
from ...options import Parsed
from ...utils.seeds import seed_initialisation
from ..classifier.recipe import build
from ..finish import Finished
from ..gan.preview import GANPreview
from ..gan.recipe import augmentations
from ..rollback import check_rollback
from ..vae.evaluation import HeldOut, load_held_out


class TripleGANRecipe:
    """Data, networks, objective and pipeline of a Triple-GAN.

    Attributes:
        title, kind: names of the model.
        data: the images, with pairs of an image and its class in each batch.

    Args:
        run: the `Run`.
        parsed: the options, those of `options.GROUPS`.

    Raises:
        ValueError: options that do not go together, or images without any label.
    """

    title, kind = "Triple-GAN", "generative adversarial"

    def __init__(self, run: Any, parsed: Parsed):
        _, self.network_args, self.args, health_args, self.accuracy_args, _, self.train_args = parsed
        if run.args.gradient_checkpointing:
            raise ValueError(f"--gradient_checkpointing is not for --model {self.network_args.model}. Leave it out.")
        check_rollback(health_args.on_collapse, health_args.health_steps, run.args, "on_collapse", "health_steps")
        self._objective(1)  # refuses numbers and names before any data are read
        self.run, self.data = run, LabelledPairs(run.data)
        self.held_out = load_held_out(run.data_args, self.accuracy_args, run.data, run.accelerator)

    def networks(self) -> dict[str, Any]:
        """Return generator, discriminator and classifier of these images, the same for the same seed."""
        seed_initialisation(self.run.args.seed)
        data, args = self.run.data, self.network_args
        shape = data.resolution, data.channels, args.latent_channels, data.num_classes
        generator, discriminator = hfgen.build_gan(args.model, args.model_size, *shape, "none")
        classifier = build(data, args.classifier_size)
        return {"generator": generator, "discriminator": discriminator, "classifier": classifier}

    def objective(self, networks: dict[str, Any]) -> Any:
        """Return the game of these networks."""
        return self._objective(networks["generator"].config.latent_channels)

    def _objective(self, latent_channels: int) -> Any:
        args = self.args
        return hfgen.TripleAdversarial(
            latent_channels,
            *(args.alpha, args.loss, args.estimator, args.pseudo_pairs, args.pseudo_weight, args.pseudo_after),
            args.entropy,
            [hfgen.R1(args.r1, args.penalty_every)] if args.r1 else [],
            augmentations(args.augment),
        )

    def pipeline(self, networks: dict[str, Any]) -> Any:
        """Return the pipeline of the generator and the classifier."""
        data = self.run.data
        return hfgen.GANPipeline(
            networks["generator"],
            networks["discriminator"],
            data.num_classes,
            data.label_names,
            classifier=networks["classifier"],
        )

    def complete(self, pipeline: Any, monitor: Any) -> Finished:
        """Return the pipeline with the classifier's accuracy, which is printed, and the generator's health."""
        found = []
        if (measured := accuracy(pipeline, self.held_out)) is not None:
            print(f"{measured.metric}: {measured.value:.4f} of {self.held_out}")
            found = report.entries([measured], self.held_out.facts)
        return Finished(pipeline, {"health": monitor.summary()}, [*found, *monitor.entries()])


def accuracy(pipeline: Any, held_out: HeldOut) -> Measurement | None:
    """Return the accuracy of a pipeline's classifier on held-out images with a label; None if they have none."""
    if held_out.labels is None or not bool((known := held_out.labels >= 0).any()):
        return None
    guesses = pipeline.classify(held_out.images[known]).argmax(1).cpu()
    return mean_measurement("accuracy of the classifier", (guesses == held_out.labels[known]).double(), "higher")


class TriplePreview(GANPreview):
    """Samples, a film between latents, and the curves of the collapse monitor."""

    card_options = ("model", "model_size", "classifier_size", "alpha", "loss", "estimator", "pseudo_pairs")
    card_options += ("pseudo_weight", "pseudo_after", "entropy", "r1", "augment")
