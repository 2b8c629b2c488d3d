"""Options of models of images and texts with two clocks. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import NEVER, CaptionDataArgs, Options, SampleArgs, SolverArgs, TrainArgs, option, variant
from ...utils.ranges import AT_LEAST_0, COUNT, PROBABILITY, Range
from ..diffusion.options import DiffusionTrainArgs, NoiseArgs

TOKENS = Range(2, 2**16, whole=True)


@dataclasses.dataclass
class TwoClockArgs(Options):
    """Network"""

    COMMON = ("model", "model_size")

    model: Literal["patch_unet", "uvit"] = option(
        "patch_unet", "what predicts the image: a U-Net beside a small transformer, or one transformer for both"
    )
    model_size: Literal["xs", "s", "m", "l"] = option(
        "s", "about 0.7, 2.7, 10 or 36 million parameters; with a U-Net up to three times as many"
    )
    patch_size: int | None = option(
        None,
        "side of a patch in pixels; default: the smallest with at most 64 patches, 256 of large images",
        {"model": ("uvit",)},
        range=COUNT,
    )


@dataclasses.dataclass
class LatentTextArgs(Options):
    """Texts"""

    COMMON = ("text_steps", "latent_tokens", "latent_channels", "prompts")

    vocab_size: int = option(
        2048, "tokens of the vocabulary at most, which is learnt from the captions (byte-level BPE)", range=COUNT
    )
    max_length: int | None = option(
        None,
        "tokens that captions are cut to; default: as many as the longest caption has, at most 77",
        range=COUNT,
    )
    latent_tokens: int = option(4, "vectors that stand for a text", range=COUNT)
    latent_channels: int = option(16, "numbers of each", range=TOKENS)
    text_steps: int = option(600, "steps of the text autoencoder, which is trained before all else", range=COUNT)
    text_noise: float = option(0.3, "noise in the latents from which it learns to tell the text", range=AT_LEAST_0)
    text_weight: float = option(1.0, "weight of the loss of the latents of texts", range=AT_LEAST_0)
    end_share: float = option(
        0.5, "share of items with one of both times at an end, as the modes of sampling have it", range=PROBABILITY
    )
    prompts: str | None = option(
        None,
        "file with a prompt a line, for grids of samples; default: the first captions",
        resumable=True,
        path=True,
    )


@dataclasses.dataclass
class TwoClockNoiseArgs(NoiseArgs):
    """Path and objective"""

    COMMON = ("path", "prediction_type")

    time_sampling: Literal["low_discrepancy", "uniform", "logit_normal", "importance"] | None = variant(
        NoiseArgs, "time_sampling", "low_discrepancy", "distribution of the times to train on"
    )
    variance: Literal["fixed", "learned_range"] = variant(
        NoiseArgs, "variance", "fixed", "none: the network predicts no variance", only_with=NEVER
    )
    vlb_weight: float = variant(NoiseArgs, "vlb_weight", 1e-3, "none: as variance", only_with=NEVER)
    label_dropout: float = variant(
        NoiseArgs, "label_dropout", 0.0, "none: guidance leads away from the marginal", only_with=NEVER
    )


@dataclasses.dataclass
class TwoClockSolverArgs(SolverArgs):
    """Sampling by steps"""

    guidance_scale: float = variant(
        SolverArgs, "guidance_scale", 2.0, "classifier-free guidance of images by their texts; 1: none"
    )


@dataclasses.dataclass
class TwoClockTrainArgs(DiffusionTrainArgs):
    """Training"""

    output_dir: str = variant(
        TrainArgs, "output_dir", "outputs/unidiffuser", "folder for the pipeline, samples, logs and checkpoints"
    )
    init_from: str | None = variant(
        TrainArgs, "init_from", None, "none: a trained model's texts are those of its own captions", only_with=NEVER
    )


DESCRIPTION = "Train one model of images and texts: both together, either alone, and each from the other."
EXAMPLE = "hfgen train unidiffuser --dataset path/to/captioned_images --max_train_steps 2000"
GROUPS = (
    CaptionDataArgs,
    TwoClockArgs,
    LatentTextArgs,
    TwoClockNoiseArgs,
    TwoClockSolverArgs,
    SampleArgs,
    TwoClockTrainArgs,
)
