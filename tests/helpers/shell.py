"""Commands as they are printed, run in this process: `hfgen ...`, `python -m hfgen...` and `python -c ...`."""

import importlib
import itertools
import os
import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from hfgen import cli
from hfgen.command_line.recipes import recipes
from hfgen.registry import FAMILIES

SIZES = {
    **{"max_train_steps": 1, "train_batch_size": 8, "max_train_samples": 48, "eval_batch_size": 4, "num_epochs": 1},
    **{"num_samples": 70, "num_likelihood": 4, "likelihood_samples": 2, "bootstrap": 2, "num_inference_steps": 2},
    **{"num_pairs": 16, "pair_steps": 2, "pair_batch_size": 8, "latency_seconds": 0.01, "num_seeds": 1},
    **{"num_pseudo_inputs": 4, "num_importance_samples": 2, "health_samples": 20},
    **{"train_budget": "16images", "batch_sizes": "1", "dtypes": "float32", "kid_subset_size": 50},
    **{"num_calibration": 20, "false_alarm_rate": 0.1, "batch_size": 48, "resolution": 8, "neighbours": 2},
    **{"num_images": 16, "num_levels": 4, "prior_samples": 8, "prior_steps": 2},
    **{"text_steps": 2, "autoencoder_steps": 1, "autoencoder_batch_size": 8},
    **{"cases": 40, "latency": "3600s", "memory": "99GB"},  # a busy machine measures more than is asked for
}
"""Options -> sizes in tests. Nothing but sizes is substituted, and only what a command gives or `ALWAYS` names."""

FEWER = {
    "sample": {"num_samples": 12},
    "recommend": {"train_budget": "1h"},
}
"""The same for some commands alone."""

CLASSIFIER, TEXTURE = "hfgen.commands.train_classifier", "hfgen.commands.train_texture"
TRAINING = ("max_train_steps", "train_batch_size", "eval_batch_size")
ALWAYS = {
    **dict.fromkeys(("ar", "diffusion", "distill", "energy", "flow", "flow_map"), TRAINING),
    "latent": (*TRAINING, "autoencoder_steps", "autoencoder_batch_size"),
    **dict.fromkeys(("gan", "gmmn", "stylegan", "triple_gan", "vae", "vqgan", "reflow"), TRAINING),
    "classifier": ("max_train_steps", "train_batch_size"),
    "mae": ("max_train_steps", "train_batch_size"),
    "anomaly": ("max_train_steps", "train_batch_size", "false_alarm_rate"),
    "text_to_image": (*TRAINING, "num_inference_steps"),
    "unidiffuser": (*TRAINING, "num_inference_steps", "text_steps"),
    "word2vec": ("max_train_steps", "train_batch_size"),
    "compare": (
        *("train_budget", "num_samples", "num_likelihood", "bootstrap", "latency_seconds"),
        *("num_inference_steps", "batch_sizes", "dtypes"),
    ),
    "calibrate": ("num_images", "num_levels"),
    "sample": ("num_samples",),
    "evaluate": ("num_samples", "bootstrap", "kid_subset_size", "num_likelihood"),
    "explain": ("max_train_steps",),
    CLASSIFIER: ("num_epochs", "train_batch_size"),
    TEXTURE: ("max_train_steps", "train_batch_size"),
}
"""Sizes that are given in any case, by family or command."""

ALWAYS["energy"] += ("num_inference_steps",)
ALWAYS["diffusion"] += ("num_inference_steps",)
ALWAYS["flow_map"] += ("num_samples", "num_inference_steps")
ALWAYS["distill"] += ("num_samples",)
ALWAYS["reflow"] += ("num_samples", "num_pairs", "pair_steps", "pair_batch_size", "num_inference_steps")
AS_PRINTED = ("attention", "push")
"""Commands whose sizes are small, or are none."""


class Become(BaseException):
    """The end of a process that becomes another one: (module, arguments, environment)."""


def shrunk(words: Sequence[str]) -> list[str]:
    """Return a command with smaller sizes, at its end."""
    if words[:2] == ["python", "-c"]:
        return list(words)
    name = words[2] if words[1] == "train" else "anomaly" if words[1:3] == ["anomaly", "fit"] else words[1]
    name = {("anomaly", "score"): "score", ("-m", CLASSIFIER): CLASSIFIER, ("-m", TEXTURE): TEXTURE}.get(
        tuple(words[1:3]), name
    )
    if name in AS_PRINTED or "--help" in words:
        return list(words)
    always = ALWAYS.get(name, ())
    if name == "anomaly" and "--pipeline" in words:  # then nothing is trained
        always = ("false_alarm_rate",)
    if name == "latent" and not {"--from_scratch", "--config"} & set(words):  # its autoencoder is not trained here
        always = TRAINING
    if name == "calibrate" and {"npr", "sn", "ocm"} & set(words):  # a small network is trained, nothing is measured
        always = ("max_train_steps", "train_batch_size")
    given = {word.removeprefix("--").split("=")[0] for word in words if word.startswith("--")}
    wanted = {*given, *always, *(["num_pseudo_inputs"] if "vamp" in words else [])}
    more = [f"--{key}={value}" for key, value in {**SIZES, **FEWER.get(name, {})}.items() if key in wanted]
    return [*words, *more]


def output_of(words: Sequence[str]) -> Path | None:
    """Return the folder that a training writes to; None for other commands."""
    if words[:2] != ["hfgen", "train"] and words[:3] != ["hfgen", "anomaly", "fit"]:
        return None
    settings = dict(itertools.pairwise(words))
    if "--output_dir" in settings:
        return Path(settings["--output_dir"])
    recipe = recipes().get(settings.get("--config", ""))
    if recipe is not None:
        return Path(yaml.safe_load(recipe.path.read_text())["output_dir"])
    family = "anomaly" if words[1] == "anomaly" else words[2]
    groups = importlib.import_module(FAMILIES[family].door).GROUPS
    return Path(next(group.output_dir for group in groups if hasattr(group, "output_dir")))


def run(words: Sequence[str], patch) -> None:
    """Run a command in this process; fails if its status is not 0.

    Args:
        words: of the command, as a shell reads them.
        patch: pytest's monkeypatch.
    """

    def become(_, command, environment):
        place = len(command) - 1 - command[::-1].index("-m")
        raise Become(command[place + 1], command[place + 2 :], environment)

    AcceleratorState._reset_state(True)  # a process of its own has none yet, nor a precision
    with patch.context() as context:
        context.setattr(os, "execve", become)
        context.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        try:
            _run(words)
        except SystemExit as stop:
            assert stop.code in (0, None), f"{shlex.join(words)}: status {stop.code}"


def _run(words: Sequence[str]) -> None:
    if words[:2] == ["python", "-c"]:
        exec(words[2], {"__name__": "__main__"})
    elif words[:2] == ["python", "-m"]:
        importlib.import_module(words[2]).main(list(words[3:]))
    else:
        assert words[0] == "hfgen", words
        try:
            cli.main(list(words[1:]))
        except Become as process:
            importlib.import_module(process.args[0]).main(process.args[1])


def write_images(folder: Path, side: int = 8, channels: int = 1, count: int = 24, names: Sequence[str] = ()) -> None:
    """Write PNGs of blobs: `count` in each of the folders `names`, or in `folder` itself."""
    for number, name in enumerate(names or [""]):
        generator = np.random.default_rng(zlib.crc32(f"{folder.name}/{name}".encode()))
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            levels = generator.integers(0, 256, (side, side, channels), dtype=np.uint8)
            levels[number % side :: 2] //= 4
            Image.fromarray(levels.squeeze()).save(folder / name / f"{i}.png")


def write_captions(folder: Path, texts: Sequence[str]) -> None:
    """Write a file of text beside each PNG below a folder: the texts in turn."""
    for number, image in enumerate(sorted(folder.rglob("*.png"))):
        image.with_suffix(".txt").write_text(texts[number % len(texts)], encoding="utf-8")
