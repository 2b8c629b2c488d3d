"""How much each family may train: seconds, images or floating-point operations, turned into optimiser steps."""

import dataclasses
import re

_UNITS = {"s": ("seconds", 1), "m": ("seconds", 60), "h": ("seconds", 3600), "images": ("images", 1)}
_UNITS |= {"k images": ("images", 1e3), "M images": ("images", 1e6), "flops": ("flops", 1)}
_FORM = re.compile(r"(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*(s|m|h|(?:[kM] ?)?images|flops)")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a training may spend.

    Attributes:
        text: as it was given.
        kind: "seconds" of training steps, "images" seen, or "flops" of training.
        amount: of that.
    """

    text: str
    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """From words: 90s, 2m, 1h, 200k images, 2e15 flops. Raises ValueError for anything else, or nothing."""
        found = _FORM.fullmatch(text.strip())
        if found is None or float(found[1]) <= 0:
            raise ValueError(f"budget={text!r} is not understood. Give 90s, 2m, 1h, '200k images' or '2e15 flops'.")
        unit = re.sub(r"([kM]) ?images", r"\1 images", found[2])
        kind, factor = _UNITS[unit]
        return cls(text.strip(), kind, float(found[1]) * factor)

    def steps(self, a_step: float) -> int:
        """Optimiser steps that the budget buys where one costs `a_step` of its kind: one or more."""
        return max(1, round(self.amount / a_step))
