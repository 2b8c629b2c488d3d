"""Front doors run in this process, and laws that hold for several of them."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image

from hfgen import HFGenPipeline, cli
from hfgen.data.batches import Batches
from hfgen.families import run as training
from hfgen.serving.revision import revision_of
from hfgen.utils import pictures
from hfgen.utils.provenance import GENERATED, read_provenance

ACTIONS = {"samples.png": "generate", "reconstructions.png": "reconstruct", "traversal.png": "traversal"}
ACTIONS |= {"completions.png": "complete", "modes.png": "modes", "mixing.png": "mix", "edits.png": "edit"}
"""What a pipeline did for the pictures of a finished training."""


def run_door(main: Callable, capsys, *words: object) -> tuple[int, str, str]:
    """Run a front door with these arguments; return exit status, stdout and error output."""
    try:
        main(list(map(str, words)))
        status, message = 0, ""
    except SystemExit as stop:
        status, message = (stop.code, "") if isinstance(stop.code, int | None) else (1, stop.code)
    streams = capsys.readouterr()
    return status, streams.out, streams.err + message


def check_refusal(main: Callable, capsys, monkeypatch, folder: Path, words: list, message: str) -> None:
    """Check that with these arguments a door ends in one line with this message, reads no data and leaves no folder."""

    def load(*_):
        raise AssertionError("data were read")

    monkeypatch.setattr(training, "load_images", load)
    status, _, errors = run_door(main, capsys, *words, "--output_dir", folder)
    assert status == 2 and message in errors and errors.startswith("error: ")
    assert not folder.exists()


def file_contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a folder by their relative paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_stops(
    main: Callable, capsys, monkeypatch, folder: Path, words: list, stops: Mapping[int, int]
) -> list[dict[str, bytes]]:
    """Compare pictures and weights of an uninterrupted run with those of a run that is stopped and continued.

    Files of checkpoint-4 are left out: it depends on the stops whether they exist.

    Args:
        main, words: the front door and its arguments.
        folder: gets the runs `whole/run` and `cut/run`.
        stops: {number of the micro-batch that sends the signal: step after which the run stops}.

    Returns:
        The file contents of both runs.
    """
    finish = Batches._finish

    def finish_and_stop(self, number, *batch):
        if number in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, number, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "_finish", finish_and_stop)
        for step in stops.values():
            status, out, _ = run_door(main, capsys, *words, "--output_dir", folder / "cut" / "run")
            assert status == 128 + signal.SIGTERM and f"Stopped at step {step}; the same command goes on" in out
    for name in ("whole", "cut"):
        assert run_door(main, capsys, *words, "--output_dir", folder / name / "run")[0] == 0
    whole, cut = (file_contents(folder / name / "run") for name in ("whole", "cut"))
    same = [name for name in whole if name.endswith((".png", ".gif", ".safetensors")) and "checkpoint-4" not in name]
    assert len(same) >= 6 and not [name for name in same if whole[name] != cut[name]]
    return [whole, cut]


def check_saved_grid(folder: Path, work: Path) -> None:
    """Compare six samples of a saved pipeline with its samples.png, three per row, and with those of `hfgen sample`."""
    images = HFGenPipeline.from_pretrained(folder)(6, generator=[torch.Generator().manual_seed(i) for i in range(6)])
    with Image.open(folder / "samples.png") as grid:
        assert grid.tobytes() == pictures.grid(images.images, 3).tobytes()
    assert read_provenance(folder / "samples.png")["seed"] == "0 to 5"
    cli.main(["sample", str(folder), "--num_samples", "6", "--output_dir", str(work / "samples"), "--device", "cpu"])
    samples = [Image.open(path).tobytes() for path in sorted((work / "samples").iterdir())]
    assert samples == [image.tobytes() for image in images.images]


def check_pictures(folder: Path) -> None:
    """Check the pictures of a finished training: those of samples say the model, and the last ones the revision that
    loading the folder gives; curves, and images of the data under colours, say nothing."""
    pipeline = HFGenPipeline.from_pretrained(folder)
    for path in [*folder.glob("*.png"), *folder.glob("samples/*.png")]:
        said = read_provenance(path)
        if path.name in ("loss.png", "health.png", "anomalies.png"):
            assert said == {}, path
            continue
        assert (said.get("model"), said.get("digital_source_type")) == (type(pipeline).__name__, GENERATED), path
        assert path.parent != folder or said["revision"] == revision_of(pipeline), path
        assert path.parent != folder or said["action"] == ACTIONS[path.name], path
        assert ("seed" in said) == (said["action"] == "generate"), path
