"""The recipe of a GAN: from options to networks, penalties and objective that belong together."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

import hfgen

from ...data.images import ImageData
from ...options import DataArgs
from ...trainer.loop import check_rates
from ...utils.seeds import seed_initialisation
from ..rollback import check_rollback
from .former import accept_former_checkpoints
from .options import AdversarialArgs, GANArgs, GANTrainArgs, HealthArgs, gradient_weights

GRADIENT_PENALTIES = {"r1": hfgen.R1, "r2": hfgen.R2, "gradient_penalty": hfgen.GradientPenalty}
OTHER_PENALTIES = {"weight_clip": hfgen.WeightClipping, "consistency": hfgen.Consistency, "control": hfgen.Control}
"""Options that are weights, and the penalty or constraint of each."""


class Architecture(Protocol):
    """A kind of networks for an adversarial training.

    Attributes:
        title: of the models, before their loss.
        name: in messages.
    """

    title: str
    name: str

    def build(self, resolution: Any, channels: int, classes: int | None, norm: str) -> tuple[nn.Module, nn.Module]:
        """Return a generator and a discriminator of images, whose norm is `batch` or `none`."""

    def options(self, generator: nn.Module) -> dict[str, Any]:
        """Return further arguments of `hfgen.Adversarial` for this generator."""


class PlainArchitecture:
    """The networks of `build_gan`, from a latent to an image.

    Args:
        args: the options.
        spectral_norm: whether the discriminator's weights have spectral norm 1.
    """

    title = "GAN"

    def __init__(self, args: GANArgs, spectral_norm: bool):
        self.args, self.spectral_norm, self.name = args, spectral_norm, f"--model {args.model}"

    def build(self, resolution: Any, channels: int, classes: int | None, norm: str) -> tuple[nn.Module, nn.Module]:
        """Return a generator and a discriminator."""
        args = self.args
        shape = (args.model, args.model_size, resolution, channels, args.latent_channels, classes)
        return hfgen.build_gan(*shape, norm, self.spectral_norm)

    def options(self, generator: nn.Module) -> dict[str, Any]:
        """Return no further arguments."""
        return {}


class GANRecipe:
    """Networks and objective of an adversarial training.

    Attributes:
        title, kind: names of the model.
        weights: of penalties and constraints, by option.

    Args:
        data_args, network_args, loss_args, health_args, args: the options.
        architecture: builds the networks; None: a `PlainArchitecture`.

    Raises:
        ValueError: options out of range, or that do not go together: before any data are read.
    """

    kind = "generative adversarial"

    def __init__(
        self,
        data_args: DataArgs,
        network_args: Any,
        loss_args: AdversarialArgs,
        health_args: HealthArgs,
        args: GANTrainArgs,
        architecture: Architecture | None = None,
    ):
        self.network_args, self.loss_args, self.args = network_args, loss_args, args
        self.architecture = architecture or PlainArchitecture(network_args, loss_args.spectral_norm)
        self.title = f"{self.architecture.title} ({loss_args.loss.replace('_', '-')})"
        gradients = gradient_weights(loss_args)
        self.weights = gradients | {name: getattr(loss_args, name) for name in OTHER_PENALTIES}
        self.norm = "none" if any(gradients.values()) else "batch"
        if loss_args.loss == "wasserstein" and self.penalty_summary == "none":
            raise ValueError("--loss wasserstein needs a critic of bounded slope. Give --gradient_penalty 10.")
        if loss_args.weight_clip and loss_args.spectral_norm:
            raise ValueError("--weight_clip bounds nothing once --spectral_norm has scaled the weights. Drop one.")
        if args.gradient_checkpointing:
            raise ValueError(f"--gradient_checkpointing is not for {self.architecture.name}. Leave it out.")
        check_rollback(health_args.on_collapse, health_args.health_steps, args, "on_collapse", "health_steps")
        with torch.device("meta"):
            classes = 2 if network_args.class_conditional else None
            networks = self._build(data_args.resolution or 32, data_args.channels or 1, classes)
        check_rates(args, self.objective(networks, (1, 1, 1), 1).players)

    def networks(
        self, data: ImageData, classes: int | None, state: Mapping[str, nn.Module] = MappingProxyType({})
    ) -> dict[str, nn.Module]:
        """Return generator and discriminator for images of this shape, the same for the same seed.

        Args:
            data: the images.
            classes: number of classes; None without.
            state: of the objective. The discriminator then loads checkpoints of hfgen 0.1 as well.

        Raises:
            ValueError: the images are too small for the architecture.
        """
        seed_initialisation(self.args.seed)
        networks = self._build(data.resolution, data.channels, classes)
        if "replay" in state:
            accept_former_checkpoints(networks["discriminator"], state["replay"])
        return networks

    def objective(
        self, networks: dict[str, nn.Module], item_shape: tuple[int, int, int], world: int
    ) -> hfgen.Adversarial:
        """Return the adversarial loss with its penalties.

        Args:
            networks: of `networks`.
            item_shape: (C, H, W) of an image.
            world: number of processes.

        Raises:
            ValueError: options that do not go together, or a memory too small for the batch.
        """
        loss, replay = self.loss_args, None
        if loss.control:
            effective_batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * world
            if loss.memory_size < 2 * effective_batch:
                raise ValueError(
                    f"--memory_size {loss.memory_size} must be at least {2 * effective_batch}, twice the images of a "
                    "step."
                )
            replay = hfgen.ReplayBuffer(loss.memory_size, item_shape)
        return hfgen.Adversarial(
            loss.loss,
            networks["generator"].config.latent_channels,
            self.penalties(),
            loss.n_critic,
            self._augment(),
            loss.mode_seeking,
            self.network_args.class_conditional,
            replay,
            loss.fresh_batches,
            **self._of_generator(networks["generator"]),
        )

    def _of_generator(self, generator: nn.Module) -> dict[str, Any]:
        """Return what the loss is told of the generator: inputs and regularisers."""
        options = self.architecture.options(generator)
        own = [hfgen.Orthogonal(self.loss_args.orthogonal)] if self.loss_args.orthogonal else []
        return {**options, "regularizers": [*options.get("regularizers", ()), *own]}

    def _augment(self) -> tuple[str, ...] | hfgen.AdaptiveAugmentation:
        """Return augmentations, with a probability that adapts if the options say so."""
        names, target = augmentations(self.loss_args.augment), self.loss_args.augment_target
        return names if target is None else hfgen.AdaptiveAugmentation(names, target, self.loss_args.augment_speed)

    def penalties(self) -> list[Any]:
        """Return penalties and constraints of the discriminator."""
        every = self.loss_args.penalty_every
        kinds = {name: partial(kind, every=every) for name, kind in GRADIENT_PENALTIES.items()} | OTHER_PENALTIES
        return [kinds[name](weight) for name, weight in self.weights.items() if weight]

    @property
    def penalty_summary(self) -> str:
        """Return penalties and constraints as a text for the card."""
        lazy = f" every {self.loss_args.penalty_every} steps" if self.loss_args.penalty_every > 1 else ""
        parts = [
            f"{name.replace('_', ' ')} {weight:g}{lazy if name in GRADIENT_PENALTIES else ''}"
            for name, weight in self.weights.items()
            if weight
        ]
        if self.loss_args.spectral_norm:
            parts.append("spectral norm 1")
        return ", ".join(parts) or "none"

    def _build(self, resolution: Any, channels: int, classes: int | None) -> dict[str, nn.Module]:
        generator, discriminator = self.architecture.build(resolution, channels, classes, self.norm)
        return {"generator": generator, "discriminator": discriminator}


def augmentations(names: str) -> tuple[str, ...]:
    """Return the names in a list separated by commas; none for "none"."""
    return () if names == "none" else tuple(name.strip() for name in names.split(","))
