"""Adapters as the command line names them: "outputs/a,someone/b:0.5". No torch here: `--help` reads this file."""

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from .ranges import Form


class AdapterChoice(NamedTuple):
    """An adapter and its weight.

    Attributes:
        source: its folder or file, or its name on the Hub.
        weight: of its change.
    """

    source: str
    weight: float


def adapters_in(text: str) -> list[AdapterChoice]:
    """Return the adapters that a text lists, separated by commas; the weight of each comes after a colon, and is 1
    without.

    Raises:
        ValueError: there is nothing between two commas, or a weight is not finite.
    """
    choices = []
    for word in (part.strip() for part in str(text).split(",")):
        match = None if os.path.exists(os.path.expanduser(word)) else re.fullmatch(r"(.+):([^:/\\]+)", word)
        try:
            choice = AdapterChoice(match[1] if match else word, float(match[2]) if match else 1.0)
        except ValueError:
            choice = AdapterChoice("", 1.0)
        if not choice.source or choice.source[0] == ":" or not math.isfinite(choice.weight):
            raise ValueError(f"{text!r} must be {ADAPTERS}.")
        choices.append(choice._replace(source=os.path.expanduser(choice.source)))
    return choices


ADAPTERS = Form(adapters_in, "adapters with their weights, such as outputs/a,someone/b:0.5")
"""The range of an option that names adapters."""


def use_adapters(pipeline: Any, text: str | None) -> None:
    """Load the adapters that a text lists into a pipeline, and use them together; None: nothing happens.

    Raises:
        ValueError: the pipeline takes no adapters, or one of them does not fit.
        OSError: the Hub can't be reached.
    """
    if text is None:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"--lora {text}: {type(pipeline).__name__} takes no adapters. Leave it out.")
    choices = {f"adapter_{number}": choice for number, choice in enumerate(adapters_in(text))}
    for name, choice in choices.items():
        pipeline.load_lora_weights(choice.source, adapter_name=name)
    pipeline.set_adapters(list(choices), [choice.weight for choice in choices.values()])


def adapters_text(text: str) -> str:
    """Return a list of adapters as a protocol says it: folders of this machine by their last name."""
    named = [
        (Path(each.source).resolve().name if os.path.exists(each.source) else each.source, each.weight)
        for each in adapters_in(text)
    ]
    return ", ".join(f"{name}:{weight:g}" for name, weight in named)
