"""Training from Python, for notebooks and scripts: the same run as from the command line, with one's own parts."""

import dataclasses
import difflib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from diffusers import ModelMixin
from torch import nn

from ..data.batches import Items
from ..data.convert import as_items
from ..models.autoencoder_with_prior import AutoencoderWithPrior
from ..models.torch_model import TorchModel
from ..objectives.base import Objective
from ..options import DataArgs, SampleArgs, TrainArgs
from ..trainer import loop
from ..trainer.loop import Result
from ..utils.arguments import argument, checked
from .adapter_options import AdapterArgs
from .adversarial_options import AdversarialTrainArgs
from .callbacks import Callback, MakePipeline, Monitor, Networks
from .compatibility import check_compatible, explaining
from .finish import Finished
from .preview import Preview
from .run import Run


@checked
def train(
    networks: nn.Module | Mapping[str, nn.Module],
    objective: Objective,
    data: Any,
    output_dir: str | os.PathLike = "outputs/run",
    pipeline: MakePipeline | Accelerator | None = None,  # an accelerator was the fifth argument in hfgen 0.1
    preview: Preview | None = None,
    callbacks: Sequence[Callback | Callable[[Networks, int], bool | None]] = (),
    monitor: Monitor | None = None,
    accelerator: Accelerator | None = None,
    complete: Callable[[Any], Finished] | None = None,
    **options: Any,
) -> Result:
    """Train networks on data for an objective, and leave a finished folder.

    The folder holds checkpoints, `metrics.jsonl`, `config.yaml`, a model card and, with a pipeline, the pipeline and
    pictures of its samples. The same call again continues from the newest checkpoint. Ctrl-C, once, saves a checkpoint
    and returns.

    Args:
        networks: a module, which becomes the objective's only player, or modules by name: the players and any others
            that the objective uses. With a pipeline, a module that is no `ModelMixin` is wrapped in `TorchModel`.
        objective: one of hfgen's, or an own subclass of `hfgen.Objective`.
        data: tensors, a data set of torch or of the `datasets` library, a folder or a name: see
            `hfgen.data.convert.as_items`.
        output_dir: the folder.
        pipeline: networks by name -> pipeline, such as `lambda networks: hfgen.DenoisingPipeline(...)`.
        preview: the pictures of the pipeline; default: a grid, scatter plot or curves of samples.
        callbacks: functions (networks, step), called every `sample_steps` steps with the networks to sample from, or
            `hfgen.Callback(every, function)`. Training stops if one returns True.
        monitor: a monitor that may start the training again, such as the one for collapsed generators.
        accelerator: of accelerate; default: made from the options.
        complete: trained pipeline -> `hfgen.Finished(pipeline, facts, evaluation)`, the pipeline to keep with facts for
            the card and with measurements of your own. Default: the trained pipeline alone.
        options: any option of `TrainArgs` and `SampleArgs` (`max_train_steps=2000`, `learning_rate=1e-3`, ...); for a
            player "discriminator", `discriminator_learning_rate`; for images, of `DataArgs` (`resolution=32`); and with
            `init_from`, of `AdapterArgs` (`lora_rank=8`): classes of the data get the numbers of the pipeline's.

    Returns:
        The result: `networks` to use (the averaged ones under EMA), `pipeline`, `step`, `finished`, `logs`.

    Raises:
        TypeError: an unknown option or one of another type; data, networks or an objective of an unknown type.
        ValueError: options, networks or data that do not go together; before training begins.
        CheckpointError: the folder holds another run's checkpoints, or a checkpoint can't be read or written.
        DivergenceError: a loss or gradient is not finite.
    """
    if isinstance(output_dir, TrainArgs):  # the arguments of hfgen 0.1
        warnings.warn(
            "hfgen.train(networks, objective, batches, args, accelerator) is now hfgen.trainer.loop.train: call that, "
            "or give hfgen.train the data, an output_dir and options by name. The former call will go.",
            FutureWarning,
            stacklevel=2,
        )
        return loop.train(networks, objective, data, output_dir, pipeline or accelerator, preview, **options)
    args, sample_args, data_args, adapter_args = _groups(options, str(output_dir))
    _check_parts(networks, objective)
    if pipeline is None:
        needing = {"lora_rank": adapter_args.lora_rank, "eval_steps": sample_args.eval_steps}
        _refuse_without_pipeline(**needing, push_to_hub=args.push_to_hub, monitor=monitor, complete=complete)
    items = as_items(data, data_args)
    data_args = dataclasses.replace(data_args, dataset=str(data) if isinstance(data, str | os.PathLike) else items.name)
    if accelerator is None:
        _forget_accelerator()
    run = Run([args, sample_args, data_args, adapter_args], data=items, accelerator=accelerator)
    run.check()
    parts = _by_name(networks, objective, run.data, wrap=pipeline is not None)
    with explaining(parts, objective, run.data):
        result = run.train(
            *(parts, objective, pipeline),
            preview or Preview(type(objective).__name__, "generative", sample_args, args.seed),
            monitor=monitor,
            callbacks=[_callback(callback, args) for callback in callbacks],
            complete=complete,
        )
    return result or Result({}, 0, False, 0.0, 0.0, {})


def _groups(options: Mapping[str, Any], output_dir: str) -> list[Any]:
    """Return the groups of options of training, samples and data. Raises TypeError for an unknown name, or for a value
    of another type."""
    groups = (AdversarialTrainArgs, SampleArgs, DataArgs, AdapterArgs)
    fields = {field.name: (group, field.type) for group in groups for field in dataclasses.fields(group)}
    del fields["dataset"]  # the argument `data`
    values: dict[type, dict[str, Any]] = {group: {} for group in groups}
    for name, value in options.items():
        if name not in fields:
            near = difflib.get_close_matches(name, {**fields, "data": None}, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Those of `hfgen train diffusion --help_all` are known."
            raise TypeError(f"hfgen.train has no option {name!r}. {hint}")
        group, kind = fields[name]
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        values[group][name] = argument(name, value, kind, choices=True)
    values[AdversarialTrainArgs]["output_dir"] = output_dir
    return [group(**values[group]) for group in groups]


def _check_parts(networks: Any, objective: Any) -> None:
    """Raise TypeError for what is no network or no objective; it says what to give."""
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective={_name_of(objective)} is no objective. Give an instance, such as hfgen.Denoising(path), or one "
            "of an own subclass of hfgen.Objective."
        )
    if isinstance(objective.players, str):
        raise TypeError(
            f"players = {objective.players!r} is a text. Write a tuple: players = ({objective.players!r},)."
        )
    modules = networks.values() if isinstance(networks, Mapping) else [networks]
    for network in modules:
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"networks hold {_name_of(network)}, which is no module. Give an nn.Module, or several by name."
            )


def _refuse_without_pipeline(**values: Any) -> None:
    """Raise ValueError for an argument that has a value, and needs a pipeline."""
    for name, value in values.items():
        if value:
            raise ValueError(f"{name} needs a pipeline, to draw samples or to save. Give pipeline=, or leave it out.")


def _name_of(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _by_name(networks: Any, objective: Objective, data: Items, wrap: bool) -> dict[str, nn.Module]:
    """Return networks by name, ready for a pipeline if `wrap`. Raises ValueError for a player that is missing, and as
    `check_compatible`."""
    players = list(dict.fromkeys(objective.players))
    if isinstance(networks, nn.Module):
        if len(players) > 1:
            raise ValueError(f"{type(objective).__name__} trains {', '.join(players)}: give networks by these names.")
        networks = {players[0]: networks}
    if missing := [name for name in players if name not in networks]:
        raise ValueError(f"{type(objective).__name__} trains {', '.join(missing)}, and networks are {list(networks)}.")
    if missing := [name for name in objective.needs if name not in networks]:
        raise ValueError(
            f"{type(objective).__name__} evaluates {', '.join(missing)}, and networks are {list(networks)}. Give it by "
            "this name; it is not trained."
        )
    check_compatible(networks, objective, data)
    kinds = ModelMixin | AutoencoderWithPrior
    classes = getattr(getattr(objective, "condition", None), "num_classes", None)
    embeds = None if classes is None else classes + (getattr(objective, "label_dropout", 0) > 0)
    ready = {
        name: network if isinstance(network, kinds) else TorchModel(network, data.item_shape, embeds)
        for name, network in networks.items()
        if name in players and wrap
    }
    return {**networks, **ready}


def _callback(callback: Any, args: TrainArgs) -> Callback:
    if isinstance(callback, Callback):
        return callback
    if not args.sample_steps:
        raise ValueError("sample_steps=0 never calls a callback; give hfgen.Callback(every, function).")
    return Callback(args.sample_steps, callback)


def _forget_accelerator() -> None:
    """Let a process train again with another precision: accelerate keeps the first one's for the whole process."""
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state()
