"""The examples: each is read by its own language, and the training in it is one that the launcher and hfgen accept."""

import importlib.util
import json
import random
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.distributed.run import get_args_parser

from tests.helpers.commands import assert_parses
from tests.helpers.toys import ROOT

SLURM, KUBERNETES = ROOT / "examples" / "slurm.sh", ROOT / "examples" / "kubernetes.yaml"


def documents():
    """The Service and the Job."""
    return list(yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8")))


def pod():
    return documents()[1]["spec"]["template"]["spec"]


def command_of(text):
    """Return the words of the command of torchrun in a text of a shell."""
    text = text[text.index("torchrun ") :].replace("\\\n", " ")
    return shlex.split(text.splitlines()[0])


COMMANDS = {
    "slurm": command_of(SLURM.read_text(encoding="utf-8")),
    "kubernetes": command_of(pod()["containers"][0]["args"][0]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_launcher_and_training_take_their_options(name):
    words = COMMANDS[name]
    assert_parses(words)
    launcher = get_args_parser().parse_args(words[1:])
    assert launcher.training_script == "training/train_diffusion.py" and launcher.rdzv_backend == "c10d"
    assert launcher.max_restarts > 0 and launcher.nproc_per_node == "8"
    assert "--sharding" in words and "--output_dir" in words


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_of_slurm_is_one_of_bash():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    text = SLURM.read_text(encoding="utf-8")
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.M))
    assert directives["ntasks-per-node"] == "1"  # a launcher a node
    assert directives["gpus-per-node"] == get_args_parser().parse_args(COMMANDS["slurm"][1:]).nproc_per_node
    assert directives["signal"].startswith("TERM@")  # to the steps, which save
    assert text.index("#SBATCH --signal") < text.index("set -euo")  # Slurm reads up to the first command


def test_pods_find_each_other_and_share_their_disk():
    service, job = documents()
    launcher = get_args_parser().parse_args(COMMANDS["kubernetes"][1:])
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod()["subdomain"] == service["metadata"]["name"]
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"  # the name of an indexed Job's pod
    assert job["spec"]["completionMode"] == "Indexed" and launcher.rdzv_endpoint == first
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(launcher.nnodes)
    (container,) = pod()["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(launcher.nproc_per_node)
    volumes = {volume["name"] for volume in pod()["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_both_restart_with_a_new_store():
    """Without this, processes that start again read the addresses of those before them: see docs/scaling.md."""
    variable = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    assert {"name": variable, "value": "1"} in pod()["containers"][0]["env"]
    assert f"{variable}=1" in SLURM.read_text(encoding="utf-8")


# --- scenes of two digits ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    path = ROOT / "examples" / "two_digit_scenes.py"
    spec = importlib.util.spec_from_file_location("two_digit_scenes", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_captions_of_scenes_are_true_and_those_held_out_are_never_shown(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--output_dir", str(tmp_path), "--num_train", "200", "--num_test", "90"])
    monkeypatch.setattr(
        scenes, "digits", lambda split: {digit: np.full((1, 14, 14), 25 * digit + 5) for digit in range(10)}
    )
    scenes.main()
    lists = {kind: (tmp_path / f"prompts_{kind}.txt").read_text().splitlines() for kind in ("seen", "held_out")}
    assert len(lists["seen"]) == 180 and len(lists["held_out"]) == 20
    assert {line[2] for line in lists["held_out"]} == {line[-1] for line in lists["held_out"]} == set("0123456789")
    for split, count in (("train", 200), ("test", 100)):
        lines = [json.loads(line) for line in (tmp_path / split / "captions.jsonl").read_text().splitlines()]
        shown = {line["text"] for line in lines}
        assert len(lines) == count and shown <= {*lists["seen"], *(lists["held_out"] if split == "test" else ())}
        for line in lines:
            pixels = np.asarray(Image.open(tmp_path / split / line["file_name"]), int)
            first, second = int(line["text"][2]), int(line["text"][-1])
            halves = (pixels[:, :14], pixels[:, 14:]) if "left" in line["text"] else (pixels[:14], pixels[14:])
            assert [half.max() for half in halves] == [25 * first + 5, 25 * second + 5]


def test_fidelity_knows_right_scenes_from_wrong_ones(scenes, monkeypatch):
    """Real digits in their places, and with their order turned."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fidelity = importlib.import_module("text_fidelity").fidelity
    known, source = scenes.digits("test"), random.Random(0)
    shown = [scene for scene in scenes.SCENES if scene.first != scene.second][::9]
    images = np.stack([scenes.draw(scene, known, source) for scene in shown])
    x = torch.from_numpy(images)[:, None].float() / 127.5 - 1
    assert fidelity(x, [scene.caption for scene in shown]) > 0.9
    turned = [scene._replace(first=scene.second, second=scene.first).caption for scene in shown]
    assert fidelity(x, turned) < 0.1
