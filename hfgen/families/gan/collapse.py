"""Whether a generator still covers its data, and what happens when it no longer does."""

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

from ...data.images import ImageData
from ...data.summary import sample
from ...evaluation.reference import reference_rows
from ...metrics import modes, neighbours, report, sampling
from ...metrics.feature_network import FeatureNetwork, ImageSet
from ...metrics.features import BUILT_IN, choose_features
from ...metrics.measures import Measurement
from ...trainer import checkpoint
from ...trainer.loop import Result
from ...trainer.signals import StopSignals
from .options import GANTrainArgs, HealthArgs

LEAST_DIVERSITY = 0.2
"""Of that of real images; below it a generator has collapsed."""

SEEN_COVERAGE = 0.1
"""Once coverage was at least this, half of its best is the least that is healthy."""

BEGUN = 500
"""Steps by which a generator's images differ, if they ever will: before, the first look has nothing to compare with."""

MOST_ROLLBACKS = 3

ADVICE = (
    "Lower --learning_rate for that; or start anew in another --output_dir with a steadier game (--r1, --r2, "
    "--gradient_penalty, --control, --n_critic) or, where data are few, --augment color,translation,cutout."
)


class Pixels(nn.Module):
    """Images (B, C, H, W) -> their mean in each of 8 x 8 fields, (B, C 64): features where no network suits them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        return nn.functional.adaptive_avg_pool2d(images, 8).flatten(1) * self.scale


def features_of(name: str, data: ImageData) -> FeatureNetwork:
    """The feature network of this name; for "auto" the built-in one that suits the images, else coarse pixels."""
    if name == "auto" and (data.channels, *data.size) not in BUILT_IN.values():
        return FeatureNetwork("8 x 8 pixels", "-", Pixels(), data.channels * 64, None, None)
    return choose_features(name, data.channels, data.size)


def measured(network: FeatureNetwork, real: ImageSet, fake: ImageSet) -> dict[str, float]:
    """Recall, coverage and precision (`neighbours.prdc`), diversity over that of the real images and, where the network
    tells classes apart, how many of how many are covered (`modes.class_coverage`)."""
    found = neighbours.prdc(real.features, fake.features)
    rest = neighbours.diversity(fake.features) / neighbours.diversity(real.features)
    row = {name: found[name] for name in ("recall", "coverage", "precision")} | {"diversity": rest}
    if network.scores:
        covered = modes.class_coverage(real.logits, fake.logits)
        row |= {"classes_covered": covered["covered"], "classes": covered["classes"]}
    return row


def alarm_of(row: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a generator with these figures has collapsed, or None if it has not; `before` are the rows of the healthy
    looks before it. Images of a generator that has hardly begun differ little as well, but more from look to look."""
    most, best_coverage = (max((old[name] for old in before), default=0.0) for name in ("diversity", "coverage"))
    growing = row["diversity"] > most if before else row["step"] < BEGUN
    if row["diversity"] < LEAST_DIVERSITY and not growing:
        return f"its images differ {row['diversity']:.2g} times as much as real ones, below {LEAST_DIVERSITY}"
    if best_coverage >= SEEN_COVERAGE and row["coverage"] < best_coverage / 2:
        return f"it covers {row['coverage']:.2f} of the real images, less than half of the {best_coverage:.2f} before"
    return None


class CollapseMonitor:
    """Measures a generator every `every` steps, always from the same noise: rows of `health.jsonl`.

    A row is {step, recall, coverage, precision, diversity, classes_covered, classes, features, samples, alarm}; that of
    an alarm after which training went back has `rolled_back_to`, a step, besides, and stays whatever is repeated.
    `rows` are those of the run so far, oldest first. Only looks by the same features and as many samples are compared.

    Args:
        args: the options.
        features: name of the feature network, see `features_of`.
        seed: of the first image.
        data: the training images, some of which are compared with.
        output: folder of the run.

    Raises:
        ValueError: too few images, or features that do not suit them.
    """

    def __init__(self, args: HealthArgs, features: str, seed: int, data: ImageData, output: Path):
        self.every, self.count, self.seed, self.data = args.health_steps, args.health_samples, seed, data
        self.on_collapse, self.output, self.path = args.on_collapse, output, output / "health.jsonl"
        self.alarm: str | None = None
        self.rows: list[dict[str, Any]] = []
        self._real: tuple[ImageSet, Tensor | None] | None = None
        if self.every:
            self.network = features_of(features, data)
            if not data.streaming and len(data) < 20:
                raise ValueError(f"{data.name} has {len(data)} images, too few for --health_steps. Give 0.")

    def begin(self) -> int:
        """Go on from the newest checkpoint, with the rows up to there; returns how often training has gone back.

        Rows after it are of what will be repeated, or is gone with the checkpoints that somebody has removed: to have
        gone back to one of those counts no more.
        """
        newest = max(map(checkpoint.step_of, checkpoint.checkpoints(self.output)), default=0)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        rows = [json.loads(line) for line in lines]
        while rows and rows[-1].get("rolled_back_to", rows[-1]["step"]) > newest:
            rows.pop()
        self.alarm, self.rows = None, [row for row in rows if "rolled_back_to" in row or row["step"] <= newest]
        return self.rollbacks

    def __call__(self, pipeline: Any, step: int) -> bool:
        """Measure; whether training is to stop."""
        real, labels = self._reference(pipeline.device)
        if pipeline.config.num_classes is None or labels is None:
            labels = None
        else:
            labels = [int(labels[i % len(labels)]) for i in range(self.count)]
        fake = self.network.describe(sampling.draw(pipeline, self.count, self.seed, class_labels=labels))
        setting = {"features": self.network.label, "samples": self.count}
        row = {"step": step, **measured(self.network, real, fake), **setting}
        before = [old for old in self.rows if old["step"] < step or "rolled_back_to" in old]
        alike = [old for old in before if setting.items() <= old.items() and old["alarm"] is None]
        self.alarm = row["alarm"] = alarm_of(row, alike)
        self.rows = [*before, row]
        self._write()
        tqdm.write(f"step {step}: {said(row)}")
        if self.alarm is not None:
            tqdm.write(f"warning: at step {step} the generator has collapsed: {self.alarm}.", file=sys.stderr)
        return self.alarm is not None and self.on_collapse != "continue"

    @property
    def rollbacks(self) -> int:
        """How often training has gone back."""
        return sum("rolled_back_to" in row for row in self.rows)

    def settle(self) -> tuple[str, bool] | None:
        """What to do about an alarm: what to say, and whether to go back. None without an alarm that stops training.

        Checkpoints after the last healthy evaluation are set aside as collapsed-N: nothing is lost, and what is newest
        is healthy.
        """
        if self.path.is_file():
            self._write()  # without the rows that `begin` left out
        if self.alarm is None or self.on_collapse == "continue":
            return None
        rows, why = self.rows, self.alarm
        healthy = max((row["step"] for row in rows if row["alarm"] is None), default=0)
        for folder in checkpoint.checkpoints(self.output):
            if checkpoint.step_of(folder) > healthy:
                os.replace(folder, _free(folder.with_name(folder.name.replace("checkpoint", "collapsed"))))
        left = checkpoint.checkpoints(self.output)
        said = f"At step {rows[-1]['step']} the generator had collapsed: {why}. Checkpoints since are now collapsed-*. "
        if not left:
            return f"{said}There is no healthy one. {ADVICE}", False
        said += f"The last healthy one is {left[-1]}; the same command goes on from it. "
        if self.on_collapse == "stop":
            return said + ADVICE, False
        if self.rollbacks >= MOST_ROLLBACKS:
            return f"{said}It has been gone back to {MOST_ROLLBACKS} times. {ADVICE}", False
        rows[-1]["rolled_back_to"] = checkpoint.step_of(left[-1])
        self._write()
        return said, True

    def entries(self) -> list[dict[str, Any]]:
        """The figures of the last row with what they hold for, for metrics.json and the card."""
        if not self.rows or self._real is None:
            return []
        name, row = self.network.metric_name, self.rows[-1]
        found = [Measurement(name(f"{key}, k = 5"), row[key], "higher") for key in ("recall", "coverage")]
        found.append(Measurement(name("diversity against real images"), row["diversity"], "1"))
        if "classes" in row:
            found.append(Measurement(name(f"classes covered of {row['classes']}"), row["classes_covered"], "higher"))
        protocol = {
            "features": self.network.name,
            "revision": self.network.revision,
            "data": self.data.name,
            "split": "the training images",
            "real images": len(self._real[0]),
            "generated images": self.count,
            "seed": self.seed,
        }
        return report.entries(found, protocol)

    def in_words(self) -> str:
        """How often it was measured, and what was found."""
        alarms = [row["step"] for row in self.rows if row["alarm"] is not None]
        steps = ", ".join(map(str, alarms))
        found = f"collapsed at step {steps}; gone back {self.rollbacks} times" if alarms else "never collapsed"
        return f"measured {len(self.rows)} times, {found}" if self.every else "not measured"

    def _reference(self, device: torch.device) -> tuple[ImageSet, Tensor | None]:
        """Real images, described, and their labels."""
        self.network.to(device)
        if self._real is None:
            asked = (self.data, self.count)
            images, labels = sample(*asked) if self.data.streaming else self.data.pixels(reference_rows(*asked))
            self._real = self.network.describe(images), labels
        return self._real

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        os.replace(part, self.path)


def said(row: Mapping[str, Any]) -> str:
    """A row in words."""
    shown = [f"{name} {row[name]:.2f}" for name in ("recall", "coverage", "precision", "diversity")]
    return ", ".join(shown + ([f"classes {row['classes_covered']} of {row['classes']}"] if "classes" in row else []))


def guarded(
    run: Callable[[GANTrainArgs], Result | None], args: GANTrainArgs, watch: CollapseMonitor, accelerator: Accelerator
) -> Result | None:
    """What `run` returns, which trains with the options it is given: half the learning rate for each time that training
    has gone back. It runs again after an alarm that sends it back, unless a signal has asked to stop: None then. An
    alarm that stops training ends every process, with what to do as the message. To be called by all processes."""
    if args.dry_run:
        return run(args)
    with StopSignals() as stop:
        while True:
            rollbacks = _shared(watch.begin() if accelerator.is_main_process else None, accelerator)
            result = run(dataclasses.replace(args, learning_rate=args.learning_rate / 2**rollbacks))
            accelerator.wait_for_everyone()
            verdict = _shared(watch.settle() if accelerator.is_main_process else None, accelerator)
            if verdict is None:
                return result
            message, back = verdict
            if not back:
                sys.exit(f"error: {message}" if accelerator.is_main_process else 1)
            interrupted = stop.requested(accelerator)
            when = "the next time" if interrupted else "now"
            accelerator.print(f"{message}It does so {when}, with half the learning rate.")
            if interrupted:
                return None
            accelerator.free_memory()
            args = dataclasses.replace(args, resume_from_checkpoint="latest")


def _shared(value: Any, accelerator: Accelerator) -> Any:
    """The main process's value, in all of them."""
    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def _free(path: Path) -> Path:
    """The path, with the first free number from 2 on added where there is such a folder."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())
