"""Options of models of images under texts. No torch here: `--help` reads this file."""

import dataclasses

from ...command_line.option_rules import ValueRule
from ...options import NEVER, CaptionDataArgs, Options, SampleArgs, SolverArgs, TrainArgs, option, variant
from ...utils.ranges import COUNT
from ..diffusion.options import DenoiserArgs, DiffusionTrainArgs, NoiseArgs

FROZEN = ValueRule("a text model of transformers", "FOLDER", bool)


@dataclasses.dataclass
class TextDenoiserArgs(DenoiserArgs):
    """Network"""

    COMMON = ("model", "model_size")

    class_conditional: bool = variant(
        DenoiserArgs, "class_conditional", False, "none: captions take the place of classes", only_with=NEVER
    )


@dataclasses.dataclass
class TextArgs(Options):
    """Texts"""

    COMMON = ("text_encoder", "prompts")

    text_encoder: str | None = option(
        None,
        "folder or Hub id of a text model (CLIP, T5, SigLIP, ...); default: a small new one",
        path=True,
    )
    vocab_size: int = option(
        2048,
        "tokens of the small encoder's vocabulary at most, which is learnt from the captions (byte-level BPE)",
        {"text_encoder": (None,)},
        range=COUNT,
    )
    max_length: int | None = option(
        None,
        "tokens that captions are cut to; default: as many as the longest caption has, at most 77",
        range=COUNT,
    )
    states_dir: str | None = option(
        None,
        "folder that keeps the states of captions, which are computed once; default: caption_states in output_dir",
        {"text_encoder": FROZEN},
        resumable=True,
        path=True,
    )
    prompts: str | None = option(
        None,
        "file with a prompt a line, for grids of samples; default: the first captions",
        resumable=True,
        path=True,
    )


@dataclasses.dataclass
class TextNoiseArgs(NoiseArgs):
    """Path and objective"""

    label_dropout: float = variant(
        NoiseArgs,
        "label_dropout",
        0.1,
        "share of images trained on without their caption, for guidance",
        only_with=None,
    )


@dataclasses.dataclass
class TextSolverArgs(SolverArgs):
    """Sampling by steps"""

    guidance_scale: float = variant(
        SolverArgs, "guidance_scale", 2.0, "classifier-free guidance of samples by their texts; 1: none"
    )


@dataclasses.dataclass
class TextTrainArgs(DiffusionTrainArgs):
    """Training"""

    init_from: str | None = variant(
        TrainArgs, "init_from", None, "none: a trained model's words are those of its own captions", only_with=NEVER
    )


DESCRIPTION = "Train a model that draws images from texts, on images with captions."
EXAMPLE = "hfgen train text_to_image --dataset path/to/captioned_images --max_train_steps 2000"
GROUPS = (CaptionDataArgs, TextDenoiserArgs, TextArgs, TextNoiseArgs, TextSolverArgs, SampleArgs, TextTrainArgs)
