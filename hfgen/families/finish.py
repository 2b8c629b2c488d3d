"""The folder that a training leaves: pipeline or networks, pictures, figures and a card."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

from ..console.notes import say_next, warn
from ..console.text import with_article
from ..data.batches import Items
from ..data.partial_labels import facts_of, num_unlabelled
from ..data.training_data import describe
from ..disk.files import OptionalWrites, write_json, write_picture
from ..disk.saves import replacing_files
from ..metrics import report
from ..models.torch_model import TorchModel
from ..options import TrainArgs
from ..saving import hub
from ..saving.card import OUTCOME, TASK, write_card
from ..trainer.loop import Result
from ..utils import pictures
from ..utils.arguments import checked
from .adaptation import adapter_of, save_trained
from .estimate import hardware, parameters, peak_memory
from .preview import Preview, command
from .timelapse import save_timelapse

CARD_OPTIONS = ("optimizer", "learning_rate", "train_batch_size", "mixed_precision", "seed")
"""Options that every card shows, beside those of its preview."""

SHOWN_CLASSES = 50
"""Classes whose names a card lists, at most."""


@checked
@dataclasses.dataclass(frozen=True)
class Finished:
    """A pipeline to keep, with what is known of it.

    Attributes:
        pipeline: the pipeline; None where networks are saved by themselves.
        facts: rows for the card and metrics.json: a text for each name.
        evaluation: measurements with their protocols, as `hfgen evaluate` writes them.
        seconds: of what counts as training after its steps, such as the fit of a prior.
    """

    pipeline: Any
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    evaluation: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0


def finish(
    finished: Finished,
    preview: Preview,
    data: Items,
    result: Result | None,
    args: TrainArgs,
    config: Mapping[str, Any],
    family: str | None,
) -> None:
    """Save a finished pipeline with its pictures, figures and card; push it if the options say so; print what to do
    next.

    Args:
        finished: the pipeline and what is known of it.
        preview: its pictures.
        data: what it was trained on.
        result: of the training; None if nothing was trained.
        args: the options.
        config: all resolved options.
        family: its name on the command line; None for a training from Python.
    """
    output, pipeline = Path(args.output_dir), finished.pipeline
    captions = save_networks(output, result.networks) if pipeline is None else save_pipeline(output, pipeline, preview)
    if pipeline is not None and result is not None and config.get("timelapse"):
        captions |= save_timelapse(output, result.step, output / preview.grid_name)
    parts = result.networks if pipeline is None else pipeline.components
    networks = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module) and parameters(part)}
    figures = write_metrics(result, args, networks, getattr(data, "unit", "items"))
    plan = {} if result is None or result.plan is None else {"plan": result.plan}
    fitted = {"fitting_seconds": round(finished.seconds, 2)} if finished.seconds else {}
    figures = {**figures, **fitted, **plan, "measured": dict(finished.facts)}
    write_json(output / "metrics.json", figures)
    if finished.evaluation:
        report.write(output / "metrics.json", finished.evaluation)
    with OptionalWrites()("loss.png"):
        if losses := pictures.read_losses(output / "metrics.jsonl"):
            write_picture(output / "loss.png", pictures.curves(losses))
    own = own_networks(parts, without_pipeline=pipeline is None)
    adapter = adapter_of(pipeline)
    card = {**_card(pipeline, preview, data, figures, config, family, own), "base": adapter.get("base")}
    write_card(output, **card, pictures={name: text for name, text in captions.items() if "." in name})
    push(args)
    steps = "" if result is None else f": {result.step} steps in {result.seconds:.0f} s of training"
    what = "the adapter" if adapter else "the pipeline" if pipeline is not None else "the networks"
    files = ", ".join([*captions, "README.md (model card)", "metrics.json", what])
    print(f"\nDone{steps}. In {output}/:\n  {files}")
    use = [preview.adapter_command(config["init_from"], output)] if adapter else []
    commands = [] if own else use or preview.commands(pipeline, output)
    logged = result is not None and args.report_to == "tensorboard"
    logs = [command("tensorboard", "--logdir", output / "logs")] if logged else []
    say_next([*commands, *logs])


def save_pipeline(output: Path, pipeline: Any, preview: Preview) -> dict[str, str]:
    """Save a pipeline and its pictures; return captions by file name."""
    save_trained(pipeline, output)
    with OptionalWrites()("the pictures of the model card"):
        return preview.save(pipeline, output)
    return {}


def save_networks(output: Path, networks: Mapping[str, torch.nn.Module]) -> dict[str, str]:
    """Save each network's weights as <name>.safetensors, which are those of one save; return captions by file name."""
    with replacing_files(output, "networks") as draft:
        for name, network in networks.items():
            save_model(network, str(draft / f"{name}.safetensors"))
    return {f"{name}.safetensors": "" for name in networks}


def write_metrics(
    result: Result | None, args: TrainArgs, networks: Mapping[str, torch.nn.Module], unit: str
) -> dict[str, Any]:
    """Return what the training cost and where its losses ended; little where nothing was trained."""
    versions = {"versions": hub.versions()}
    if result is None:
        return versions
    return {
        "steps": result.step,
        f"{unit}_seen": result.items_seen,
        "training_seconds": round(result.seconds, 3),  # of a step or two, never 0
        f"{unit}_per_second": round(result.items_seen / max(result.seconds, 1e-9), 1),
        **{f"final_{name}": value for name, value in result.logs.items() if "loss" in name},
        "parameters": {name: parameters(network) for name, network in networks.items()},
        "peak_memory_mib": round(peak_memory() / 2**20),
        "hardware": hardware(),
        "mixed_precision": args.mixed_precision,
        "ema": args.use_ema,
        **versions,
    }


def _card(
    pipeline: Any,
    preview: Preview,
    data: Items,
    figures: Mapping[str, Any],
    config: Mapping[str, Any],
    family: str | None,
    own: Mapping[str, str],
) -> dict[str, Any]:
    """Return the arguments of `write_card`; `own` are the classes of own networks by name."""
    conditional = pipeline is not None and pipeline.config.get("num_classes") is not None
    kind = with_article(preview.kind)
    unit = getattr(data, "unit", "items")
    facts: dict[str, Any] = {
        "data": getattr(data, "description", type(data).__name__),
        **describe(getattr(pipeline, "training_data", None)),
        "classes": class_list(data) if conditional else "not used",
        **{f"{name} ": f"{part:,} parameters" for name, part in figures.get("parameters", {}).items()},
        **({} if pipeline is None else preview.facts(pipeline)),
    }
    if "steps" in figures:
        facts |= {
            "trained for": f"{figures['steps']:,} steps, {figures[f'{unit}_seen']:,} {unit}",
            "time": f"{figures['training_seconds']:.0f} s on {figures['hardware']}",
        }
    facts |= adapter_of(pipeline)
    facts |= figures["measured"]
    if "steps" in figures:
        facts["weights"] = "exponential moving average" if figures["ema"] else "as trained"
    facts |= {key.replace("_", " "): config[key] for key in (*preview.card_options, *CARD_OPTIONS) if key in config}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    images = unit == "images"
    return {
        "title": f"{preview.title} on {getattr(data, 'name', 'own data')}",
        "summary": f"{kind[0].upper()}{kind[1:]} model{' with classes' if conditional else ''}, trained with hfgen.",
        "call": None if pipeline is None else preview.example(pipeline),
        "facts": facts,
        "command": None if family is None else f"hfgen train {family} --config config.yaml",
        "tags": [preview.kind.replace(" ", "-")],
        "data": config.get("dataset", getattr(data, "name", "")),
        "licence": config["hub_license"],
        "task": preview.task or (TASK if images else None),
        "outcome": preview.outcome or (OUTCOME if images else "[0]"),
        "unit": unit,
        "own_networks": own,
    }


def class_list(data: Items) -> str:
    """Return the number of classes and their names, of many the first; numbers alone where they have no other names."""
    names = data.label_names or []
    rest = f"; {facts_of(data)}" if num_unlabelled(data) else ""
    if names == [str(i) for i in range(len(names))]:
        return f"{data.num_classes}: numbers from 0 to {data.num_classes - 1}{rest}"
    return f"{data.num_classes}: {', '.join(names[:SHOWN_CLASSES])}{', ...' * (len(names) > SHOWN_CLASSES)}{rest}"


def own_networks(parts: Mapping[str, Any], without_pipeline: bool) -> dict[str, str]:
    """Return the names of the parts whose code the user has, with the name of the class of each: the modules in
    `TorchModel`, or all networks that are saved without a pipeline."""
    modules = {name: part.module if isinstance(part, TorchModel) else part for name, part in parts.items()}
    own = {name: part for name, part in modules.items() if without_pipeline or part is not parts[name]}
    return {name: type(part).__name__ for name, part in own.items()}


def push(args: TrainArgs) -> None:
    """Push the finished folder if the options say so. A failure leaves the folder, and says how to try again."""
    if not args.push_to_hub:
        return
    try:
        print("Pushed to", hub.push(Path(args.output_dir), args.hub_model_id, args.hub_private_repo, args.hub_token))
    except Exception as error:  # whatever the network did, the model is saved
        warn(f"the push failed ({error}). The pipeline is in {args.output_dir}.")
