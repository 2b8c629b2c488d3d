"""Network and likelihood of an autoencoder by its data, where the options name none."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...console.notes import tell
from ...data.images import ImageData
from ...data.summary import sample
from ...disk.reading import read_object
from ...trainer import checkpoint
from .options import AutoencoderArgs, CodingArgs

SEEN = 256
"""Images that are looked at, at most."""

EXTREME = 5
"""Levels from 0 or 255 within which a pixel counts as black or white."""

LEAST_EXTREME = 1 / 3
"""Share of black and white pixels from which grey images are taken for drawings, as handwritten digits are."""

DRAWINGS = {"model": "mlp", "likelihood": "bernoulli"}
PHOTOGRAPHS = {"model": "conv", "likelihood": "discretized_logistic_mixture"}


def default_choice(network_args: AutoencoderArgs, objective_args: CodingArgs) -> AutoencoderArgs:
    """Return the options with the choice for drawings, so that they can be checked before data are read."""
    return _filled(network_args, DRAWINGS, objective_args)


def choose(run: Any, network_args: AutoencoderArgs, objective_args: CodingArgs) -> AutoencoderArgs:
    """Return the options with a network and a likelihood that fit the run's data, and say what was chosen and why.

    Options that were given stay. A run that goes on keeps the choice of its checkpoint. The run's `config.yaml` and its
    checkpoints hold the choice.

    Args:
        run: the `Run`, whose data are loaded.
        network_args, objective_args: the options.
    """
    missing = [name for name in DRAWINGS if getattr(network_args, name) is None]
    if not missing:
        return network_args
    suited, reason = suited_to(run.data)
    if saved := _saved_choice(run.output, run.args.resume_from_checkpoint):
        suited, reason = saved, "as in the checkpoint that the run goes on from"
    chosen = _filled(network_args, suited, objective_args)
    words = " and ".join(f"--{name} {getattr(chosen, name)}" for name in missing)
    others = " or ".join(f"--{name}" for name in missing)
    tell(f"{words}: chosen by the data, {reason}. Give {others} for another.")
    run.replace(network_args, chosen)
    return chosen


def suited_to(data: ImageData) -> tuple[Mapping[str, str], str]:
    """Return the choice for images and its reason."""
    if data.channels != 1:
        return PHOTOGRAPHS, f"{data.channels} channels of 8-bit levels"
    share = extreme_share(sample(data, SEEN)[0])
    reason = f"grey images, {share:.0%} of whose pixels are black or white"
    return (DRAWINGS if share >= LEAST_EXTREME else PHOTOGRAPHS), reason


def extreme_share(images: Tensor) -> float:
    """Return the share of the pixels of uint8 images (N, C, H, W) that are black or white."""
    return float(((images <= EXTREME) | (images >= 255 - EXTREME)).double().mean())


def _filled(network_args: AutoencoderArgs, choice: Mapping[str, str], objective_args: CodingArgs) -> AutoencoderArgs:
    codes = {"model": "vq"} if objective_args.objective == "vq" else {}
    missing = {name: value for name, value in {**choice, **codes}.items() if getattr(network_args, name) is None}
    return dataclasses.replace(network_args, **missing)


def _saved_choice(output: Path, resume: str) -> dict[str, str]:
    """Return model and likelihood of the checkpoint that a run goes on from; nothing if there is none.

    Raises:
        CheckpointError: as `hfgen.trainer.checkpoint.find`.
    """
    folder = checkpoint.find(output, resume)
    try:
        saved = read_object(folder / "state.json")["config"] if folder else {}
        return {name: saved[name] for name in DRAWINGS} if saved else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # the loop names what is wrong with a checkpoint
