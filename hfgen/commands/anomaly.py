"""`hfgen anomaly fit|score`: learn what normal images look like, then score images."""

import sys

from . import anomaly_score, train
from .suggestions import unknown

_HELP = """usage: hfgen anomaly fit|score [options]

fit: learn from normal images; score: score images

`hfgen anomaly fit --help` and `hfgen anomaly score --help` list the options.

example:
  hfgen anomaly fit --dataset path/to/normal_images --resolution 32 --output_dir outputs/anomaly
"""


def main(argv: list[str] | None = None) -> None:
    """Run `fit`, which is `hfgen train anomaly`, or `score`.

    Raises:
        ValueError: an unknown step.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP, end="")
        return
    step, *options = argv
    if step == "fit":
        train.start("anomaly", options, "hfgen anomaly fit")
    elif step == "score":
        anomaly_score.main(options)
    else:
        raise ValueError(unknown("step of anomaly", step, ("fit", "score")))
