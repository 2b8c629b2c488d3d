"""The recipe of distillation into one step: teacher, student, score network, objective and pipeline."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

import hfgen

from ...objectives.distilled import OneStep, one_pass
from ...options import TrainArgs
from ...paths import StraightPath, path_from_config
from ..trained_pipeline import load_denoiser
from .options import DistillArgs

PENALTY_EVERY = 4
"""Steps of the discriminator from one R1 to the next."""


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a student learns, and with what.

    Attributes:
        networks: "teacher", "score", "generator", and "discriminator" if there is one.
        objective: the losses.
        student: the student in words, for the card.
    """

    networks: Mapping[str, nn.Module]
    objective: hfgen.Distilled
    student: str


def check(args: DistillArgs) -> None:
    """Raise ValueError for options that do not go together, before anything is read."""
    _objective(args, path_from_config({"path": "straight"}), "flow_prediction", 2, {})


def load_teacher(args: DistillArgs, output: str) -> Any:
    """Load the pipeline of the teacher, with the scheduler that draws best in 20 steps.

    Raises:
        ValueError: it is no denoiser of images, lies in the folder of the output, has a learned variance, or knows no
            guidance.
    """
    teacher = load_denoiser(args.pipeline, output, "to distil")
    channels, outputs = teacher.item_shape[0], getattr(teacher.denoiser.config, "out_channels", None)
    if outputs not in (None, channels):
        raise ValueError(
            f"{args.pipeline} has {outputs} output channels for items with {channels}: a learned variance, which a "
            "generator has no use for. Give a denoiser without it."
        )
    if len(teacher.sample_shape) != 3:
        raise ValueError(
            f"{args.pipeline} draws items of shape {tuple(teacher.sample_shape)}, and this command is for images. Use "
            "hfgen.Distilled from Python."
        )
    if args.student != "teacher" and teacher.item_shape != teacher.sample_shape:
        raise ValueError(
            f"--student {args.student} makes images, and {args.pipeline} models latents. Leave it out: the student is "
            "the teacher's network."
        )
    scale = args.teacher_guidance_scale
    if scale != 1 and teacher.null_label is None:
        raise ValueError(
            f"--teacher_guidance_scale {scale:g} needs a teacher with classes that was trained with label dropout, and "
            f"{args.pipeline} was not. Leave it out."
        )
    straight = isinstance(path_from_config(teacher.scheduler.config), StraightPath)
    teacher.use_scheduler("rectified_flow" if straight else "dpmsolver++")
    return teacher


def lesson(teacher: Any, args: DistillArgs, train_args: TrainArgs) -> Lesson:
    """Return networks and objective for a teacher.

    Raises:
        ValueError: images that the student's architecture can't make.
    """
    network, classes = teacher.denoiser, teacher.config.num_classes
    networks = {"teacher": network, "score": copy.deepcopy(network), "generator": copy.deepcopy(network)}
    parts: dict[str, Any] = {"label_dropout": 0.0 if teacher.null_label is None else args.label_dropout}
    path, kind = path_from_config(teacher.scheduler.config), teacher.scheduler.config.prediction_type
    new, student = args.student != "teacher", "the teacher's network, from its weights"
    if new or args.adversarial_weight:
        networks |= _gan_networks(args, teacher.item_shape, classes, keep=() if new else ("discriminator",))
    if new:
        parts = {"generate": one_pass, "noise_shape": (networks["generator"].config.latent_channels,)}
        student = f"{args.student} {args.model_size}, new"
    else:
        parts["generate"] = OneStep(path, kind, teacher.two_times)
    if not args.adversarial_weight:
        networks.pop("discriminator", None)
    if train_args.gradient_checkpointing:
        for each in networks.values():
            if getattr(each, "_supports_gradient_checkpointing", False):
                each.enable_gradient_checkpointing()
    return Lesson(networks, _objective(args, path, kind, classes, parts), student)


def _gan_networks(args: DistillArgs, shape: tuple[int, ...], classes: int | None, keep: tuple[str, ...]) -> dict:
    """Return a new generator and a discriminator, or those of them in `keep`, for items of this shape (C, H, W)."""
    architecture = "dcgan" if args.student == "teacher" else args.student
    sides = shape[1] if shape[1] == shape[2] else tuple(shape[1:])
    pair = hfgen.build_gan(architecture, args.model_size, sides, shape[0], args.latent_channels, classes, "none")
    named = dict(zip(("generator", "discriminator"), pair, strict=True))
    return {name: network for name, network in named.items() if not keep or name in keep}


def _objective(args: DistillArgs, path: Any, kind: str, classes: int | None, parts: Mapping[str, Any]) -> Any:
    """Return the objective. Raises ValueError for options that do not go together."""
    adversarial = None
    if args.adversarial_weight:
        penalties = (hfgen.R1(args.r1, every=PENALTY_EVERY),) if args.r1 else ()
        adversarial = hfgen.Adversarial("non_saturating", 1, penalties, conditional=classes is not None)
    return hfgen.Distilled(
        path,
        kind,
        args.method,
        args.alpha,
        args.last_alpha,
        args.alpha_steps,
        args.least_time,
        args.most_time,
        args.teacher_guidance_scale,
        adversarial=adversarial,
        adversarial_weight=args.adversarial_weight,
        num_classes=classes,
        **parts,
    )


def pipeline(teacher: Any, what: Lesson, networks: Mapping[str, nn.Module]) -> Any:
    """Return the pipeline that draws in one step: of the teacher's kind, or of a generator.

    Args:
        teacher: the pipeline of the teacher.
        what: the lesson.
        networks: its networks, as they are or as moving averages.
    """
    facts, draw = (teacher.config.num_classes, teacher.config.label_names), what.objective.generate
    if not isinstance(draw, OneStep):
        return hfgen.GANPipeline(networks["generator"], networks.get("discriminator"), *facts)
    scheduler = hfgen.ConsistencyScheduler.from_config(teacher.scheduler.config, start_ratio=draw.ratio)
    return teacher.with_denoiser(networks["generator"], scheduler)
