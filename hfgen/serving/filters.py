"""Filters of what models draw: a hook between a pipeline and whoever asked. Who serves says which filters there are."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from ..utils.arguments import checked


class OutputFilter(Protocol):
    """A judge of images.

    Attributes:
        name: a short name, for messages and metrics.
        refuses: whether an image that it finds is refused; else it is flagged.
    """

    name: str
    refuses: bool

    def judge(self, images: Sequence[Any]) -> list[str | None]:
        """Return for each PIL image a sentence that says what is wrong, or None. Several threads may call it."""


class FilteredError(RuntimeError):
    """A filter refused an image.

    Attributes:
        filters: names of the filters that refused one.
    """

    def __init__(self, text: str, filters: tuple[str, ...]):
        super().__init__(text)
        self.filters = filters


@dataclasses.dataclass(frozen=True)
class Flag:
    """What a filter found.

    Attributes:
        number: of the image among those that were judged.
        filter: its name.
        reason: a sentence.
    """

    number: int
    filter: str
    reason: str


@checked
def judged(filters: Sequence[Any], images: Sequence[Any], names: Sequence[str]) -> list[Flag]:
    """Return what filters found in images that may be shown.

    Args:
        filters: `OutputFilter`s.
        images: PIL images.
        names: of the images, for messages.

    Raises:
        FilteredError: a filter that refuses found something. Its text says in which images, and what.
    """
    found, refused = [], []
    for each in filters:
        for number, reason in enumerate(each.judge(images)):
            if reason is not None:
                (refused if each.refuses else found).append(Flag(number, each.name, reason))
    if refused:
        text = "; ".join(f"{names[flag.number]}: {flag.reason}" for flag in refused)
        raise FilteredError(f"Refused by a filter. {text}", tuple(dict.fromkeys(flag.filter for flag in refused)))
    return found
