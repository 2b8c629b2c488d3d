"""Real images that samples are compared with: which rows of a data set, and their features, cached on disk."""

import os
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.built_in import BUILT_IN
from ..data.images import ImageData, load_images
from ..data.tensors import digest_of
from ..data.training_data import DataChoice
from ..disk.files import OptionalWrites, replacing
from ..metrics.feature_network import FeatureNetwork, ImageSet
from ..utils.seeds import generator_of


def reference_rows(data: Sized, count: int) -> Tensor:
    """Return the numbers (N,) of `count` rows of a data set, or of all: the start of one fixed random permutation."""
    return torch.randperm(len(data), generator=generator_of("reference"))[:count]


def matching_labels(labels: Tensor, count: int) -> list[int]:
    """Return `count` labels in the proportions of `labels` (N,).

    Label i is label i modulo N as long as whole rounds are needed. The r < N labels of the last round are apportioned
    by largest remainders, so that each class has r times its share, rounded down or up, and the first rows of each
    class stand for it.
    """
    rounds, rest = divmod(count, len(labels))
    result = labels.tolist() * rounds
    if not rest:
        return result
    sizes = torch.bincount(labels)
    quota, remainder = sizes * rest // len(labels), sizes * rest % len(labels)
    extra = remainder.argsort(descending=True, stable=True)[: rest - int(quota.sum())]
    quota[extra] += 1
    for label in labels.tolist():
        if quota[label]:
            quota[label] -= 1
            result.append(label)
    return result


def reference_set(data: ImageData, count: int, network: FeatureNetwork, cache: str | None = None) -> ImageSet:
    """Return the images and features of `reference_rows(data, count)`.

    Features are cached in a file whose name holds the data's fingerprint, the network's revision, the count and a
    digest of the rows.

    Args:
        data: the data set.
        count: number of images; a larger number than there are means all.
        network: computes the features.
        cache: the folder; None: `hfgen` in $XDG_CACHE_HOME, or in ~/.cache.

    Raises:
        ValueError: the cached file is damaged, or belongs to another network.
    """
    rows = reference_rows(data, count)
    folder = Path(cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfgen")
    order = digest_of({"rows": rows})  # of features in another order, the file has another name
    path = folder / f"{data.fingerprint}-{network.revision}-{len(rows)}-{order}.safetensors"
    images = data.pixels(rows)[0]
    metadata = {"network": network.label, "data": data.fingerprint}
    if path.is_file():
        return ImageSet(network.label, images, **_load(path, len(rows), metadata))
    result = network.describe(images)
    tensors = {"features": result.features} | ({} if result.logits is None else {"logits": result.logits})
    with OptionalWrites()(f"the cache {path}"), replacing(path) as draft:
        save_file(tensors, draft, metadata=metadata)
    return result


def _load(path: Path, count: int, metadata: dict[str, str]) -> dict[str, Tensor | None]:
    """Return "features" (count, d) and "logits" (count, classes) of a cached file; logits are None if it has none."""
    try:
        with safe_open(path, "pt") as file:
            stored, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it, and it will be computed again.") from error
    if stored != metadata or not _are_rows(tensors, count):
        raise ValueError(
            f"{path} holds features of {stored}, not of {metadata}. Remove it, and it will be computed again."
        )
    return {"features": tensors["features"], "logits": tensors.get("logits")}


def _are_rows(tensors: dict[str, Tensor], count: int) -> bool:
    """Return whether there are features, and all tensors are (count, d)."""
    return "features" in tensors and all(x.ndim == 2 and len(x) == count for x in tensors.values())


def refuse_training_images(choice: DataChoice, data: ImageData, rows: Tensor) -> None:
    """Refuse another data set than that of the training if it holds images that the model was trained on.

    Looked into are models of a built-in data set, whose images are at hand: those of `mnist5k` are a part of MNIST's
    test split, which is no test of such a model.

    Args:
        choice: the options of the real images and of the training.
        data: the real images, prepared as the training images.
        rows: numbers of the real images that samples are compared with (N,).

    Raises:
        ValueError: some of them are training images; says how many, and what to measure against.
    """
    training = choice.training
    if training is None or training.dataset not in BUILT_IN or training.dataset == choice.args.dataset:
        return
    trained = load_images(training, own=False)
    seen = {image.numpy().tobytes() for image in trained.pixels(torch.arange(len(trained)))[0]}
    shared = sum(image.numpy().tobytes() in seen for image in data.pixels(rows)[0])
    if shared:
        raise ValueError(
            f"{shared:,} of the {len(rows):,} real images of {data.name} are among those that the pipeline was trained "
            f"on ({training.dataset}, split {training.dataset_split}). Leave out --dataset, and name another part of "
            f"{training.dataset} with --dataset_split."
        )


def data_protocol(data: ImageData, split: str) -> dict[str, Any]:
    """Return the entries of a metric's protocol that identify the real images."""
    height, width = data.size
    return {
        "data": data.name,
        "split": split,
        "data fingerprint": data.fingerprint,
        "size": f"{data.channels} x {height} x {width}",
    }
