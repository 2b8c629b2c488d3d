"""Checkpoints of hfgen 0.1, in which a discriminator carried the memory of closed-loop control."""

import torch
from safetensors.torch import load_file, save_file

from hfgen.trainer import checkpoint
from hfgen.training import train_gan
from tests.helpers.doors import run_door
from tests.helpers.toys import rows

WORDS = ["--model", "mlp", "--model_size", "xs", "--train_batch_size", "8", "--max_train_samples", "64", "--control"]
WORDS += ["0.5", "--memory_size", "32", "--health_steps", "0", "--sample_steps", "0", "--checkpointing_steps", "3"]
WORDS += ["--eval_batch_size", "4", "--logging_steps", "1", "--report_to", "none", "--lr_scheduler", "constant"]
WORDS += ["--lr_warmup_steps", "0", "--output_dir"]


def as_saved_by_0_1(folder):
    """Rewrite a checkpoint as hfgen 0.1 wrote it: the discriminator within a wrapper that holds the memory."""
    memory = load_file(folder / "state_replay.safetensors")
    (folder / "state_replay.safetensors").unlink()
    for name, prefix in (("model.safetensors", ""), ("ema_discriminator.safetensors", "module.")):
        weights = load_file(folder / name)
        own = {key for key in weights if key.startswith(prefix) and key not in ("n_averaged", "updates")}
        former = {f"{prefix}discriminator.{key.removeprefix(prefix)}": weights[key] for key in own}
        rest = {key: value for key, value in weights.items() if key not in own}
        items = memory["items"] if not prefix else torch.zeros_like(memory["items"])
        last = memory["last"] if not prefix else torch.tensor([-1, 0])
        save_file({**former, **rest, f"{prefix}memory": items, f"{prefix}last": last}, folder / name)
    (folder / "manifest.json").unlink()
    checkpoint._seal(folder)


def test_a_control_run_of_0_1_goes_on_to_the_same_bits(tmp_path, capsys):
    for name, steps in (("whole", 9), ("cut", 6)):
        assert run_door(train_gan.main, capsys, *WORDS, tmp_path / name, "--max_train_steps", steps)[0] == 0
    saved = tmp_path / "cut" / "checkpoint-6"
    assert "head.score.weight" in load_file(saved / "model.safetensors")
    as_saved_by_0_1(saved)
    status, out, message = run_door(train_gan.main, capsys, *WORDS, tmp_path / "cut", "--max_train_steps", 9)
    assert status == 0 and "Resumed from" in out, message
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    for part in ("generator", "discriminator"):
        whole, cut = (load_file(next((tmp_path / name / part).glob("*.safetensors"))) for name in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    replay = [load_file(tmp_path / name / "checkpoint-9" / "state_replay.safetensors") for name in ("whole", "cut")]
    assert torch.equal(replay[0]["items"], replay[1]["items"]) and replay[0]["items"].any()
