"""Text encoders and tokenizers of `transformers` in a saved pipeline, checked before transformers reads them.

transformers does more of what a folder says than hfgen allows: it may fetch kernels and adapters of other repositories,
open files elsewhere, and read pickles. Therefore it reads only the files named here, in a folder of links, and a
configuration may hold text only under options of its class.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .folders import built_state, check_dtype, check_shapes, check_values, read_json, refuse_quantised, weights_of
from .transformers_classes import TRANSFORMERS

TOKENIZER_BYTES = 64 << 20
"""Most bytes of a tokenizer.json."""

MOST_TOKENS = 1 << 20
"""Most tokens that a text is padded to."""

UNLIMITED = int(1e30)
"""The `model_max_length` of transformers for a tokenizer without a limit."""

NAME_BOUNDS = MappingProxyType({"num_labels": 1000, "extra_ids": 1000, "model_max_length": UNLIMITED})
"""Largest whole numbers under some keys. transformers makes as many names as the first two say."""

MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index*.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""Patterns of the files that transformers may read."""

MODEL_TEXT = frozenset(
    {"torch_dtype", "tokenizer_class", "rope_scaling", "task_specific_params", "_commit_hash", "_name_or_path"}
)
"""Options of earlier releases of transformers that hold text or objects and name neither code nor files."""

TOKENIZER_TEXT = re.compile(
    r"[a-z_]+_token|extra_special_tokens|additional_special_tokens|added_tokens_decoder|tokenizer_class|backend|errors|"
    r"padding_side|truncation_side|truncation_strategy|model_input_names|processor_class|sp_model_kwargs|chat_template|"
    r"name_or_path|"
    r"special_tokens_map_file"  # which transformers ignores
)
"""Options of a tokenizer that hold text or objects and name neither code nor files."""

CODE = frozenset({"auto_map", "custom_pipelines", "trust_remote_code"})
"""Options that name or allow code of a repository."""


def transformers_class(name: str) -> type:
    """Return a class of transformers that a saved index names.

    Raises:
        ValueError: it is not in `TRANSFORMERS`, or the installed transformers does not have it.
    """
    import transformers

    cls = getattr(transformers, name, None) if name in TRANSFORMERS else None
    if cls is None:
        raise ValueError(f"{name} is no class that hfgen loads from transformers {transformers.__version__}.")
    return cls


def is_tokenizer(kind: type) -> bool:
    """Return whether this class of transformers is a tokenizer, and not a network."""
    from transformers import PreTrainedTokenizerBase

    return issubclass(kind, PreTrainedTokenizerBase)


def patterns_of(kind: type) -> tuple[str, ...]:
    """Return patterns of the files of a component of this class that transformers may read."""
    return TOKENIZER_FILES if is_tokenizer(kind) else MODEL_FILES


def link_files(folder: Path, target: Path, kind: type) -> None:
    """Make the folder `target`, with links to the files of a component that transformers may read."""
    target.mkdir()
    files = (file for pattern in patterns_of(kind) for file in folder.resolve().glob(pattern))
    for file in filter(Path.is_file, files):  # no pipes, no devices
        (target / file.name).symlink_to(file)


def check(folder: Path, kind: type, variant: str | None = None) -> None:
    """Check a component's folder by `check_tokenizer` or `check_text_encoder`."""
    if is_tokenizer(kind):
        check_tokenizer(folder)
    else:
        check_text_encoder(folder, kind, variant)


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer that names code or files, or has numbers out of bounds.

    Raises:
        ValueError: says which option.
        OSError: a file is missing.
    """
    if not (folder / "tokenizer.json").exists():
        raise OSError(
            f"{folder} has no file named tokenizer.json; no other vocabulary is read. Load the tokenizer with "
            "transformers and save it again."
        )
    read_json(folder / "tokenizer.json", TOKENIZER_BYTES)
    path = folder / "tokenizer_config.json"
    config = read_json(path, bounds=NAME_BOUNDS)
    length = config.get("model_max_length", UNLIMITED)
    whole = isinstance(length, int) and not isinstance(length, bool)
    if not (length == UNLIMITED or (whole and 0 < length <= MOST_TOKENS)):
        raise ValueError(f"{path} has model_max_length={length}; it must be from 1 to {MOST_TOKENS}.")
    _check_options(path, config, TOKENIZER_TEXT.fullmatch)


def check_text_encoder(folder: Path, kind: type, variant: str | None = None) -> None:
    """Refuse a network of transformers that names code or files, or whose configuration and weights do not describe
    the same thing, as `check_network` does.

    Raises:
        ValueError: says why.
        OSError: a file is missing, for instance because only a pickle holds the weights.
    """
    config, weights = read_json(folder / "config.json", bounds=NAME_BOUNDS), weights_of(folder, variant, "model")
    refuse_quantised(folder, config)
    options = {*kind.config_class().to_dict(), *kind.config_class.attribute_map, *MODEL_TEXT}
    _check_options(folder / "config.json", config, options.__contains__)
    if (path := folder / "generation_config.json").exists():
        _check_options(path, read_json(path), {"transformers_version"}.__contains__)
    built = built_state(lambda: kind(kind.config_class(**config)), kind.__name__, folder, len(weights))
    counts = [Counter(tuple(tensor.shape) for tensor in part.values()) for part in (built, weights)]
    if built.keys() != weights.keys() and counts[0] == counts[1]:
        _check_names(folder, kind, variant)  # another release of transformers saved the weights under other names
    else:
        check_shapes(folder, built, weights)
    check_dtype(folder, config, weights, variant)
    check_values(folder, built, variant, "model")


def _check_names(folder: Path, kind: type, variant: str | None) -> None:
    """Refuse weights whose names transformers can't map to those of the network."""
    with tempfile.TemporaryDirectory() as home:
        link_files(folder, Path(home, "component"), kind)
        options = {"variant": variant, "use_safetensors": True, "output_loading_info": True}
        _, info = kind.from_pretrained(Path(home, "component"), **options)
    if wrong := sorted(map(str, {*info["missing_keys"], *info["unexpected_keys"]})):
        raise ValueError(f"{folder}: config.json and weights do not belong together. Only one of them has {wrong[0]}.")


def _check_options(path: Path, config: Mapping[str, Any], may_hold_text: Callable[[str], Any]) -> None:
    """Refuse options that name code, and text or objects under names whose effect is not known.

    Numbers are harmless under any name: they name neither code nor files.
    """
    for key, value in config.items():
        if key in CODE:
            raise ValueError(f"{path} has {key}: it would run code from the repository, which hfgen never does.")
        parts = value if isinstance(value, list) else [value]
        if not may_hold_text(key) and not all(part is None or isinstance(part, int | float) for part in parts):
            raise ValueError(f"{path} has {key}={str(value)[:60]!r}, an option that hfgen does not know. Take it out.")
