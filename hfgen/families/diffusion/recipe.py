"""The recipe of a denoiser: objective and scheduler for its path, and refusals of impossible options."""

import copy
import dataclasses
from collections.abc import Collection
from typing import Any

import torch

import hfgen

from ...console.notes import tell
from ...console.text import with_article
from ...data.partial_labels import facts_of
from ...models.conditions import Condition
from ...options import DataArgs, SolverArgs, TrainArgs
from ...paths import path_facts, path_from_config
from ...registry import PATHS, resolve, sampler
from ...schedulers.configuration import network_facts
from .options import DenoiserArgs, LikelihoodArgs, NoiseArgs


def on_base(
    run: Any,
    network_args: DenoiserArgs,
    noise_args: NoiseArgs,
    given: Collection[str],
    kind: str = "DenoisingPipeline",
) -> tuple[DenoiserArgs, NoiseArgs]:
    """Return the options of network and noise with which the base of an adapter was trained, and tell them; without a
    base, the given ones.

    Args:
        run: the `Run`; its options are replaced.
        network_args, noise_args: the options.
        given: names of options that the user gave.
        kind: class of the pipelines that this training has.

    Raises:
        ValueError: one of them says otherwise, or the path of the base is none that `--path` names.
    """
    if run.adaptation is None:
        return network_args, noise_args
    base, source = run.adaptation.base, run.adaptation.source
    if not isinstance(base, resolve(kind)):
        raise ValueError(
            f"{source} holds {with_article(type(base).__name__)}; an adapter of {with_article(kind)} is trained here."
        )
    if base.two_times:
        raise ValueError(f"{source} is a flow map, of whose steps this training knows nothing. Give a rectified flow.")
    facts, conditional = network_facts(base.scheduler.config), base.config.get("num_classes") is not None
    names = [name for name, config in PATHS.items() if path_facts(config) == path_facts(base.scheduler.config)]
    if not names:
        raise ValueError(f"{source} was trained on a path of its own ({facts['path']}), which --path does not name.")
    variance = "learned_range" if facts.get("variance_type") == "learned_range" else "fixed"
    known = {"path": names[0], "prediction_type": facts["prediction_type"], "variance": variance}
    known |= {"class_conditional": conditional}
    has_null = base.config.get("null_text", not conditional or base.null_label is not None)
    known |= {} if has_null else {"label_dropout": 0.0}
    fields = {field.name: field.default for field in dataclasses.fields(DenoiserArgs)}
    wanted = {**known, "model": fields["model"], "model_size": fields["model_size"]}
    values = {**dataclasses.asdict(network_args), **dataclasses.asdict(noise_args)}
    for name, value in wanted.items():
        if name in given and values[name] != value:
            has = f"has {value}" if name in known else "has its own network"
            raise ValueError(f"--{name} {values[name]}: the pipeline of --init_from {source} {has}. Leave it out.")
    if changed := {name: value for name, value in known.items() if values[name] != value}:
        tell(f"as in {source}: {', '.join(f'{name} {value}' for name, value in changed.items())}.")
    chosen = []
    for group in (network_args, noise_args):
        own = {field.name for field in dataclasses.fields(group)} & known.keys()
        chosen.append(dataclasses.replace(group, **{name: known[name] for name in own}))
        run.replace(group, chosen[-1])
    return chosen[0], chosen[1]


def check(data_args: DataArgs, network_args: DenoiserArgs, noise_args: NoiseArgs, solver_args: SolverArgs) -> None:
    """Refuse options that do not go together, before any data are read.

    Raises:
        ValueError: as `check_training`, or guidance that the network does not learn.
    """
    check_training(data_args, network_args, noise_args)
    check_guidance(solver_args.guidance_scale, network_args.class_conditional, noise_args.label_dropout)


def check_training(data_args: DataArgs, network_args: DenoiserArgs, noise_args: NoiseArgs) -> None:
    """Refuse options of the network and the objective that do not go together.

    Raises:
        ValueError: a prediction that can't be learnt on the path, parameters of other times than the default ones, or a
            resolution that the architecture does not take.
    """
    objective(noise_args)
    _check_times(noise_args)
    _check_variance(noise_args)
    if data_args.resolution is not None:
        with torch.device("meta"):
            hfgen.build_denoiser(network_args.model, network_args.model_size, data_args.resolution, 3)


def check_labels(data: Any, classes: int | None, noise_args: NoiseArgs) -> None:
    """Refuse images without a label in a training on classes that knows no "no class": a missing label is the null
    label. Raises ValueError."""
    if classes is not None and noise_args.label_dropout <= 0 and (partial := facts_of(data)) is not None:
        raise ValueError(
            f"--label_dropout 0: {partial} in {data.name}, and the others train the network without a class. Give a "
            "--label_dropout above 0."
        )


def check_guidance(scale: float, class_conditional: bool, label_dropout: float) -> None:
    """Raise ValueError for guidance of a network without classes, or of one that is not trained on the null class."""
    if scale == 1:
        return
    if not class_conditional:
        raise ValueError(f"guidance_scale={scale} needs a network that knows classes. Add --class_conditional.")
    if label_dropout <= 0:
        raise ValueError(
            f"guidance_scale={scale} needs images trained on without their class. Give --label_dropout 0.1."
        )


def times_of(args: NoiseArgs) -> str:
    """Return the distribution of times: by default the one that learns faster, where that was measured."""
    logit_normal = args.path == "straight" and args.weighting == "simple"
    return args.time_sampling or ("logit_normal" if logit_normal else "low_discrepancy")


def _check_times(args: NoiseArgs) -> None:
    """Raise ValueError for parameters of logit-normal times where these are not the default."""
    for name, idle in (("logit_mean", 0.0), ("logit_std", 1.0)):
        if (value := getattr(args, name)) != idle and times_of(args) != "logit_normal":
            raise ValueError(
                f"--{name} {value} does nothing with --path {args.path} and --weighting {args.weighting}, whose times "
                f"are {times_of(args)} by default. Leave it out, or add --time_sampling logit_normal."
            )


def _check_variance(args: NoiseArgs) -> None:
    """Raise ValueError for a learned variance of a flow, or for times by the loss without one."""
    learned = args.variance == "learned_range"
    if learned and args.path == "straight":
        raise ValueError(
            "--variance learned_range needs a diffusion path, such as --path vp: a rectified flow has no reverse steps."
        )
    if args.time_sampling == "importance" and not learned:
        raise ValueError("--time_sampling importance needs a learned variance: add --variance learned_range --path vp.")


def objective(args: NoiseArgs, num_classes: int | None = None, condition: Condition | None = None) -> Any:
    """Return the objective of these options, under classes or another condition.

    Raises:
        ValueError: a prediction that can't be learnt on the path.
    """
    options = dataclasses.asdict(args)
    times, variance, weight = times_of(args), options.pop("variance"), options.pop("vlb_weight")
    options["time_sampling"] = "uniform" if times == "importance" else times
    path = path_from_config(PATHS[options.pop("path")])
    denoising = hfgen.Denoising(path, num_classes=num_classes, condition=condition, **options)
    return denoising if variance == "fixed" else hfgen.LearnedRange(denoising, weight, times == "importance")


def check_likelihood(args: LikelihoodArgs, noise_args: NoiseArgs, train_args: TrainArgs) -> None:
    """Refuse, before any data are read, what a likelihood can't be, and say which options it makes no use of.

    Raises:
        ValueError: another path or prediction than those of a rectified flow, or activations computed again.
    """
    if args.objective != "likelihood":
        return
    for name, needed in (("path", "straight"), ("prediction_type", "flow_prediction")):
        if (value := getattr(noise_args, name)) != needed:
            raise ValueError(
                f"--objective likelihood is that of a rectified flow's ODE, and --{name} is {value}. Give --{name} "
                f"{needed}, and --init_from a model trained so."
            )
    if train_args.gradient_checkpointing:
        raise ValueError("--gradient_checkpointing does nothing with --objective likelihood. Leave it out.")
    used = ("path", "prediction_type", "label_dropout")
    idle = [field for field in dataclasses.fields(NoiseArgs) if field.name not in used]
    changed = {field.name: getattr(noise_args, field.name) for field in idle}
    named = [f"--{field.name} {changed[field.name]}" for field in idle if changed[field.name] != field.default]
    if named:  # such as those of the recipe of the model that is trained further
        tell(f"{', '.join(named)}: of denoising alone, not of --objective likelihood.")


def chosen_objective(args: LikelihoodArgs, noise_args: NoiseArgs, num_classes: int | None) -> Any:
    """Return the likelihood of the ODE, or the `objective` of denoising."""
    if args.objective == "denoising":
        return objective(noise_args, num_classes)
    dropout = noise_args.label_dropout if num_classes is not None else 0.0
    return hfgen.ContinuousLikelihood(args.likelihood_steps, num_classes=num_classes, label_dropout=dropout)


def scheduler_for(run: Any, args: SolverArgs, noise_args: NoiseArgs) -> Any:
    """Return the scheduler that draws samples: of an adapter the base's, with its time shift, unless another is named.

    Raises:
        ValueError: an unknown scheduler, or a number of steps that it does not take.
    """
    if run.adaptation is None:
        return make_scheduler(args, noise_args.path, noise_args.prediction_type, noise_args.variance)
    base = run.adaptation.base
    scheduler = base.scheduler if args.scheduler is None else base.named_scheduler(args.scheduler, base.scheduler)
    if args.num_inference_steps is not None:
        copy.deepcopy(scheduler).set_timesteps(args.num_inference_steps)
    return scheduler


def make_scheduler(args: SolverArgs, path: str, prediction_type: str, variance: str = "fixed") -> Any:
    """Return the scheduler that draws samples, for a denoiser trained on this path with this prediction and variance.

    Raises:
        ValueError: an unknown scheduler, or a number of steps that it does not take.
    """
    name = args.scheduler or ("rectified_flow" if path == "straight" else "dpmsolver++")
    cls, options = sampler(name)
    facts = {**PATHS[path], "prediction_type": prediction_type}
    facts |= {} if variance == "fixed" else {"variance_type": variance}
    scheduler = resolve(cls).from_config({**facts, **options})
    if args.num_inference_steps is not None:
        copy.deepcopy(scheduler).set_timesteps(args.num_inference_steps)
    return scheduler
