"""What happens between training steps: grids of samples, measurements, a monitor of the training, a user's own code."""

import contextlib
import math
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..console.notes import warn
from ..disk.files import OptionalWrites
from ..options import TrainArgs
from ..pipelines.outputs import NotFiniteError
from ..saving import hub
from ..trainer.loop import Result
from ..utils.arguments import checked
from .adaptation import save_trained
from .preview import Preview

Networks = dict[str, nn.Module]
MakePipeline = Callable[[Networks], Any]


class Callback:
    """Something to do every `every` steps, 0 for never, with the networks to sample from.

    Args:
        every: number of steps.
        function: called as function(networks, step) on the main process. Training stops if it returns True, and the
            same command goes on later. None: a subclass overrides `__call__`.

    Attributes:
        writes: name of files that the training does not depend on, for a note if they can't be written. None: an
            OSError ends the training.
    """

    writes: str | None = None

    @checked
    def __init__(self, every: int, function: Callable[[Networks, int], bool | None] | None = None):
        if every < 0:
            raise ValueError(f"A callback is called every {every} steps; give 1 or more, or 0 for never.")
        self.every, self.function = every, function

    def __call__(self, networks: Networks, step: int) -> bool | None:
        """Call the function with the networks after `step` steps; return True to stop the training."""
        return self.function(networks, step)

    def at_end(self, networks: Networks, step: int) -> None:
        """Run once with the finished networks; by default nothing."""


class Callbacks:
    """Several callbacks as the one that the training loop calls every `every` steps."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = [callback for callback in callbacks if callback.every]
        self.every = math.gcd(*(callback.every for callback in self.callbacks))
        self._optional = OptionalWrites()

    def __call__(self, networks: Networks, step: int) -> bool:
        """Call whichever is due; return whether one of them stops the training. Samples that are not finite, and files
        that can't be written, are a warning."""
        answers = [self._call(callback, networks, step) for callback in self.callbacks if step % callback.every == 0]
        return any(answers)

    def _call(self, callback: Callback, networks: Networks, step: int) -> bool | None:
        try:
            with self._tolerant(callback):
                return callback(networks, step)
        except NotFiniteError as error:  # while the weights are finite, the training may recover
            warn(f"no {type(callback).__name__} at step {step}: {error}")
        return None

    def at_end(self, networks: Networks, step: int) -> None:
        """Call all for the finished networks."""
        for callback in self.callbacks:
            with self._tolerant(callback):
                callback.at_end(networks, step)

    def _tolerant(self, callback: Callback) -> contextlib.AbstractContextManager:
        """Inside the block, files of this callback that can't be written are said once, if it names them."""
        return contextlib.nullcontext() if callback.writes is None else self._optional(callback.writes)


class SampleGrids(Callback):
    """Saves a grid of samples every `sample_steps` steps, and pushes the pipeline every `push_every` steps with it.

    Args:
        pipeline: networks -> pipeline.
        preview: draws the grid.
        args: the options.
    """

    def __init__(self, pipeline: MakePipeline, preview: Preview, args: TrainArgs):
        super().__init__(args.sample_steps)
        self.writes = f"{args.output_dir}/samples"
        self.pipeline, self.preview, self.args, self.output = pipeline, preview, args, Path(args.output_dir)

    def __call__(self, networks: Networks, step: int) -> None:
        """Save the grid as samples/step-N.png."""
        pipeline = self.pipeline(networks)
        picture = self.preview.grid(pipeline)
        name = f"samples/step-{step:07d}.png"
        if picture is not None:
            self.preview.write(self.output, name, picture, pipeline, self.preview.action(pipeline))
        every = self.args.push_every
        if every and step // every > (step - self.every) // every:
            pictures = {} if picture is None else {self.preview.grid_name: self.output / name}
            push_checkpoint(pipeline, pictures, step, self.args)


class Monitor(Callback, ABC):
    """A monitor of the training that may stop it. A family overrides what it needs.

    Args:
        every: number of steps between measurements.
    """

    pipeline: MakePipeline

    def __call__(self, networks: Networks, step: int) -> bool:
        """Measure; return whether to stop the training."""
        return self.measure(self.pipeline(networks), step)

    def at_end(self, networks: Networks, step: int) -> None:
        """Measure the finished networks."""
        self.measure(self.pipeline(networks), step)

    @abstractmethod
    def measure(self, pipeline: Any, step: int) -> bool:
        """Measure a pipeline; return whether to stop the training."""

    def supervise(self, train: Callable[[TrainArgs], Result], args: TrainArgs, accelerator: Any) -> Result | None:
        """Train with these options, and again with others if a measurement asks for it. All processes call this.

        Returns None for a training that was stopped.
        """
        return train(args)


def push_checkpoint(pipeline: Any, pictures: Mapping[str, Path], step: int, args: TrainArgs) -> None:
    """Push the pipeline as it is at this step, with files of pictures by the names that they get there. A failure is a
    warning: training goes on."""
    output = Path(args.output_dir)
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_trained(pipeline, folder)
            for name, path in pictures.items():
                shutil.copy(path, Path(folder, name))
            for name in ("config.yaml", "metrics.jsonl"):
                if (output / name).is_file():
                    shutil.copy(output / name, folder)
            repo = args.hub_model_id or output.resolve().name
            hub.push(Path(folder), repo, args.hub_private_repo, args.hub_token, commit_message=f"Training, step {step}")
    except Exception as error:  # a network may fail in any way, and none is worth the run
        warn(f"the push at step {step} failed ({error}). Training goes on.")
