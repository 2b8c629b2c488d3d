"""One training, from options to a finished folder: what every front door and `hfgen.train` share."""

import contextlib
import dataclasses
import functools
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..console.endings import (
    FAILED,
    REFUSED,
    catch_signals,
    is_lack_of_memory,
    lack_of_memory,
    release_signals,
    status_of,
)
from ..console.notes import own_console, say_error, tell
from ..console.watching import in_main_process
from ..data.batches import Batches, Items, RepeatedBatches
from ..data.images import load_images
from ..data.tensors import digest_of
from ..disk.files import DamagedFileError, WriteError
from ..disk.lock import FolderLock
from ..options import (
    DataArgs,
    Parsed,
    SampleArgs,
    TrainArgs,
    as_dict,
    check_ranges,
    refuse_idle,
    resumable,
    save_config,
)
from ..saving import hub
from ..trainer import checkpoint
from ..trainer.log import DivergenceError, TrackerError
from ..trainer.loop import Result, check_rates, steps_in, train
from ..utils.seeds import seed_initialisation
from .accelerator import RunError, precision_of, prepare_data, start
from .adaptation import Adaptation, check_training, with_defaults
from .adapter_options import AdapterArgs
from .best_checkpoint import Evaluation
from .callbacks import Callback, Callbacks, MakePipeline, Monitor, SampleGrids
from .compatibility import check_pipeline
from .estimate import estimate
from .finish import Finished, finish
from .former_defaults import keep_former_defaults
from .identity import identity_of, revision
from .initial_weights import InitialWeights, load_base
from .preservation import preserving
from .preview import Preview
from .trained_data import record_data

Networks = Mapping[str, nn.Module]

OURS = (checkpoint.CheckpointError, DivergenceError, TrackerError, RunError, torch.OutOfMemoryError)
OURS += (WriteError, DamagedFileError)
"""Errors of a training whose message is all that a user needs."""


class Run:
    """One training, from options to a finished folder.

    A front door is `with Run(parsed, FAMILY) as run:`. Inside the block, an error about options, data or folders
    becomes one line on standard error and exit status 2; one of the training itself becomes one line and status 1. A
    training that a signal stopped has the signal's status: it left no pipeline. The run goes on when nobody reads its
    output any more. Without `with`, as in a notebook, errors are raised.
    One run at a time writes to a folder; another one is refused.

    Args:
        groups: dataclasses of options, a `TrainArgs` among them; `DataArgs` and `SampleArgs` if the family has them.
        family: its name on the command line, for the card's command; None for a training from Python.
        data: what to train on; default: the images that `DataArgs` names, read when `data` is first used.
        accelerator: places, shards and synchronises; default: made from the options when it is first used.
    """

    def __init__(
        self,
        groups: Sequence[Any],
        family: str | None = None,
        data: Items | None = None,
        accelerator: Accelerator | None = None,
    ):
        self._given = groups.given if isinstance(groups, Parsed) else frozenset()
        groups = with_defaults(groups, self._given)
        self.family, self._options = family, tuple(groups)
        args = _one_of(groups, TrainArgs)
        self.args = dataclasses.replace(args, mixed_precision=precision_of(args))
        self.groups = tuple(self.args if group is args else group for group in groups)
        self.data_args, self.sample_args = _one_of(groups, DataArgs), _one_of(groups, SampleArgs)
        self._adapter_args = _one_of(groups, AdapterArgs)
        self.output = Path(self.args.output_dir)
        self._phase, self._lock, self._stopped = "setup", FolderLock(self.output), None
        if data is not None:
            self.data = data
        if accelerator is not None:
            self.accelerator = accelerator

    def __enter__(self) -> "Run":
        own_console()
        catch_signals()
        try:
            self.check()
            if self._is_main() and not self.args.dry_run:
                self._lock.acquire()
        except (ValueError, OSError) as error:
            release_signals()
            self._exit(error, REFUSED)
        seed_initialisation(self.args.seed)  # a door may make networks before it uses the accelerator, which seeds too
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._lock.release()
        release_signals()
        if isinstance(error, KeyboardInterrupt):  # a second Ctrl-C, which did not wait for the checkpoint
            self._exit("interrupted: run the same command again to go on from what is saved.", status_of(signal.SIGINT))
        if isinstance(error, ValueError | OSError) and self._phase != "training" and not isinstance(error, WriteError):
            self._exit(error, REFUSED)
        if isinstance(error, OURS):
            self._exit(error, FAILED)
        if (line := lack_of_memory(error)) is not None:
            self._exit(line, FAILED)
        if error is None and self._stopped is not None:
            raise SystemExit(status_of(self._stopped))

    def _exit(self, error: object, status: int) -> None:
        """End the process with this status; the main one prints the error in a line."""
        if self._is_main():
            say_error(error)
        raise SystemExit(status) from None

    def _is_main(self) -> bool:
        """Return whether this is the main process, without making an accelerator."""
        return self.accelerator.is_main_process if "accelerator" in self.__dict__ else in_main_process()

    @contextlib.contextmanager
    def _only_writer(self) -> Iterator[None]:
        """Inside the block, no other run writes to the folder."""
        with contextlib.nullcontext() if self._lock.held or not self._is_main() else self._lock:
            yield

    def check(self) -> None:
        """Raise ValueError for options that have no effect or are out of range, before anything is read."""
        groups = *self._options, self.args
        note = keep_former_defaults(groups, self.output, self.args.resume_from_checkpoint, self._given)
        if note is not None:
            tell(note)
        check_ranges(*self._options)
        refuse_idle(*self._options)  # as they were given: a precision of the launcher is no option to refuse
        check_training(self._adapter_args, self.args)
        _ = self._beginning  # refused before data are read
        if self.adaptation is not None and "data" in self.__dict__:  # given, not read
            self.data = self.adaptation.data_of(self.data)

    def replace(self, group: Any, chosen: Any) -> None:
        """Put the options `chosen`, whose defaults depend on the data, in place of the group that was given."""
        self.groups = tuple(chosen if each is group else each for each in self.groups)

    @functools.cached_property
    def accelerator(self) -> Accelerator:
        """The accelerator for these options. Making it also seeds torch, so that networks start the same everywhere."""
        return start(self.args)

    @functools.cached_property
    def data(self) -> Items:
        """The images that the options name, read by the main process first so that the others find its cache.

        Raises:
            ValueError: the family has no options of images; its door gives `train` the data.
        """
        if not any(isinstance(group, DataArgs) for group in self.groups):
            raise ValueError("This run has no DataArgs that name images. Give Run(...) or train(...) the data.")
        data = self.load(self.data_args)
        return data if self.adaptation is None else self.adaptation.data_of(data)

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.accelerator.num_processes

    def load(self, args: DataArgs, own: bool = True) -> Items:
        """Load the images of these options, the main process first. `own`: they were given for these images."""
        with self.accelerator.main_process_first():
            return load_images(args, own=own)

    def num_classes(self, conditional: bool) -> int | None:
        """Return the number of classes that networks are told of; None if not `conditional`.

        Raises:
            ValueError: the data have no labels.
        """
        if conditional and self.data.num_classes is None:
            raise ValueError(f"{self.data.name} has no labels for --class_conditional; name them: --label_column.")
        return self.data.num_classes if conditional else None

    def batches(self, data: Items) -> Batches | RepeatedBatches:
        """Return the training batches of this process; with `overfit_batch`, those of the first step for ever."""
        args, accelerator = self.args, self.accelerator
        batches = Batches(
            data,
            args.train_batch_size,
            args.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            device=accelerator.device,
            num_workers=self.data_args.dataloader_num_workers,
        )
        return RepeatedBatches(batches, args.gradient_accumulation_steps) if args.overfit_batch else batches

    def train(
        self,
        networks: Networks | Callable[[], Networks],
        objective: Any,
        pipeline: MakePipeline | None = None,
        preview: Preview | None = None,
        data: Items | Batches | None = None,
        monitor: Monitor | None = None,
        callbacks: Sequence[Callback] = (),
        grids: Preview | None = None,
        complete: Callable[[Any], Finished] | None = None,
        reserve: Callable[[Any], float] | None = None,
    ) -> Result | None:
        """Train, and leave a finished folder: pipeline, pictures, figures, card; push it if the options say so.

        Args:
            networks: by name, the objective's players and others that serve; or a function that makes them, for a
                monitor that starts again.
            objective: what the players learn.
            pipeline: networks -> pipeline. Without one there are no samples, and the networks are saved by themselves.
            preview: what is shown of the pipeline; default: `Preview`.
            data: what to train on; default: the run's data.
            monitor: watches the training, and may stop it or start it again.
            callbacks: called between steps.
            grids: what is shown while training; default: `preview`.
            complete: trained pipeline -> `Finished`, the pipeline to keep with its figures; called on the main process.
                Default: the trained pipeline itself.
            reserve: trained pipeline -> seconds of what counts as training besides its steps, such as the fit of a
                prior, which it tries out. Called under `max_train_seconds`, so that all fits into the time.

        Returns:
            The result, with the pipeline on the main process if the training is finished. None after `dry_run`, and if
            the monitor ended the training.

        Raises:
            ValueError: options or data do not fit.
            CheckpointError, DivergenceError, RunError, torch.OutOfMemoryError: of the training.
        """
        data = self.data if data is None else data
        make = self._begun(networks, objective.players, pipeline, data)
        batches = data if hasattr(data, "iterate") else self.batches(data)
        check_rates(self.args, objective.players)
        steps_in(self.args, batches, objective.batches_per_step)
        source = self.data if data is batches else data
        preview = preview or Preview("Model", "generative", self.sample_args, self.args.seed)
        made = None if pipeline is None or callable(networks) else pipeline(networks)
        check_pipeline(made, objective)
        build = None if pipeline is None else lambda networks: record_data(self, pipeline(networks), source)
        between = Callbacks([*self._callbacks(build, grids or preview, monitor), *callbacks])
        if self.args.dry_run:
            return estimate(make(), *self._preserving(objective, batches), self.args, self.accelerator)
        with self._only_writer():
            checkpoint.find(self.output, self.args.resume_from_checkpoint)  # before a network is compiled or moved
            prepare_data(source if data is batches else data, self.accelerator)
            objective, batches = self._preserving(objective, batches)
            rehearse = None if reserve is None else lambda trained: reserve(pipeline(trained))

            def attempt(args: TrainArgs) -> Result:
                return self._train(make(), objective, batches, args, between, rehearse)

            supervise = attempt if monitor is None else lambda args: monitor.supervise(attempt, args, self.accelerator)
            result = supervise(self.args)
            if result is None:  # a signal came when no step was running
                self._stopped = self._stopped or signal.SIGTERM
            if result is None or not result.finished or not self.accelerator.is_main_process:
                return result
            self._phase = "completion"
            made = None if build is None else build(result.networks)
            finished = Finished(made) if complete is None else complete(made)
            return dataclasses.replace(result, pipeline=self.finish(finished, preview, source, result))

    def finish(self, finished: Finished, preview: Preview, data: Items, result: Result | None = None) -> Any:
        """Save a finished pipeline with pictures, figures, configuration and card; push it if the options say so.

        `result` is None where nothing was trained. Returns the pipeline.
        """
        self._phase = "training"
        record_data(self, finished.pipeline, data)
        if result is None:
            save_options(self.output, self.config)
        finish(finished, preview, data, result, self.args, self.config, self.family)
        return finished.pipeline

    def _begun(self, networks: Any, players: Any, pipeline: MakePipeline | None, data: Any) -> Callable[[], Networks]:
        """Return a function that makes the networks of a training as the options say that they begin."""
        make = networks if callable(networks) else lambda: networks
        for beginning in filter(None, (self._beginning, self.adaptation)):
            make = beginning.given_to(make, players, pipeline, data)
        return make

    def _preserving(self, objective: Any, batches: Any) -> tuple[Any, Any]:
        return preserving(objective, batches, self.adaptation, self.args, self.accelerator)

    @property
    def stopped(self) -> int:
        """The number of the signal that stopped the training, SIGTERM if something else did."""
        return self._stopped or signal.SIGTERM

    @functools.cached_property
    def adaptation(self) -> Adaptation | None:
        """The training on a base, the pipeline of `--init_from`: an adapter, or prior preservation; else None."""
        keeps = self._adapter_args.keeps_base and self.args.init_from is not None
        return Adaptation(self._adapter_args, self.args.init_from, self.base) if keeps else None

    @functools.cached_property
    def base(self) -> Any:
        """The pipeline of `--init_from`, loaded when it is first used; None: the option is not given."""
        return load_base(self.args.init_from, self.output)

    @functools.cached_property
    def _beginning(self) -> InitialWeights | None:
        """The weights of `--init_from`; None: the run has none, or goes on with its own."""
        resumes = self.args.resume_from_checkpoint not in ("latest", "none") or checkpoint.checkpoints(self.output)
        needless = resumes and not self._adapter_args.keeps_base  # a run on a base needs it to go on, too
        return None if self.args.init_from is None or needless else InitialWeights(self.args.init_from, self.base)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The resolved options with the number of processes, for checkpoints, config.yaml and the card."""
        return {**as_dict(*self.groups), "num_processes": self.accelerator.num_processes}

    def _callbacks(self, pipeline: MakePipeline | None, preview: Preview, monitor: Monitor | None) -> list[Callback]:
        if monitor is not None:
            monitor.pipeline = pipeline
        if pipeline is None:
            return [] if monitor is None else [monitor]
        grids = [SampleGrids(pipeline, preview, self.args)]
        if self.sample_args.eval_steps:
            grids.append(Evaluation(pipeline, preview, self.sample_args, self.args.seed, self.data, self.output))
        return [*grids, *([] if monitor is None else [monitor])]

    def _begin(self) -> None:
        """Write config.yaml: nothing refuses the run any more. Errors from here on are no errors of its options."""
        save_options(self.output, self.config)
        self._phase = "training"

    def _train(
        self, networks: Networks, objective: Any, batches: Any, args: TrainArgs, between: Callbacks, rehearse: Any
    ) -> Result:
        """Run the training loop once; a finished one ends with the callbacks' last calls."""
        about = {"data_fingerprint": batches.fingerprint, "versions": {**hub.versions(), **revision()}}
        if (order := getattr(batches, "order", None)) is not None:
            about["data_order"] = order
        frozen = {name: network for name, network in networks.items() if name not in objective.players}
        about["frozen_networks"] = {name: digest_of(dict(each.named_parameters())) for name, each in frozen.items()}
        if self.adaptation is not None:
            about["base"] = digest_of(self.adaptation.network.state_dict())
        if self.family is None:  # from Python the options do not name networks and objective
            about |= {"objective": identity_of(objective), "networks": identity_of(networks)}
        args = dataclasses.replace(args, sample_steps=between.every)
        try:
            result = train(
                *(networks, objective, batches, args, self.accelerator, between),
                config={**self.config, **about},
                begin=self._begin,
                resumable=resumable(*self.groups),
                rehearse=rehearse,
            )
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            raise torch.OutOfMemoryError(
                f"out of memory ({error}).\nLower --train_batch_size {args.train_batch_size} to "
                f"{max(1, args.train_batch_size // 2)} with --gradient_accumulation_steps "
                f"{2 * args.gradient_accumulation_steps} (the same result), or add --gradient_checkpointing or "
                "--mixed_precision bf16."
            ) from error
        if result.finished and self.accelerator.is_main_process:
            between.at_end(result.networks, result.step)
        self._stopped = None if result.finished else result.signal
        if not result.finished and self.world > 1:  # the signal may have come to another process
            self._stopped = result.signal or signal.SIGTERM
        return result


def _one_of(groups: Sequence[Any], kind: type) -> Any:
    """Return the instance of `kind` among option groups, one of defaults where there is none."""
    return next((group for group in groups if isinstance(group, kind)), None) or kind()


def save_options(output: Path, config: Mapping[str, Any]) -> None:
    """Write config.yaml, with which the same front door repeats the run: all options, without num_processes."""
    save_config(output / "config.yaml", {name: value for name, value in config.items() if name != "num_processes"})
