"""From options to what `train_gan` trains and leaves: networks, objective and pipeline that belong to one another."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

import hfgen

from ...data.images import ImageData
from ...models.generators import LatentGenerator
from ...options import DataArgs, SampleArgs
from .. import preview as gallery
from ..run import classes_of
from .options import AdversarialArgs, GANArgs, GANTrainArgs, HealthArgs, gradient_weights

OF_GRADIENTS = {"r1": hfgen.R1, "r2": hfgen.R2, "gradient_penalty": hfgen.GradientPenalty}
OTHERS = {"weight_clip": hfgen.WeightClipping, "consistency": hfgen.Consistency, "control": hfgen.Control}
"""Options that are weights, and what they are weights of."""


class Design:
    """What the options of a run ask for. `title` and `kind` are what its models are called.

    Raises:
        ValueError: options out of range, or that do not go together: before any data are read.
    """

    kind = "generative adversarial"

    def __init__(
        self,
        data_args: DataArgs,
        network_args: GANArgs,
        loss_args: AdversarialArgs,
        health_args: HealthArgs,
        sample_args: SampleArgs,
        args: GANTrainArgs,
    ):
        gallery.check(sample_args)
        self.network_args, self.loss_args, self.args = network_args, loss_args, args
        self.title, gradients = f"GAN ({loss_args.loss.replace('_', '-')})", gradient_weights(loss_args)
        self.weights = gradients | {name: getattr(loss_args, name) for name in OTHERS}
        self.norm = "none" if any(gradients.values()) else "batch"
        if loss_args.loss == "wasserstein" and self.paid == "none":
            raise ValueError("--loss wasserstein needs a critic of bounded slope. Give --gradient_penalty 10.")
        if loss_args.weight_clip and loss_args.spectral_norm:
            raise ValueError("--weight_clip bounds nothing once --spectral_norm has scaled the weights. Drop one.")
        if args.gradient_checkpointing:
            raise ValueError(f"--gradient_checkpointing is not for --model {network_args.model}. Leave it out.")
        check_kept(health_args, args)
        with torch.device("meta"):
            generator, _ = self._built(
                data_args.resolution or 32, data_args.channels or 1, 2 if network_args.class_conditional else None
            )
        self.objective(generator)

    def networks(self, data: ImageData, world: int) -> dict[str, nn.Module]:
        """Generator and discriminator for images of this shape and so many processes, the same for the same seed.

        Raises:
            ValueError: classes that the data have not, images too small, or a memory too small for the batch.
        """
        args, classes = self.loss_args, classes_of(data, self.network_args.class_conditional)
        effective_batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * world
        if args.control and args.memory_size < 2 * effective_batch:
            raise ValueError(
                f"--memory_size {args.memory_size} must be at least {2 * effective_batch}, twice the images of a step."
            )
        torch.manual_seed(self.args.seed)
        generator, discriminator = self._built(data.resolution, data.channels, classes)
        return {"generator": generator, "discriminator": discriminator}

    def objective(self, generator: LatentGenerator) -> hfgen.Adversarial:
        """What they are trained for. Raises ValueError for options that do not go together."""
        args = self.loss_args
        return hfgen.Adversarial(
            args.loss,
            generator.config.latent_channels,
            self.penalties(),
            args.n_critic,
            augmentations(args.augment),
            args.mode_seeking,
            self.network_args.class_conditional,
        )

    def penalties(self) -> list[Any]:
        """What the discriminator pays or obeys besides. Raises ValueError for a negative weight."""
        if negative := [f"{name}={weight}" for name, weight in self.weights.items() if not weight >= 0]:
            raise ValueError(f"{', '.join(negative)} must not be negative; 0: none.")
        every = self.loss_args.penalty_every
        kinds = {name: partial(kind, every=every) for name, kind in OF_GRADIENTS.items()} | OTHERS
        return [kinds[name](weight) for name, weight in self.weights.items() if weight]

    def pipeline_of(self, label_names: list[str] | None) -> Callable[[Mapping[str, nn.Module]], hfgen.GANPipeline]:
        """What makes a pipeline of the networks that are being trained."""

        def pipeline(networks: Mapping[str, nn.Module]) -> hfgen.GANPipeline:
            generator, discriminator = networks["generator"], networks["discriminator"]
            discriminator = getattr(discriminator, "discriminator", discriminator)  # without its memory
            classes = generator.config.num_class_embeds
            return hfgen.GANPipeline(generator, discriminator, classes, label_names if classes else None)

        return pipeline

    @property
    def paid(self) -> str:
        """What the discriminator pays or obeys besides, in words."""
        lazy = f" every {self.loss_args.penalty_every} steps" if self.loss_args.penalty_every > 1 else ""
        said = [
            f"{name.replace('_', ' ')} {weight:g}{lazy if name in OF_GRADIENTS else ''}"
            for name, weight in self.weights.items()
            if weight
        ]
        if self.loss_args.spectral_norm:
            said.append("spectral norm 1")
        return ", ".join(said) or "none"

    def _built(self, resolution: Any, channels: int, classes: int | None) -> tuple[nn.Module, nn.Module]:
        args = self.network_args
        given = (args.model, args.model_size, resolution, channels, args.latent_channels, classes)
        return hfgen.build_gan(*given, self.norm, self.loss_args.spectral_norm)


def augmentations(names: str) -> tuple[str, ...]:
    """The names in a list by commas; none for "none"."""
    return () if names == "none" else tuple(name.strip() for name in names.split(","))


def check_kept(health: HealthArgs, args: GANTrainArgs) -> None:
    """Refuse to remove checkpoints that a rollback would go back to: those from before the last evaluation.

    Raises:
        ValueError: says how many have to be kept, or that there are none.
    """
    if health.health_steps < 0 or health.health_samples < 20:
        raise ValueError(
            f"health_steps={health.health_steps} must not be negative, and health_samples={health.health_samples} at "
            "least 20."
        )
    if health.on_collapse != "rollback":
        return
    if not args.checkpointing_steps:
        raise ValueError("--on_collapse rollback goes back to checkpoints, and --checkpointing_steps 0 saves none.")
    apart = health.health_steps % args.checkpointing_steps != 0
    least = math.ceil(health.health_steps / args.checkpointing_steps) + apart + 1
    if args.checkpoints_total_limit is not None and args.checkpoints_total_limit < least:
        raise ValueError(
            f"--on_collapse rollback needs a checkpoint from before the last evaluation: --checkpoints_total_limit "
            f"{args.checkpoints_total_limit} with --checkpointing_steps {args.checkpointing_steps} and --health_steps "
            f"{health.health_steps} keeps none. Raise it to {least}."
        )
