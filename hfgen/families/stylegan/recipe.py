"""The recipe of a StyleGAN: that of a GAN with networks, inputs and a regulariser of its own."""

from typing import Any

from torch import nn

import hfgen

from ...options import Parsed
from ..finish import Finished
from ..gan.collapse import CollapseMonitor
from ..gan.recipe import GANRecipe
from .options import StyleArgs, StyleGANArgs
from .preview import StyleGANPreview


class StyleArchitecture:
    """The networks of `build_stylegan`, with noise, style mixing and the path length penalty in training.

    Args:
        network_args, style_args: the options.
    """

    title, name = "StyleGAN", "a StyleGAN"

    def __init__(self, network_args: StyleGANArgs, style_args: StyleArgs):
        self.network_args, self.style_args = network_args, style_args

    def build(self, resolution: Any, channels: int, classes: int | None, norm: str) -> tuple[nn.Module, nn.Module]:
        """Return a generator and a discriminator; neither has a norm."""
        args = self.network_args
        return hfgen.build_stylegan(
            args.model_size, resolution, channels, args.latent_channels, classes, args.patch_size
        )

    def options(self, generator: nn.Module) -> dict[str, Any]:
        """Return the generator's further inputs and its regulariser."""
        args = self.style_args
        sizes = generator.config.latent_channels, generator.num_layers, generator.noise_size
        penalties = [hfgen.PathLength(args.path_length, args.path_length_every)] if args.path_length else []
        return {"inputs": hfgen.StyleInputs(*sizes, args.style_mixing), "regularizers": penalties}


class StyleGANRecipe:
    """Networks, objective, monitor and preview of a StyleGAN.

    Attributes:
        classes, label_names: number and names of the classes that networks are told; None without.
        monitor: watches the generator.

    Args:
        run: the `Run`.
        parsed: the options, those of `options.GROUPS`.

    Raises:
        ValueError: options that do not go together, or data without the labels that they ask for.
    """

    def __init__(self, run: Any, parsed: Parsed):
        data_args, network_args, loss_args, style_args, health_args, self.sample_args, self.args = parsed
        architecture = StyleArchitecture(network_args, style_args)
        self.game = GANRecipe(data_args, network_args, loss_args, health_args, self.args, architecture)
        self.run, self.classes = run, run.num_classes(network_args.class_conditional)
        self.label_names = run.data.label_names if self.classes else None
        features = self.sample_args.eval_features
        self.monitor = CollapseMonitor(health_args, features, self.args.seed, run.data, run.output)

    def networks(self) -> dict[str, nn.Module]:
        """Return new networks, the same for the same seed."""
        return self.game.networks(self.run.data, self.classes)

    def objective(self) -> hfgen.Adversarial:
        """Return the loss of both players."""
        return self.game.objective(self.networks(), self.run.data.item_shape, self.run.world)

    def preview(self) -> StyleGANPreview:
        """Return the pictures of the training."""
        return StyleGANPreview(self.game.title, self.game.kind, self.sample_args, self.args.seed, self.monitor)

    def finished(self, pipeline: Any) -> Finished:
        """Return a trained pipeline with its facts and the last measurement."""
        facts = {"penalties": self.game.penalty_summary, "health": self.monitor.summary()}
        return Finished(pipeline, facts, self.monitor.entries())
