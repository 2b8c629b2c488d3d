"""The recipe of a model of latents: autoencoder, latents, network, objective and pipeline that belong together."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hfgen

from ...data.encoded import LatentData
from ...distributions.latents import Coded, coded, measured_scale, scale_of, state_scale, stated_scale
from ...options import DataArgs, Parsed
from ...utils.seeds import seed_initialisation
from ..diffusion import recipe as diffusion
from ..diffusion.options import NoiseArgs
from ..diffusion.preview import DenoisingPreview
from ..latent_data import latent_data, refuse_changing_images
from ..trained_data import take_data_of
from .autoencoder import Autoencoder, ScratchStage, load_autoencoder, of_pipeline

REFERENCE = 4096
"""Dimensions of latents that need no time shift: 4 x 32 x 32, those of 256 x 256 images in Rombach et al. 2022."""


class LatentRecipe:
    """Data, network, objective and pipeline of a model of latents.

    Attributes:
        vae: the autoencoder.
        data: the latents.
        classes, names: number and names of the classes that the model knows; None: none.
        shift: of times.

    Args:
        run: the `Run`.
        parsed: the options, those of `options.GROUPS`.

    Raises:
        ValueError: options, autoencoder or images that do not go together.
    """

    def __init__(self, run: Any, parsed: Parsed):
        _, self.args, scratch_args, network_args, noise_args, _, self.solver_args, _, _ = parsed
        self.run, self.seed = run, run.args.seed
        place = run, network_args, noise_args, parsed.given
        self.network_args, self.noise_args = diffusion.on_base(*place, kind="LatentPipeline")
        self._check(run)
        if self.args.from_scratch:
            self.autoencoder = ScratchStage(run, scratch_args).autoencoder()
        else:
            self.autoencoder = self._trained()
            self._check_stated()
            if self.autoencoder.pipeline is not None:
                take_data_of(run, self.autoencoder.pipeline, parsed.given_of(DataArgs))
        self.vae = self.autoencoder.network.to(run.accelerator.device)
        self.classes = run.num_classes(self.network_args.class_conditional)
        self.names = run.data.label_names if self.classes else None
        check_images(self.vae, run.data, self.autoencoder.name)
        self.data = self._latents(run)
        self.shift = self._shift()
        self.scheduler = with_shift(diffusion.scheduler_for(run, self.solver_args, self.noise_args), self.shift)

    def _check(self, run: Any) -> None:
        """Raise ValueError for options that do not go together, before anything is loaded."""
        data_args = dataclasses.replace(run.data_args, resolution=None)  # the network's images are latents
        diffusion.check(data_args, self.network_args, plain(self.noise_args, 1.0), self.solver_args)
        refuse_changing_images(run.data_args)
        shift = self.noise_args.time_shift
        if shift is not None and diffusion.times_of(self.noise_args) != "logit_normal":
            raise ValueError(f"--time_shift {shift:g} moves logit-normal times. Add --time_sampling logit_normal.")

    def _trained(self) -> Autoencoder:
        """Return the autoencoder that is named, by default that of the pipeline of `--init_from`."""
        base = self.run.base
        if self.args.autoencoder is None and isinstance(base, hfgen.LatentPipeline):
            return of_pipeline(base, self.run.args.init_from)
        return load_autoencoder(self.args.autoencoder, self.run.output)

    def _check_stated(self) -> None:
        """Raise ValueError for an autoencoder that states no scale of its latents, unless it is to be measured."""
        if not self.args.measure_latents and stated_scale(self.autoencoder.network) is None:
            raise ValueError(
                f"--autoencoder {self.args.autoencoder} ({type(self.autoencoder.network).__name__}) states no mean and "
                "deviation of its latents (latents_mean, latents_std, or a scaling_factor that is not the default of "
                "its class). Add --measure_latents: they are measured on the images, and stated in the saved "
                "autoencoder."
            )

    def _latents(self, run: Any) -> LatentData:
        """Return the latents of the images, and state their scale where it is measured: at last that of all of them."""
        measured = self.args.measure_latents or (self.args.from_scratch and run.args.dry_run)
        encoder = self.autoencoder.encoder(run.data, self.seed)
        folder = Path(self.args.latent_dir or run.output / "latents")
        data = latent_data(encoder, folder, elsewhere="--latent_dir or --output_dir")
        if measured:
            self._state(data.first())  # until all are encoded
            data.then = self._state
        else:
            data.extend_fingerprint(scale_of(self.vae))
        return data

    def _state(self, tensors: dict[str, Tensor]) -> None:
        state_scale(self.vae, measured_scale([Coded(tensors["x"], tensors["deviation"])]))

    def _shift(self) -> float:
        if self.run.adaptation is not None:
            return self.run.base.scheduler.config.get("shift", 1.0)
        if self.noise_args.path != "straight" or diffusion.times_of(self.noise_args) != "logit_normal":
            return 1.0
        by_size = max(1.0, math.sqrt(math.prod(self.data.item_shape) / REFERENCE))
        return by_size if self.noise_args.time_shift is None else self.noise_args.time_shift

    def network(self) -> nn.Module:
        """Return a new denoiser. Raises ValueError for latents that the architecture does not take."""
        channels, height, width = self.data.item_shape
        seed_initialisation(self.seed)  # whatever a first stage has drawn
        if self.run.adaptation is not None:
            return self.run.adaptation.new_network(self.classes, self.run.args.gradient_checkpointing)
        return hfgen.build_denoiser(
            self.network_args.model,
            self.network_args.model_size,
            height if height == width else (height, width),
            channels,
            self.classes,
            self.run.args.gradient_checkpointing,
            null_class=self.noise_args.label_dropout > 0,
            learned_variance=self.noise_args.variance != "fixed",
        )

    def objective(self) -> Any:
        """Return the objective of latents."""
        inner = diffusion.objective(plain(self.noise_args, self.shift), self.classes)
        return hfgen.Encoded(inner, self.vae, self.autoencoder.variational)

    def pipeline(self, denoiser: nn.Module) -> Any:
        """Return the pipeline of denoiser and autoencoder."""
        options = self.autoencoder.decoder_options(self.run.data)
        return hfgen.LatentPipeline(denoiser, self.scheduler, self.vae, self.classes, self.names, **options)

    def preview(self, args: Any) -> DenoisingPreview:
        """Return what is shown of the pipeline."""
        kind = "latent rectified flow" if self.noise_args.path == "straight" else "latent diffusion"
        return LatentPreview(kind.capitalize(), kind, self.solver_args, args, self.seed)

    def reserve(self, pipeline: Any) -> float:
        """Return the seconds of the encoding, which count as training."""
        return self.data.seconds


class LatentPreview(DenoisingPreview):
    """Samples, a film from noise to samples, and what the card says of the latents."""

    card_options = (*DenoisingPreview.card_options, "time_shift")

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return rows about the samples, and about the scale of the latents."""
        scale, shape = pipeline.latent_scale, " x ".join(map(str, pipeline.latent_shape))
        source = "as its configuration states" if scale.images is None else f"measured on {scale.images:,} images"
        numbers = [", ".join(f"{value:.3g}" for value in values[:8]) for values in (scale.mean, scale.deviation)]
        more = ", ..." if len(scale.mean) > 8 else ""
        return {
            **super().facts(pipeline),
            "latents": f"{shape} of {type(pipeline.vae).__name__}",
            "mean and deviation of their channels": f"{numbers[0]}{more}; {numbers[1]}{more} ({source})",
        }


def plain(args: Any, shift: float) -> NoiseArgs:
    """Return the options of the objective itself. A shift of logit-normal times is one of their mean:

    logit(s t / (1 + (s - 1) t)) = logit(t) + log s.
    """
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(NoiseArgs)}
    return NoiseArgs(**{**values, "logit_mean": args.logit_mean + math.log(shift)})


def with_shift(scheduler: Any, shift: float) -> Any:
    """Return the scheduler with this shift of its times, if it has one."""
    if shift == 1 or "shift" not in scheduler.config:
        return scheduler
    return type(scheduler).from_config({**scheduler.config, "shift": shift})


@torch.no_grad()
def check_images(vae: nn.Module, data: Any, name: str) -> None:
    """Refuse images that an autoencoder does not return in the same shape.

    Args:
        vae: the autoencoder.
        data: the images.
        name: of the autoencoder, for messages.

    Raises:
        ValueError: names both shapes.
    """
    channels, shape = vae.config.get("in_channels"), tuple(data.item_shape)
    if channels is not None and channels != shape[0]:
        raise ValueError(
            f"The autoencoder {name} takes images of {channels} channels, and those of {data.name} have {shape[0]}. "
            f"Give --channels {channels}, or another autoencoder."
        )
    try:
        latents = coded(vae, torch.zeros(1, *shape)).mean.to(next(vae.parameters()))
        made = tuple(vae.decode(latents).sample.shape[2:])
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The autoencoder {name} takes no images of shape {shape}: {reason}") from None
    if made != shape[1:]:
        raise ValueError(
            f"The autoencoder {name} makes {made[0]} x {made[1]} pixels of images of {shape[1]} x {shape[2]}. Give a "
            "--resolution that it halves evenly."
        )
