"""Pushing a finished folder over real HTTP to a stand-in for the Hub, and drawing from what was pushed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import Hub

ROOT = Path(__file__).resolve().parents[1]

KEPT = {
    "README.md",
    "config.yaml",
    "denoiser/config.json",
    "denoiser/diffusion_pytorch_model.safetensors",
    "denoising.gif",
    "metrics.json",
    "metrics.jsonl",
    "model_index.json",
    "samples.png",
    "samples/step-0000001.png",
    "scheduler/scheduler_config.json",
}
PRIVATE = {
    ".env",
    ".cache/huggingface/token",
    ".git/config",
    ".saving-checkpoint-2/optimizer.bin",
    "checkpoint-1/ema_denoiser.safetensors",
    "checkpoint-1/model.safetensors",
    "checkpoint-1/optimizer.bin",
    "checkpoint-1/state.json",
    "denoiser/.hidden",
    "denoiser/code.py",
    "logs/hfgen/events.out.tfevents.1",
    "logs/hfgen/1/hparams.yml",
    "optimizer.bin",
    "optimizer.pt",
    "random_states_0.pkl",
    "samples/.hidden",
    "weights.ckpt",
}

MAKE = """
import sys, torch
from pathlib import Path
from hfgen import DenoisingPipeline, DiTModel, RectifiedFlowScheduler
from hfgen import hub

folder = Path(sys.argv[1])
torch.manual_seed(0)
network = DiTModel(sample_size=8, in_channels=1, out_channels=1, hidden_size=32, num_layers=1, num_attention_heads=2)
torch.nn.init.normal_(network.output.weight)
pipeline = DenoisingPipeline(network, RectifiedFlowScheduler())
pipeline.save_pretrained(folder)
noise = torch.Generator().manual_seed(0)
torch.save(pipeline(2, num_inference_steps=3, generator=noise, output_type="latent").images, sys.argv[2])
hub.write_card(folder, "T", "S", "", {"a": 1}, "hfgen train", ["diffusion"], "digits")
"""

PUSH = """
import sys
from pathlib import Path
from hfgen import hub

folder, repo, private, token = sys.argv[1:]
print(hub.push(Path(folder), repo or None, private == "private", token or None))
"""

FETCH = """
import sys, torch
from huggingface_hub import snapshot_download
from hfgen import HFGenPipeline

pipeline = HFGenPipeline.from_pretrained(snapshot_download("someone/digits"))
noise = torch.Generator().manual_seed(0)
found = pipeline(2, num_inference_steps=3, generator=noise, output_type="latent").images
assert torch.equal(found, torch.load(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a run's folder with all that a run and its user may leave in it, what it draws)."""
    home = tmp_path_factory.mktemp("made")
    folder, expected = home / "digits", home / "expected.pt"
    folder.mkdir()
    result = python(MAKE, None, home, folder, expected)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in (KEPT | PRIVATE) - {str(p.relative_to(folder)) for p in folder.rglob("*")}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"hf_secret in {name}" if name in PRIVATE else f"contents of {name}")
    return folder, expected


def python(code, hub, home, *arguments, token="writer"):
    """Run code in a fresh process that takes the stand-in for the Hub, with a home of its own."""
    gone = {"HF_HUB_OFFLINE", "HF_TOKEN", "HF_DATASETS_OFFLINE", "HUGGING_FACE_HUB_TOKEN"}
    environment = {key: value for key, value in os.environ.items() if key not in gone}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if hub is None else {"HF_ENDPOINT": hub.url}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if token:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_what_is_pushed_draws_the_same_bits_and_holds_nothing_private(hub, made, tmp_path):
    folder, expected = made
    pushed = python(PUSH, hub, tmp_path, folder, "", "private", "")
    assert pushed.returncode == 0, pushed.stderr[-3000:]
    assert pushed.stdout.splitlines()[-1] == f"{hub.url}/someone/digits"  # the folder's name, for the token's owner
    repo = hub.repos["someone/digits"]
    assert repo["private"]
    assert set(repo["files"]) == KEPT
    for name, content in repo["files"].items():
        assert content == (folder / name).read_bytes()
        assert b"hf_secret" not in content
    assert not any(b"hf_secret" in content for content in hub.objects.values())

    commits, uploads = list(repo["commits"]), sum(path.startswith("/upload/") for _, path in hub.calls)
    again = python(PUSH, hub, tmp_path, folder, "someone/digits", "private", "writer", token=None)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.splitlines()[-1] == f"{hub.url}/someone/digits"
    assert repo["commits"] == commits  # nothing new: no commit, no upload
    assert sum(path.startswith("/upload/") for _, path in hub.calls) == uploads

    fetched = python(FETCH, hub, tmp_path, expected)
    assert fetched.returncode == 0, fetched.stderr[-3000:]
    stranger = python(FETCH, hub, tmp_path / "stranger", expected, token=None)
    assert stranger.returncode != 0  # private it is


@pytest.mark.parametrize(
    ("token", "why"), [(None, "token"), ("wrong", "token"), ("reader", "no right to write")], ids=str
)
def test_a_push_that_is_not_allowed_says_why_in_one_line(hub, made, tmp_path, token, why):
    done = python(PUSH, hub, tmp_path, made[0], "someone/other", "", "", token=token)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: ") and "someone/other" in last and why in last and "hf auth login" in last
    assert "someone/other" not in hub.repos


def test_a_public_repository_is_what_one_gets_without_asking(hub, made, tmp_path):
    done = python(PUSH, hub, tmp_path, made[0], "group/public", "", "")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not hub.repos["group/public"]["private"]


def test_a_folder_without_a_pipeline_is_not_pushed(hub, tmp_path):
    from hfgen import hub as pushing

    before = len(hub.calls)
    with pytest.raises(ValueError, match=r"holds no pipeline \(no model_index\.json\); train one first"):
        pushing.push(tmp_path, "someone/empty")
    assert len(hub.calls) == before


def test_what_would_be_pushed_can_be_asked_beforehand(made):
    from hfgen.hub import to_push

    assert {str(path.relative_to(made[0])) for path in to_push(made[0])} == KEPT
