"""`hfgen data`: describe a data set and save a grid of its images."""

import dataclasses
from pathlib import Path

from ..console.notes import tell
from ..console.text import escaped
from ..data.label_options import PartialLabelDataArgs
from ..disk.files import check_writable
from ..options import Options, fill, option, parse_words, parser, refuse_idle
from ..utils.ranges import SEED


@dataclasses.dataclass
class PreviewOptions(Options):
    """Preview"""

    grid: str = option("preview.png", "file for a grid of images", path=True, former=("preview",))
    seed: int = option(0, "seed of the choice of images in the grid", range=SEED)


def main(argv: list[str] | None = None) -> None:
    """Print counts, sizes, channels and classes of a data set, and save the grid."""
    command = parser(
        "hfgen data",
        "Print counts, sizes, channels and classes of a data set, and save a grid of its images.",
        "hfgen data digits --grid digits.png",
        PartialLabelDataArgs,
        PreviewOptions,
        config=False,
    )
    command.add_argument("data", nargs="?", type=str, default=None, help="the data set, as for --dataset")
    values, given = parse_words(command, argv), parse_words(command, argv, defaults=False)
    if values.data is not None:
        if "dataset" in given and given.dataset != values.data:
            raise ValueError(f"Two data sets are named: {values.data}, and --dataset {given.dataset}. Leave one out.")
        values.dataset = values.data
    data_args, options = fill(values, PartialLabelDataArgs, PreviewOptions)
    refuse_idle(data_args)
    check_writable(options.grid)

    from ..data.images import load_images
    from ..data.summary import UNFLIPPED, describe, preview

    images = load_images(data_args)
    if data_args.random_flip:
        tell(UNFLIPPED)
    facts = dict(describe(images))
    width = max(len(name) for name in facts) + 2
    for name, value in facts.items():
        print(f"{name + ':':{width}} {escaped(value)}")
    preview(images, Path(options.grid), seed=options.seed)
    print(f"{'preview:':{width}} {escaped(options.grid)}")
