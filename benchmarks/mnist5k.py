"""Make the built-in data set `mnist5k`: 5,000 images of the test split of MNIST, 4,000 to train on and 1,000 held out.

    python benchmarks/mnist5k.py path/to/mnist

Each split has as many images of each digit. Which images are taken, and their order, are functions of the seed alone.
They are kept as the source stores them (PNG), so that the same source gives the same bytes of images. MNIST's train
split is left out on purpose: the feature networks inside the package were trained on it, and they judge models of these
images. Writes train.parquet and test.parquet with the attribution in their metadata.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from hfgen.options import DataArgs, argument, option, parse, parser

SIZES = {"train": 4000, "test": 1000}

ATTRIBUTION = {
    "title": "mnist5k: 5,000 images of the test split of MNIST",
    "copyright": "Yann LeCun and Corinna Cortes",
    "source": "The MNIST database of handwritten digits, http://yann.lecun.com/exdb/mnist/",
    "license": "CC BY-SA 3.0, https://creativecommons.org/licenses/by-sa/3.0/",
    "changes": "a selection of 500 images of each digit, in another order, as PNG in parquet files",
}


@dataclasses.dataclass
class Options:
    """Built-in data"""

    mnist: str = argument("MNIST, see --dataset of `hfgen data`: with a split test, columns image and label")
    output_dir: str = option("hfgen/data/mnist5k", "folder for the files")
    seed: int = option(0, "seed of the choice and the order")


def choose(labels: Any, seed: int) -> dict[str, list[int]]:
    """Return rows for each split, with equal numbers of each label: distinct, and in a random order.

    Args:
        labels (N,): label of each row, a tensor.
        seed: of choice and order.

    Raises:
        ValueError: a label has too few rows.
    """
    import torch

    from hfgen.utils.seeds import generator_of

    generator, (classes, counts) = generator_of("benchmark", seed, "mnist5k"), labels.unique(return_counts=True)
    shares = {split: size // len(classes) for split, size in SIZES.items()}
    if counts.min() < sum(shares.values()):
        raise ValueError(f"{counts.min()} images of a digit are fewer than the {sum(shares.values())} that are taken.")
    rows = [(labels == label).nonzero()[:, 0] for label in classes]
    orders, first, chosen = [each[torch.randperm(len(each), generator=generator)] for each in rows], 0, {}
    for split, share in shares.items():
        taken = torch.cat([order[first : first + share] for order in orders])
        chosen[split] = taken[torch.randperm(len(taken), generator=generator)].tolist()
        first += share
    return chosen


def main() -> None:
    """Choose the images, and write both files."""
    example = "python benchmarks/mnist5k.py path/to/mnist"
    command = parser("mnist5k.py", __doc__.splitlines()[0], example, Options, config=False)
    (options,) = parse(command, None, Options)

    import datasets
    import pyarrow
    import torch
    from pyarrow import parquet

    from hfgen.data.sources import open_rows

    rows = open_rows(DataArgs(dataset=options.mnist, dataset_split="test")).cast_column(
        "image", datasets.Image(decode=False)
    )
    labels, names = torch.tensor(rows["label"]), [str(digit) for digit in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}}), **ATTRIBUTION}
    for split, chosen in choose(labels, options.seed).items():
        cells = [{"bytes": image["bytes"], "path": None} for image in rows.select(chosen)["image"]]
        columns = {"image": cells, "label": labels[chosen].numpy()}
        table = pyarrow.table(columns, schema=features.arrow_schema.with_metadata(metadata))
        file = Path(options.output_dir) / f"{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, file, compression="zstd", compression_level=19)
        print(f"{file}: {len(table):,} images, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
