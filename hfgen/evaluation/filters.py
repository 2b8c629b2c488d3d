"""Two filters of what is served: images that are too near to a training image, and images of unwanted classes.

Both are `hfgen.serving.filters.OutputFilter`s, and of use without a server.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.images import load_images
from ..data.training_data import choose_data
from ..metrics.distances import check_features
from ..metrics.feature_network import FeatureNetwork
from ..metrics.features import choose_features
from ..metrics.neighbours import nearest_neighbours
from ..pipelines.classes import classes_in, names_of_classes
from ..pipelines.images import image_batch
from ..registry import resolve
from ..utils.arguments import checked
from ..utils.devices import place
from ..utils.drawing import draws_images
from .filter_options import FilterOptions
from .reference import reference_set


class MemorisationFilter:
    """Finds images that are nearer to a training image than images are that the model never saw.

    With d(x) the distance of an image to its nearest training image, in features, and d_i those of N held-out images,

        p(x) = (1 + #{i: d_i <= d(x)}) / (N + 1),

    and x is found if p(x) <= rate. Of images that are drawn as the held-out ones are, at most this share is found
    (conformal p-values: Vovk et al. 2005, https://doi.org/10.1007/b106715). Of a model that repeats its training images
    more are found. What the features do not see, such as a mirrored copy, is not found.

    Args:
        network: computes the features.
        train (T, d), held_out (N, d): features of training images, and of images that were not trained on.
        rate: share of held-out images that may be found, in (0, 1).
        refuses: whether found images are refused, else flagged.

    Raises:
        ValueError: too few held-out images for the rate, or too many of them are training images.
    """

    name = "memorised"

    @checked
    def __init__(self, network: FeatureNetwork, train: Tensor, held_out: Tensor, rate: float, refuses: bool = True):
        check_features(train, held_out)
        if not 0 < rate < 1:
            raise ValueError(f"rate={rate} must be between 0 and 1, such as 0.01.")
        if rate * (len(held_out) + 1) < 1:
            raise ValueError(
                f"A rate of {rate:g} needs at least {math.ceil(1 / rate) - 1:,} held-out images, and there are "
                f"{len(held_out):,}. Give more, or a rate of {1 / (len(held_out) + 1):.2g} or more."
            )
        self.network, self.train, self.rate, self.refuses = network, train.double(), rate, refuses
        self.held_out = nearest_neighbours(held_out.double(), self.train)[0][:, 0].sort().values
        if float(self.p_values(torch.zeros(1, dtype=torch.float64))) > rate:
            raise ValueError(
                f"More than {rate:.2%} of the held-out images are training images, so that copies can't be told from "
                "them. Name another --held_out_split, or a higher --memorised_rate."
            )

    def p_values(self, distances: Tensor) -> Tensor:
        """Return p(x) (B,) of distances (B,) to the nearest training image."""
        return (1 + torch.searchsorted(self.held_out, distances, right=True)).double() / (len(self.held_out) + 1)

    def judge(self, images: Sequence[Any]) -> list[str | None]:
        """Return for each PIL image why it counts as memorised, or None."""
        features = self.network(_batch(self.network, images))
        distances, rows = (values[:, 0] for values in nearest_neighbours(features, self.train))
        found = self.p_values(distances) <= self.rate
        return [
            f"it is at {distance:.4g} from training image {row}, nearer than {1 - self.rate:.2%} of unseen images are"
            if is_found
            else None
            for is_found, distance, row in zip(found.tolist(), distances.tolist(), rows.tolist(), strict=True)
        ]


class UnwantedClassFilter:
    """Finds images that a classifier takes for one of some classes.

    Args:
        probabilities: returns p(class | image) (B, K) of PIL images.
        unwanted: numbers of the classes.
        names: of all classes (K).
        threshold: an image is found if its unwanted classes have this probability together, or more.
        refuses: whether found images are refused, else flagged.

    Raises:
        ValueError: a threshold outside (0, 1], or no classes.
    """

    name = "unwanted_class"

    @checked
    def __init__(
        self,
        probabilities: Callable[[Sequence[Any]], Tensor],
        unwanted: Sequence[int],
        names: Sequence[str],
        threshold: float = 0.5,
        refuses: bool = True,
    ):
        if not 0 < threshold <= 1 or not unwanted:
            raise ValueError(f"{threshold=} must be above 0 and at most 1, and unwanted={list(unwanted)} not empty.")
        self.probabilities, self.unwanted, self.names = probabilities, sorted(set(unwanted)), names
        self.threshold, self.refuses = threshold, refuses

    def judge(self, images: Sequence[Any]) -> list[str | None]:
        """Return for each PIL image of which unwanted class it is, or None."""
        shares = self.probabilities(images)[:, self.unwanted]
        likeliest = [self.names[self.unwanted[i]] for i in shares.argmax(1).tolist()]
        return [
            f"a classifier takes it for an unwanted class, {name} (probability {total:.2f})"
            if total >= self.threshold
            else None
            for name, total in zip(likeliest, shares.sum(1).tolist(), strict=True)
        ]


def load_filters(options: FilterOptions, pipeline: Any, source: str) -> list[Any]:
    """Return the filters of a pipeline that options ask for.

    Args:
        options: of the filters.
        pipeline: whose images they judge; their networks go to its device.
        source: its folder, or its name on the Hub.

    Raises:
        ValueError: its samples are no images, its training data are not known, or no network suits them.
    """
    if options.memorised is None and options.unwanted_classes is None:
        return []
    if not draws_images(pipeline):
        raise ValueError(
            f"Filters judge images, and {source} draws others. Serve it without --memorised and --unwanted."
        )
    found: list[Any] = []
    if options.memorised is not None:
        found.append(_memorisation(options, pipeline, source))
    if options.unwanted_classes is not None:
        found.append(_unwanted(options, pipeline))
    return found


def _memorisation(options: FilterOptions, pipeline: Any, source: str) -> MemorisationFilter:
    """Return the filter of memorised images, with the images that the pipeline was trained on."""
    given: Mapping[str, Any] = {} if options.training_data is None else {"dataset": options.training_data}
    record = getattr(pipeline, "training_data", None)
    choice = choose_data(record, source, given)
    unseen = choose_data(record, source, {**given, "dataset_split": options.held_out_split}).args
    train, held_out = load_images(choice.args, own=choice.own), load_images(unseen, own=False)
    for data in (train, held_out):
        if data.streaming:
            raise ValueError(f"{data.name} is streamed, and all its images are compared. Give --training_data.")
    channels, *size = pipeline.sample_shape
    network = place(choose_features(options.memorised_features, channels, tuple(size))[0], pipeline.device)
    sets = [reference_set(data, len(data), network).features for data in (train, held_out)]
    return MemorisationFilter(network, *sets, options.memorised_rate, options.memorised == "refuse")


def _unwanted(options: FilterOptions, pipeline: Any) -> UnwantedClassFilter:
    """Return the filter of unwanted classes, by a built-in classifier or by one of `hfgen train classifier`."""
    channels, *size = pipeline.sample_shape
    if options.unwanted_classifier is None:
        network = place(choose_features("auto", channels, tuple(size))[0], pipeline.device)
        count, names = network.network.num_classes, None

        def probabilities(images: Sequence[Any]) -> Tensor:
            return network.logits_and_features(_batch(network, images))[0].softmax(1)

    else:
        classifier = place(resolve("HFGenPipeline").from_pretrained(options.unwanted_classifier), pipeline.device)
        if type(classifier).__name__ != "NoisyClassifierPipeline":
            raise ValueError(
                f"--unwanted_classifier {options.unwanted_classifier} holds a {type(classifier).__name__}. Give a "
                "classifier: hfgen train classifier."
            )
        if classifier.sample_shape != tuple(pipeline.sample_shape):
            raise ValueError(
                f"The classifier takes images of {classifier.sample_shape}, and the model draws "
                f"{tuple(pipeline.sample_shape)}. Give one of such images."
            )
        count, names = classifier.config.num_classes, classifier.config.label_names

        def probabilities(images: Sequence[Any]) -> Tensor:
            return classifier(list(images)).probabilities.cpu()

    if names is None and pipeline.config.get("num_classes") == count:
        names = pipeline.config.get("label_names")
    unwanted = classes_in(options.unwanted_classes, count, names)
    known = names_of_classes(count, names)
    return UnwantedClassFilter(
        probabilities, unwanted, known, options.unwanted_probability, options.unwanted == "refuse"
    )


def _batch(network: FeatureNetwork, images: Sequence[Image.Image]) -> Tensor:
    """Return PIL images as a network takes them, (B, C, H, W) in [-1, 1]."""
    first = images[0]
    return image_batch(list(images), (len(first.getbands()), first.height, first.width), "images")
