"""Train a classifier whose features the metrics use, and save it for `hfgen.metrics.features.load_features`."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Literal

from ..console.endings import one_line
from ..disk.files import check_writable
from ..options import Options, option, parse, parser
from ..utils.ranges import ABOVE_0, AT_LEAST_0, COUNT, COUNT_OR_0, COUNTS, SEED
from .feature_training import autocast, optimise, save, split

EXAMPLE = "python -m hfgen.commands.train_classifier --dataset ylecun/mnist --name mnist-cnn --output mnist.safetensors"


@dataclasses.dataclass
class ClassifierArgs(Options):
    """Classifier"""

    dataset: str = option(
        "digits", "data set with splits train and test, see `hfgen data`; of digits, a fifth is held out", path=True
    )
    name: str = option("digits-cnn", "name of the features in reports")
    output: str = option("digits.safetensors", "file to write", path=True)
    widths: str = option("16,32,64", "channels of each stage", range=COUNTS)
    patch: int = option(1, "patches of patch x patch pixels become channels first", range=COUNT)
    num_epochs: int = option(3, "passes over the training images", range=COUNT, former=("epochs",))
    train_batch_size: int = option(128, "images per step", range=COUNT, former=("batch_size",))
    learning_rate: float = option(5e-3, "peak learning rate of a one-cycle LR schedule", range=ABOVE_0)
    adam_weight_decay: float = option(
        1e-2, "decoupled weight decay of AdamW", range=AT_LEAST_0, former=("weight_decay",)
    )
    shift: int = option(2, "largest displacement of images in pixels", range=COUNT_OR_0)
    random_flip: bool = option(False, "mirror images left to right at random", former=("flip",))
    mixed_precision: Literal["no", "bf16"] = option("bf16", "autocast")
    seed: int = option(0, "seed of initialisation, order and displacement", range=SEED)


def augment(images: Any, shift: int, flip: bool, generator: Any) -> Any:
    """Displace each image (B, C, H, W) by up to `shift` pixels, repeat its edges, and mirror it at random if `flip`."""
    import torch
    from torch.nn.functional import pad

    count, _, height, width = images.shape
    rows, cols = (torch.randint(0, 2 * shift + 1, (count, 1), generator=generator) for _ in range(2))
    rows, cols = rows + torch.arange(height), cols + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        cols = torch.where(mirrored, cols.flip(1), cols)
    padded = pad(images, [shift] * 4, mode="replicate")
    index = torch.arange(count)[:, None, None, None]
    return padded[index, torch.arange(images.shape[1])[:, None, None], rows[:, None, :, None], cols[:, None, None]]


def fit(network: Any, images: Any, labels: Any, args: ClassifierArgs) -> None:
    """Train the network in place on uint8 images (N, C, H, W) with labels (N,)."""
    import torch
    from torch.nn.functional import cross_entropy

    from ..utils.pixels import from_levels
    from ..utils.seeds import generator_of

    if len(images) < args.train_batch_size:
        raise ValueError(f"{len(images):,} images are no batch of --train_batch_size {args.train_batch_size}.")
    generator = generator_of("classifier", args.seed)
    per_epoch = len(images) // args.train_batch_size

    def losses() -> Iterator[Any]:
        for _ in range(args.num_epochs):
            order = torch.randperm(len(images), generator=generator)[: per_epoch * args.train_batch_size]
            for rows in order.split(args.train_batch_size):
                batch = augment(from_levels(images[rows]), args.shift, args.random_flip, generator)
                with autocast(args):
                    logits = network(batch.contiguous(memory_format=torch.channels_last)).logits
                yield cross_entropy(logits.float(), labels[rows], label_smoothing=0.1)

    optimise(network, losses(), args.num_epochs * per_epoch, args)


def accuracy(network: Any, images: Any, labels: Any) -> float:
    """Measure the share of uint8 images (N, C, H, W) that the network classifies as their labels (N,)."""
    import torch

    from ..utils.pixels import from_levels

    with torch.inference_mode():
        classes = [network(from_levels(part)).logits.argmax(1) for part in images.split(1000)]
    return (torch.cat(classes) == labels).float().mean().item()


def main(argv: list[str] | None = None) -> None:
    """Train a classifier, test it on held-out images, and save its weights with a description of the training."""
    command = parser("python -m hfgen.commands.train_classifier", __doc__, EXAMPLE, ClassifierArgs)
    (args,) = parse(command, argv, ClassifierArgs)
    check_writable(args.output)
    from ..metrics.classifier import DomainClassifier
    from ..utils.seeds import seed_initialisation

    seed_initialisation(args.seed)
    (images, labels), test = split(args.dataset)
    if labels is None or test[1] is None:
        raise ValueError(f"--dataset {args.dataset} has no classes to learn. Give one with a folder or a label each.")
    config = {
        "in_channels": images.shape[1],
        "image_size": images.shape[-1],
        "num_classes": int(labels.max()) + 1,
        "widths": list(COUNTS.parse(args.widths)),
        "patch": args.patch,
    }
    network, start = DomainClassifier(**config), time.process_time()
    fit(network, images, labels, args)
    weights = {key: value.half() if value.dim() > 1 else value for key, value in network.state_dict().items()}
    network.load_state_dict(weights)  # so that the accuracy is that of the rounded weights
    test_accuracy = accuracy(network, *test)
    seconds = time.process_time() - start
    print(f"{seconds:.0f} s of CPU; accuracy on {len(test[0]):,} held-out images: {test_accuracy:.4f}")
    save(args, weights, config, {"accuracy": f"{test_accuracy:.4f}"}, "accuracy", (len(images), len(test[0])))


if __name__ == "__main__":
    with one_line():
        main()
