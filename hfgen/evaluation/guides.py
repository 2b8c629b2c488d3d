"""Guides of a command: a classifier of noisy images and a worse model, loaded from folders."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console.text import with_article
from ..options import refuse_idle
from ..registry import resolve
from ..utils.devices import cast, place
from ..utils.ranges import INTERVAL
from .options import GuideOptions


@dataclasses.dataclass(frozen=True)
class Guides:
    """The guides of a pipeline.

    Attributes:
        options: strengths and times.
        pipeline: the `DenoisingPipeline` that is guided.
        classifier: a `NoisyClassifierPipeline`, or None.
        worse: a `DenoisingPipeline`, or None.
    """

    options: GuideOptions
    pipeline: Any
    classifier: Any = None
    worse: Any = None

    def arguments(self, labels: Sequence[int] | None) -> dict[str, Any]:
        """Return the guides as an argument of the pipeline's call.

        Args:
            labels: the classes of a batch, those of the pipeline or, if it has none, of the classifier.
        """
        guides, options = [], self.options
        if self.classifier is not None:
            times = INTERVAL.parse(options.classifier_interval)
            make = resolve("ClassifierGuidance")
            guides.append(make(self.classifier, self._numbers(labels), options.classifier_scale, times))
        if self.worse is not None:
            times = INTERVAL.parse(options.autoguidance_interval)
            guides.append(resolve("Autoguidance")(self.worse, options.autoguidance_scale, times))
        return {"guidance": guides} if guides else {}

    def _numbers(self, labels: Sequence[int] | None) -> list[int]:
        """Return the classifier's classes for those of the pipeline, by name where both have names."""
        if labels is None:
            raise ValueError("--classifier guides to classes. Name them: --class_labels.")
        names, theirs = (each.config.get("label_names") for each in (self.pipeline, self.classifier))
        return self.classifier.class_numbers([names[i] for i in labels] if names and theirs else list(labels))

    @property
    def knower(self) -> Any:
        """Return the pipeline whose classes are asked for: the guided one, or else the classifier."""
        told = self.pipeline.config.get("num_classes") is not None
        return self.pipeline if told or self.classifier is None else self.classifier

    def __str__(self) -> str:
        """Return what identifies the guides, for the protocol of a measurement."""
        parts = []
        for name in ("classifier", "autoguidance"):
            folder = getattr(self.options, name)
            if folder is not None:
                scale, times = (getattr(self.options, f"{name}_{part}") for part in ("scale", "interval"))
                parts.append(f"{name} {Path(folder).name}, scale {scale:g}, times {times}")
        return "; ".join(parts)


def load_guides(options: GuideOptions, pipeline: Any, device: Any = None, dtype: str = "float32") -> Guides:
    """Load the guides that the options name; without a name there are none.

    Raises:
        ValueError: an option without effect, a folder of another kind of pipeline, one of another path or other images,
            or a pipeline that takes no guides.
    """
    refuse_idle(options)
    wanted: Mapping[str, tuple[str | None, str]] = {
        "classifier": (options.classifier, "NoisyClassifierPipeline"),
        "autoguidance": (options.autoguidance, "DenoisingPipeline"),
    }
    found = {}
    for name, (folder, kind) in wanted.items():
        if folder is None:
            continue
        pipeline.call_with(guidance=f"--{name} {folder}")  # refuses what takes none
        found[name] = _load(name, folder, kind, device, dtype)
    guides = Guides(options, pipeline, found.get("classifier"), found.get("autoguidance"))
    _check(guides)
    return guides


def _load(name: str, folder: str, kind: str, device: Any, dtype: str) -> Any:
    """Load the pipeline of a guide on its device. Raises ValueError for another kind of pipeline."""
    loaded = place(resolve("HFGenPipeline").from_pretrained(folder), device)
    if not isinstance(loaded, resolve(kind)):
        raise ValueError(f"{folder} holds {with_article(type(loaded).__name__)}; --{name} needs {with_article(kind)}.")
    if dtype != "float32":
        cast(loaded, dtype)
    return loaded


def _check(guides: Guides) -> None:
    """Raise ValueError for guides of another path, of other images or of other classes, before anything is drawn."""
    from ..pipelines.guides import check_guides

    pipeline, classifier = guides.pipeline, guides.classifier
    check_guides(guides.arguments([0]).get("guidance", []), pipeline)
    counts = [each.config.get("num_classes") for each in (pipeline, classifier) if each is not None]
    named = classifier is not None and pipeline.config.get("label_names") and classifier.config.get("label_names")
    if len(counts) == 2 and counts[0] is not None and counts[0] != counts[1] and not named:
        raise ValueError(
            f"The model has {counts[0]} classes and the classifier {counts[1]}, without names to match them. Give a "
            "classifier of the same classes."
        )
