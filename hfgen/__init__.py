"""hfgen: every generative paradigm as one family of parts on diffusers.

    from hfgen import HFGenPipeline

    pipeline = HFGenPipeline.from_pretrained("outputs/quickstart")
    pipeline(class_labels=[3, 1, 4]).images[0].save("three.png")

Names are imported when they are first used, so that `import hfgen` and `hfgen --help` cost nothing.
"""

from typing import Any

from .registry import EXPORTS, RENAMED, resolve

__version__ = "0.1.0"
__all__ = sorted(["__version__", *EXPORTS])


def __getattr__(name: str) -> Any:
    if name in EXPORTS or name in RENAMED:
        return resolve(name)
    raise AttributeError(f"module 'hfgen' has no attribute {name!r}; it offers {', '.join(sorted(EXPORTS))}")


def __dir__() -> list[str]:
    return list(__all__)
