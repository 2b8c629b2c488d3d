"""Options of models of images under texts. No torch here: `--help` reads this file."""

import dataclasses

from ...command_line.option_rules import AnyOf
from ...options import NEVER, CaptionDataArgs, Options, SampleArgs, SolverArgs, option, variant
from ...utils.ranges import COUNT
from ..adapter_options import BEGUN, AdapterArgs, LowRankArgs
from ..diffusion.options import DenoiserArgs, DiffusionTrainArgs, NoiseArgs


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
        "folder or Hub id of a text model (CLIP, T5, SigLIP, ...); default: a small new one, or that of init_from",
        {"init_from": (None,)},
        path=True,
    )
    vocab_size: int = option(
        2048,
        "tokens of the small encoder's vocabulary at most, which is learnt from the captions (byte-level BPE)",
        {"text_encoder": (None,), "init_from": (None,)},
        range=COUNT,
    )
    max_length: int | None = option(
        None,
        "tokens that captions are cut to; default: as many as the longest caption has, at most 77, or as init_from",
        {"init_from": (None,)},
        range=COUNT,
    )
    train_text_encoder: bool = option(
        False,
        "let the text encoder of init_from learn, too; it stays as it is otherwise",
        {**BEGUN, "lora_rank": (None,)},
    )
    states_dir: str | None = option(
        None,
        "folder that keeps the states of captions, which are computed once; default: caption_states in output_dir",
        AnyOf(
            ("text_encoder", "init_from"), lambda of: of.text_encoder or (of.init_from and not of.train_text_encoder)
        ),
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
class TextAdapterArgs(LowRankArgs):
    """Fine-tuning"""

    new_class: str | None = variant(
        AdapterArgs, "new_class", None, "none: captions take the place of classes", only_with=NEVER
    )


DESCRIPTION = "Train a model that draws images from texts, on images with captions."
EXAMPLE = "hfgen train text_to_image --dataset path/to/captioned_images --max_train_steps 2000"
GROUPS = (
    CaptionDataArgs,
    TextDenoiserArgs,
    TextArgs,
    TextNoiseArgs,
    TextAdapterArgs,
    TextSolverArgs,
    SampleArgs,
    DiffusionTrainArgs,
)
