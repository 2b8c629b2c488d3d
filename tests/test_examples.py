"""The examples: each is read by its own language, and the training in it is one that the launcher and hfgen accept."""

import re
import shlex
import shutil
import subprocess

import pytest
import yaml
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
