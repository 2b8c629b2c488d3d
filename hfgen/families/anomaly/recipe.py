"""Which images are normal, which of them the threshold is set by, and what is made of a trained autoencoder."""

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hfgen

from ...data.images import ImageData
from ...data.summary import sample
from ...models.calibration import alarms, images_needed
from ...options import DataArgs
from ...pipelines.anomaly import VARIATIONAL
from ...saving import hub
from ...utils.pixels import from_levels
from ...utils.seeds import seed_of
from . import fit as anomalies
from .options import AnomalyArgs

MOST_HELD_OUT = 10_000
"""Images that are held out, unless their number is given or the rate needs more."""


def trained(args: AnomalyArgs, output_dir: str) -> Any:
    """Return the VAEPipeline that the options name, None if one is to be trained.

    Raises:
        ValueError: it is another pipeline, or the folder to be written.
    """
    if args.pipeline is None:
        return None
    if Path(args.pipeline).resolve() == Path(output_dir).resolve():
        raise ValueError(f"--pipeline {args.pipeline} would be overwritten. Choose another --output_dir.")
    found = hfgen.HFGenPipeline.from_pretrained(args.pipeline)
    if not isinstance(found, hfgen.VAEPipeline):
        raise ValueError(f"{args.pipeline} holds a {type(found).__name__}; anomalies are found by a VAEPipeline.")
    return found


def check(args: AnomalyArgs, trained: Any, design: Any) -> None:
    """Refuse options that can't do what they say, before any data are read.

    Raises:
        ValueError: numbers out of range, or a score that the autoencoder can't give.
    """
    alarms(10**15, args.false_alarm_rate)
    for name in ("num_calibration", "density_components", "score_samples"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if not design.draws:
        raise ValueError("--objective vq has no latents that a density or a bound could be of. Choose another.")
    variational = design.variational if trained is None else trained.config.variational
    if args.score in VARIATIONAL and not variational:
        raise ValueError(f"--score {args.score} needs an autoencoder trained with --objective elbo or iwae.")


def fitting(args: DataArgs, trained: Any) -> DataArgs:
    """The options of data, with the shape that a trained pipeline takes. Raises ValueError where they say another."""
    if args.streaming:
        raise ValueError("Images are held out by their numbers, which a stream has not. Drop --streaming.")
    if trained is None:
        return args
    channels, height, width = trained.sample_shape
    wanted = {"channels": channels, **({"resolution": height} if height == width else {})}
    for name, value in wanted.items():
        if getattr(args, name) not in (None, value):
            raise ValueError(f"--{name} {getattr(args, name)}: the trained pipeline takes {value}. Leave it out.")
    return dataclasses.replace(args, **wanted)


def split(data: ImageData, args: AnomalyArgs, seed: int) -> tuple[ImageData, Tensor]:
    """The images to train on, and those held out, (M, C, H, W) in [-1, 1]: drawn by the seed among all normal ones.

    Raises:
        ValueError: classes that there aren't, or too few images.
    """
    normal = _normal(data, args.leave_out)
    count, needed = args.num_calibration, images_needed(args.false_alarm_rate)
    if count is None:
        count = max(needed, min(len(normal) // 10, MOST_HELD_OUT))
    if count >= len(normal):
        raise ValueError(
            f"{count:,} of {len(normal):,} normal images would be held out (--false_alarm_rate "
            f"{args.false_alarm_rate:g} needs {needed:,}), and none left to train on. Give more images, or a larger "
            "rate."
        )
    alarms(count, args.false_alarm_rate)
    order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(seed_of(seed, "held out")))
    held_out, kept = normal[order[:count]], normal[order[count:].sort().values]
    return part_of(data, kept), from_levels(data.pixels(held_out)[0])


def _normal(data: ImageData, leave_out: str | None) -> Tensor:
    """The numbers (N,) of the images of `data.read` that are normal."""
    if leave_out is None:
        return torch.arange(len(data))
    if data.labels is None:
        raise ValueError(f"{data.name} has no labels for --leave_out {leave_out}; name them: --label_column.")
    names = [name.strip() for name in leave_out.split(",")]
    unknown = [name for name in names if name not in data.label_names]
    if unknown:
        raise ValueError(f"--leave_out {', '.join(unknown)}: the classes are {', '.join(data.label_names)}.")
    gone = torch.tensor([data.label_names.index(name) for name in names])
    return (~torch.isin(data.labels, gone)).nonzero().squeeze(1)


def part_of(data: ImageData, index: Tensor) -> ImageData:
    """The images `index` (N,) of a data set that is no stream."""
    parts = {"labels": None if data.labels is None else data.labels[index]}
    if data.images is not None:
        parts["images"] = data.images[index]
    else:
        parts |= {"rows": data.rows.select(index.tolist()), "corrupt": data.corrupt[index].share_memory_()}
    part = dataclasses.replace(data, **parts)
    digest = hashlib.blake2b(data.fingerprint.encode() + index.numpy().tobytes(), digest_size=8)
    part.fingerprint = digest.hexdigest()
    return part


def fitted(
    trained: Any, design: Any, data: ImageData, held_out: Tensor, args: AnomalyArgs, data_args: DataArgs, seed: int
) -> Any:
    """The AnomalyPipeline of a trained VAEPipeline, calibrated. Bounds get a prior that is fitted to the latents."""
    start = time.perf_counter()
    if args.score in VARIATIONAL and args.pipeline is None:
        trained = design.finished(trained, data, seed)
    normal = from_levels(sample(data, anomalies.MOST_FITTED, seed)[0])
    preparation = {"center_crop": data_args.center_crop, "background": data_args.background}
    numbers = args.score, args.false_alarm_rate, args.density_components, args.score_samples, seed
    found = anomalies.fit(trained, normal, held_out, *numbers, **preparation)
    print(f"Fitted and calibrated in {time.perf_counter() - start:.1f} s", flush=True)
    return found


def measured(found: Any) -> dict[str, str]:
    """What is known of the pipeline's decisions: printed, and for the card."""
    from scipy.stats import beta

    rate, count = found.config.false_alarm_rate, found.calibration.config.num_images
    allowed = alarms(count, rate)
    low, high = beta(allowed, count + 1 - allowed).ppf([0.025, 0.975])
    facts = {
        "threshold": f"{found.threshold:.6g} of the score, {found.config.score}",
        "false-alarm rate": f"at most {rate:g} over calibrations; with these {count:,} normal images {low:.2g} to "
        f"{high:.2g} (95 %)",
    }
    for name, text in facts.items():
        print(f"{name + ':':18}{text}", flush=True)
    return facts


def keep(found: Any, shown: Any, measured: Mapping[str, str], config: Mapping[str, Any], output: Path) -> None:
    """Save a pipeline whose autoencoder was trained before, with its pictures, figures and configuration."""
    from .. import run as common

    found.save_pretrained(output)
    common.save_options(output, config)
    pictures = shown.hang(found, output)
    hub.write_json(output / "metrics.json", {"measured": dict(measured), "versions": hub.versions()})
    print(f"\nDone. In {output}/: {', '.join(pictures)}, metrics.json, the pipeline\nNext:")
    for command in shown.commands(found, output):
        print(f"  {command}")
