"""The budget of a training: seconds, images or floating-point operations, converted into optimiser steps."""

import dataclasses
import re

_UNITS = {"s": ("seconds", 1), "m": ("seconds", 60), "h": ("seconds", 3600), "images": ("images", 1)}
_UNITS |= {"k images": ("images", 1e3), "M images": ("images", 1e6), "flops": ("flops", 1)}
_FORM = re.compile(r"(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*(s|m|h|(?:[kM] ?)?images|flops)")
LARGEST = 1e30
"""Of any unit: computations with larger ones would overflow."""
BUDGETS = "90s, 2m, 1h, '200k images' or '2e15 flops'"


@dataclasses.dataclass(frozen=True)
class Budget:
    """The budget of each training of a comparison.

    Attributes:
        text: the option's text, such as "2m".
        kind: "seconds" of training steps and the fit of a prior, "images" seen, or "flops" of training.
        amount: in this unit.
    """

    text: str
    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read 90s, 2m, 1h, 200k images or 2e15 flops.

        Raises:
            ValueError: any other text, or an amount of 0 or above `LARGEST`.
        """
        match = _FORM.fullmatch(text.strip())
        kind, factor = _UNITS[re.sub(r"([kM]) ?images", r"\1 images", match[2])] if match else ("", 0)
        amount = float(match[1]) * factor if match else 0.0
        if not 0 < amount <= LARGEST:
            raise ValueError(f"budget={text!r} is not understood. Give {BUDGETS}.")
        return cls(text.strip(), kind, amount)

    @property
    def seconds(self) -> float | None:
        """The seconds of a training; None for another kind of budget."""
        return self.amount if self.kind == "seconds" else None

    def part(self, share: float) -> "Budget":
        """Return this share of the budget, above 0 and at most 1."""
        return self if share == 1 else Budget(f"{share:g} of {self.text}", self.kind, self.amount * share)

    def steps(self, step_cost: float) -> int:
        """Return the number of optimiser steps, at least 1, if one costs `step_cost` in the budget's unit."""
        return max(1, round(self.amount / step_cost))
