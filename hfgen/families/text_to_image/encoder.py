"""Text encoders: one of `transformers` as it is, or a small one with a vocabulary of its own."""

from collections.abc import Sequence
from typing import Any

from ...console.progress import without_loading_bars
from ...saving.errors import one_line_errors
from ...saving.transformers_classes import TEXT_MODELS

START, END, PADDING = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
"""Tokens of a learnt vocabulary that stand for no text; their numbers are 0, 1 and 2."""

LEAST_TOKENS = 259
"""Tokens of the smallest vocabulary: those of all bytes, and these three."""

SHAPES = {"xs": (128, 2), "s": (192, 3), "m": (256, 4), "l": (384, 6)}
"""Size of the denoiser -> width and layers of the small encoder; its heads are 32 wide."""


def load_text_model(name: str) -> tuple[Any, Any]:
    """Return the tokenizer and the text encoder of a folder or a repository of `transformers`.

    No code of the repository is run, and no pickle is read. Of a model of images and texts only the part for texts is
    loaded.

    Raises:
        ValueError: it is no text model that hfgen knows, or it can't be loaded; says why.
    """
    import transformers

    options = {"trust_remote_code": False}
    try:
        with one_line_errors(name), without_loading_bars():
            kind = transformers.AutoConfig.from_pretrained(name, **options).model_type
            if kind not in TEXT_MODELS:
                raise ValueError(f"{name} is a {kind}. Give one of: {', '.join(TEXT_MODELS)}.")
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            encoder = getattr(transformers, TEXT_MODELS[kind]).from_pretrained(name, use_safetensors=True, **options)
    except (ValueError, OSError) as error:
        raise ValueError(f"--text_encoder {name} can't be used: {error}") from None
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so that any token will do
    return tokenizer, encoder.eval().requires_grad_(False)


def check_vocabulary(vocab_size: int) -> None:
    """Raise ValueError for fewer tokens than those of all bytes and those that stand for no text."""
    if vocab_size < LEAST_TOKENS:
        raise ValueError(
            f"--vocab_size {vocab_size} is less than {LEAST_TOKENS}: a token for each byte, and three more. Give "
            f"{LEAST_TOKENS}."
        )


def learn_tokenizer(captions: Sequence[str], vocab_size: int) -> Any:
    """Return a tokenizer with a vocabulary learnt from captions: byte-level BPE, which has a token for every text.

    Large and small letters are the same, and so are é written as one character or as two.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = [START, END, PADDING]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    numbers = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=numbers)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PADDING)


def new_encoder(tokenizer: Any, size: str, length: int) -> Any:
    """Return a new text encoder in CLIP's form, for a tokenizer and texts of at most so many tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    width, layers = SHAPES[size]
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=length,
            projection_dim=width,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
