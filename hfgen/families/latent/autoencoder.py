"""The autoencoder whose latents are learnt: loaded from a folder or the Hub, or trained as the first stage of a run."""

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ConfigMixin
from torch import nn

import hfgen

from ...console.endings import status_of
from ...console.text import differences
from ...disk.files import read_json, write_json
from ...distributions.likelihoods import build_likelihood
from ...registry import NETWORKS, resolve
from ...utils.seeds import seed_initialisation
from ..latent_data import Encoder
from ..trained_pipeline import shown_name
from ..vae import evaluation
from ..vae.options import AutoencoderArgs, BoundArgs, HeldOutArgs, PriorArgs, PriorSampleArgs
from ..vae.preview import make_preview
from ..vae.recipe import make_recipe
from ..vqgan.options import CriticArgs, VQGANNetworkArgs, VQGANTrainArgs
from ..vqgan.recipe import CARD_OPTIONS, critics, make_inner_recipe, with_critic
from .options import ScratchArgs

STAGE = "stage.json"
"""File of the folder of the first stage that says with which options it was finished."""

MEASURED = {"num_likelihood": 500, "likelihood_samples": 5}
"""Held-out images of the first stage, and latents of each, at most: the second stage is what is judged."""

SHARED = ("seed", "mixed_precision", "checkpointing_steps", "sample_steps", "logging_steps", "report_to", "dry_run")
"""Options of the run that hold for both stages."""


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """A trained autoencoder.

    Attributes:
        network: called as diffusers' `AutoencoderKL`, or its `VQModel`.
        options: of `LatentPipeline`: its p(x | z), and whether q(z | x) was trained.
        name: for messages and cards.
        pipeline: that it was saved with; None: it was saved alone.
    """

    network: nn.Module
    options: dict[str, Any]
    name: str
    pipeline: Any = None

    @property
    def variational(self) -> bool:
        """Return whether q(z | x) was trained."""
        return self.options.get("variational", True)

    def encoder(self, images: Any, seed: int) -> Encoder:
        """Return what makes latents of a data set of images, prepared with this seed."""
        likelihood = self.options.get("likelihood")
        parts = (self.options["likelihood_sigma"], self.options["likelihood_components"]) if likelihood else ()
        likelihood = build_likelihood(likelihood, *parts) if likelihood else None
        return Encoder(self.network, images, seed, likelihood, self.variational)

    def decoder_options(self, images: Any) -> dict[str, Any]:
        """Return the options of `LatentPipeline` for images of this data set's size."""
        size, own = list(images.size), self.network.config.get("sample_size")
        sides = [own, own] if isinstance(own, int) else own and list(own)
        return {**self.options, "sample_size": None if sides == size else size}


def load_autoencoder(name: str | None, output: Path) -> Autoencoder:
    """Load the autoencoder that `--autoencoder` names. No code of a folder or repository is run.

    Args:
        name: its folder or name on the Hub.
        output: the folder that the run writes.

    Raises:
        ValueError: none is named, it would be overwritten, or there is none at this place.
    """
    if name is None:
        raise ValueError("Give the trained autoencoder, --autoencoder outputs/vae, or train one: --from_scratch")
    folder = Path(name).expanduser()
    if folder.resolve() == output.resolve():
        raise ValueError(f"--autoencoder {name} would be overwritten. Choose another --output_dir.")
    place = str(folder) if folder.exists() else name
    if not (folder / "config.json").exists() and _is_ours(place):
        return of_pipeline(hfgen.HFGenPipeline.from_pretrained(place), name)
    for subfolder in (None, "vae"):
        if (network := _network_at(place, subfolder)) is not None:
            return Autoencoder(network, {}, shown_name(name))
    raise ValueError(
        f"--autoencoder {name} holds no autoencoder: give a folder with the config.json of one, such as diffusers' "
        "AutoencoderKL, or a pipeline with a vae or an autoencoder."
    )


def of_pipeline(pipeline: Any, name: str) -> Autoencoder:
    """Return the autoencoder of one of hfgen's pipelines. Raises ValueError for a pipeline that has none."""
    network = pipeline.components.get("autoencoder", pipeline.components.get("vae"))
    if network is None:
        kinds = "a VAEPipeline, VQPipeline or LatentPipeline"
        raise ValueError(f"--autoencoder {name} holds a {type(pipeline).__name__}, which has none. Give {kinds}.")
    names = ("likelihood", "likelihood_sigma", "likelihood_components", "variational")
    options = {key: pipeline.config[key] for key in names if key in pipeline.config}
    return Autoencoder(network, {"variational": False, **options}, shown_name(name), pipeline)


def _is_ours(place: str) -> bool:
    """Return whether a place holds one of hfgen's pipelines."""
    try:
        return hfgen.HFGenPipeline.load_config(place).get("_class_name") in hfgen.registry.PIPELINES
    except (OSError, ValueError):
        return False


def _network_at(place: str, subfolder: str | None) -> nn.Module | None:
    """Load an autoencoder of diffusers or hfgen by the configuration at this place; None if there is none."""
    where = {} if subfolder is None else {"subfolder": subfolder}
    try:
        config = ConfigMixin.load_config.__func__(diffusers.AutoencoderKL, place, **where)
    except (OSError, ValueError):
        return None
    name = str(config.get("_class_name"))
    known = name in NETWORKS or getattr(getattr(diffusers, name, None), "__module__", "").startswith(
        "diffusers.models.autoencoders."
    )
    if not known:
        raise ValueError(f"{place} holds {name}, which is no autoencoder of diffusers or hfgen.")
    cls = resolve(name) if name in NETWORKS else getattr(diffusers, name)
    network = cls.from_pretrained(place, use_safetensors=True, **where)
    if not (hasattr(network, "encode") and hasattr(network, "decode")):
        raise ValueError(f"{place} holds {name}, which encodes and decodes nothing. Give an autoencoder.")
    return network.eval()


class ScratchStage:
    """The first stage of a run: an autoencoder in the folder `autoencoder` of the run's.

    The same command goes on with it where it was stopped. When it is finished, it is not trained again.

    Args:
        run: the `Run` of both stages.
        args: the options.

    Raises:
        ValueError: options out of range, or that do not go together. No data are read before.
    """

    def __init__(self, run: Any, args: ScratchArgs):
        self.run, self.args, self.folder = run, args, run.output / "autoencoder"
        given = run.args
        resume = given.resume_from_checkpoint if given.resume_from_checkpoint == "none" else "latest"
        self.train_args = VQGANTrainArgs(
            output_dir=str(self.folder),
            max_train_steps=args.autoencoder_steps,
            max_train_seconds=args.autoencoder_seconds,
            train_batch_size=args.autoencoder_batch_size,
            learning_rate=args.autoencoder_learning_rate,
            lr_warmup_steps=min(given.lr_warmup_steps, args.autoencoder_steps // 10),
            resume_from_checkpoint=resume,
            **{name: getattr(given, name) for name in SHARED},
        )
        self.adversarial = args.perceptual > 0 or args.adversarial_weight > 0
        self.held_out_args, self.sample_args = HeldOutArgs(**MEASURED), PriorSampleArgs()
        self.sample_args.eval_batch_size = run.sample_args.eval_batch_size
        self.network_args, self.objective_args, self.prior_args = self._options()
        groups = run.data_args, self.network_args, self.objective_args, self.prior_args, self.train_args
        self.recipe = (make_inner_recipe if self.adversarial else make_recipe)(*groups)

    def _options(self) -> tuple[Any, Any, Any]:
        """Return the options of network, objective and prior: those of `hfgen train vqgan` or `hfgen train vae`."""
        args = self.args
        network = {
            "model": "kl",
            "model_size": args.autoencoder_size,
            "latent_channels": args.latent_channels,
            "likelihood": "gaussian",
        }
        prior = PriorArgs(prior="standard_normal")
        if not self.adversarial:
            return AutoencoderArgs(**network), BoundArgs(objective="elbo", beta=args.kl_weight), prior
        critic = CriticArgs(
            objective="elbo",
            beta=args.kl_weight,
            discriminator_size=args.discriminator_size,
            adversarial_weight=args.adversarial_weight,
            discriminator_start=0 if args.adversarial_weight else args.autoencoder_steps,  # without weight it is idle
            perceptual=args.perceptual,
            perceptual_features=args.perceptual_features,
        )
        return VQGANNetworkArgs(**network), critic, prior

    def autoencoder(self) -> Autoencoder:
        """Return the trained autoencoder, after training what is left of it. A run that only estimates trains nothing.

        Raises:
            ValueError: it was trained with other options or images.
            SystemExit: a signal stopped its training, as `Run` ends then.
        """
        if not (self.folder / STAGE).exists():
            trained = self._train()
            if self.run.args.dry_run:
                return of_pipeline(trained, "autoencoder")
            if self.run.accelerator.is_main_process:
                write_json(self.folder / STAGE, self._identity())
            self.run.accelerator.wait_for_everyone()
        self._check_identity()
        return of_pipeline(hfgen.HFGenPipeline.from_pretrained(str(self.folder)), "autoencoder")

    def _identity(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.args), "seed": self.run.args.seed, "images": self.run.data.fingerprint}

    def _check_identity(self) -> None:
        stored = read_json(self.folder / STAGE, f"Remove {self.folder}.")
        if text := differences(stored, self._identity()):
            raise ValueError(
                f"The autoencoder in {self.folder} was trained with other options: {text}. Give these, or another "
                "--output_dir."
            )

    def _train(self) -> Any:
        """Train, measure and save the autoencoder, and return its pipeline; an untrained one of a dry run."""
        from ..run import Run

        data = self.run.data
        groups = (self.run.data_args, self.network_args, self.objective_args, self.prior_args, self.held_out_args)
        groups = (*groups, self.sample_args, self.train_args)
        family = "vqgan" if self.adversarial else "vae"
        stage = Run(groups, family, data, self.run.accelerator)
        held_out = evaluation.load_held_out(self.run.data_args, self.held_out_args, data, self.run.accelerator)
        seed_initialisation(self.train_args.seed)
        player, networks = self.recipe.player(data), {}
        objective = self.recipe.objective(player)
        preview = make_preview(self.recipe, self.sample_args, self.train_args.seed, held_out.images)
        if self.adversarial:
            networks, objective = critics(self.objective_args, data), with_critic(objective, self.objective_args)
            preview.card_options += CARD_OPTIONS
        result = stage.train(
            networks={"autoencoder": player, **networks},
            objective=objective,
            pipeline=self.recipe.pipeline,
            preview=preview,
            **evaluation.after_training(self.recipe, stage, held_out, self.held_out_args),
        )
        if result is not None and not result.finished:
            raise SystemExit(status_of(stage.stopped))
        return self.recipe.pipeline({"autoencoder": player})
