"""The recipe of a model of images under texts: what networks are told of captions, and refusals of options."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

import hfgen

from ...console.notes import tell
from ...console.text import with_article
from ...data.captions import check_captions
from ...models.text_denoiser import TextDenoiser
from ...models.text_tokens import encoded, lengths_of, tokens_of
from ...options import CaptionDataArgs
from ..diffusion.recipe import check_training
from ..prompts import prompts_in
from .encoder import check_vocabulary, learn_tokenizer, load_text_model, new_encoder
from .options import TextArgs, TextDenoiserArgs, TextNoiseArgs, TextSolverArgs
from .states import caption_states

MOST_TOKENS = 77
"""Tokens of a caption at most by default, as those of CLIP."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """The text side of a training.

    Attributes:
        tokenizer, encoder: of `transformers`.
        length: tokens that every text is padded or cut to.
        tables: what the network is told of each caption, by argument; `null`: of the empty text.
        learns: whether the encoder is trained with the denoiser.
    """

    tokenizer: Any
    encoder: Any
    length: int
    tables: dict[str, Tensor]
    null: dict[str, Tensor]
    learns: bool

    @property
    def channels(self) -> int:
        """The width of the encoder's states."""
        return self.encoder.config.hidden_size

    @property
    def condition(self) -> Any:
        """The condition that a denoiser is trained under."""
        return hfgen.CaptionCondition(self.tables, self.null)

    def networks(self, denoiser: Any) -> dict[str, Any]:
        """Return the networks of the training: the encoder is a part of the denoiser, or beside it as it is."""
        if self.learns:
            return {"denoiser": TextDenoiser(self.encoder, denoiser)}
        return {"denoiser": denoiser, "text_encoder": self.encoder}

    def pipeline(self, networks: Any, scheduler: Any, null_text: bool) -> Any:
        """Return the pipeline of these networks."""
        trained = networks["denoiser"]
        parts = (trained.denoiser, trained.text_encoder) if self.learns else (trained, self.encoder)
        denoiser, encoder = parts
        return hfgen.TextToImagePipeline(denoiser, scheduler, encoder, self.tokenizer, self.length, null_text)


def check(
    data_args: CaptionDataArgs,
    network_args: TextDenoiserArgs,
    text_args: TextArgs,
    noise_args: TextNoiseArgs,
    solver_args: TextSolverArgs,
) -> None:
    """Refuse options that do not go together, before any data are read.

    Raises:
        ValueError: as `check_training`; captions of a stream; a vocabulary that is too small; guidance that the network
            does not learn; or no prompts in their file.
    """
    check_captions(data_args)
    check_training(data_args, network_args, noise_args)
    check_vocabulary(text_args.vocab_size)
    if solver_args.guidance_scale != 1 and noise_args.label_dropout <= 0:
        raise ValueError(
            f"guidance_scale={solver_args.guidance_scale} needs images trained on without their caption. Give "
            "--label_dropout 0.1, or --guidance_scale 1."
        )
    prompts_in(text_args.prompts)


def texts_of(run: Any, args: TextArgs, size: str) -> Texts:
    """Return the text side of a run, whose data have captions.

    Raises:
        ValueError: the text encoder can't be used, or reads no tokens of so many.
    """
    captions = run.data.caption_texts
    with run.accelerator.main_process_first():
        if run.base is not None:
            return _of_base(captions, args, run)
        if args.text_encoder is not None:
            return _frozen(*load_text_model(args.text_encoder), captions, args, run)
    return _learnt(captions, args, size)


def denoiser(run: Any, network_args: TextDenoiserArgs, noise_args: TextNoiseArgs, texts: Texts) -> Any:
    """Return the denoiser that a run begins with: of an adapter one as the base's, else a new one."""
    if run.adaptation is not None:
        return run.adaptation.new_network(None, run.args.gradient_checkpointing)
    return hfgen.build_denoiser(
        network_args.model,
        network_args.model_size,
        run.data.resolution,
        run.data.channels,
        gradient_checkpointing=run.args.gradient_checkpointing,
        learned_variance=noise_args.variance != "fixed",
        text_channels=texts.channels,
    )


def _learnt(captions: list[str], args: TextArgs, size: str) -> Texts:
    """Return the text side with a small encoder of its own."""
    tokenizer = learn_tokenizer(captions, args.vocab_size)
    length = _length(tokenizer, captions, args.max_length, None)
    tokenizer.model_max_length = length
    tables, null = (tokens_of(tokenizer, texts, length) for texts in (captions, [""]))
    return Texts(tokenizer, new_encoder(tokenizer, size, length), length, tables, null, learns=True)


def _of_base(captions: list[str], args: TextArgs, run: Any) -> Texts:
    """Return the text side of the pipeline of `--init_from`, whose encoder stays as it is unless it is to learn."""
    base, source = run.base, run.args.init_from
    if not isinstance(base, hfgen.TextToImagePipeline):
        held = with_article(type(base).__name__)
        raise ValueError(f"{source} holds {held}; a TextToImagePipeline is trained here. Give one as --init_from.")
    encoder, args = copy.deepcopy(base.text_encoder), dataclasses.replace(args, max_length=base.config.max_length)
    if not args.train_text_encoder:
        return _frozen(base.tokenizer, encoder.eval().requires_grad_(False), captions, args, run)
    length = _length(base.tokenizer, captions, args.max_length, None)
    tables, null = (tokens_of(base.tokenizer, texts, length) for texts in (captions, [""]))
    return Texts(base.tokenizer, encoder.train().requires_grad_(True), length, tables, null, learns=True)


def _frozen(tokenizer: Any, encoder: Any, captions: list[str], args: TextArgs, run: Any) -> Texts:
    """Return the text side with a trained encoder."""
    encoder.to(run.accelerator.device)
    positions = getattr(encoder.config, "max_position_embeddings", None)
    most = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    length = _length(tokenizer, captions, args.max_length, most)
    folder = Path(args.states_dir) if args.states_dir else run.output / "caption_states"
    main = run.accelerator.is_main_process and not run.args.dry_run
    tables = caption_states(encoder, tokens_of(tokenizer, captions, length), folder, main)
    null = {name: value.cpu() for name, value in encoded(tokenizer, encoder, [""], length).items()}
    return Texts(tokenizer, encoder, length, tables, null, learns=False)


def _length(tokenizer: Any, captions: list[str], asked: int | None, most: int | None) -> int:
    """Return the number of tokens that captions are padded or cut to. Says how many of them are cut."""
    if asked is not None and most is not None and asked > most:
        raise ValueError(f"--max_length {asked} is more than the {most} tokens that the text encoder reads.")
    lengths = lengths_of(tokenizer, captions)
    length = asked or max(1, min(max(lengths), MOST_TOKENS, most or MOST_TOKENS))
    if cut := [text for text, tokens in zip(captions, lengths, strict=True) if tokens > length]:
        tell(f"{len(cut):,} of {len(captions):,} captions have more than {length} tokens, and are cut: {cut[0][:60]!r}")
    return length
