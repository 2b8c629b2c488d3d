"""Fine-tuning: a training that begins with the weights of a saved pipeline."""

import pytest
import torch

import hfgen
from hfgen.families.initial_weights import begin_with
from hfgen.training import train_diffusion
from tests.helpers.doors import run_door


def denoiser(num_classes, null_class=True, seed=0, kind="patch_unet", resolution=8):
    torch.manual_seed(seed)
    return hfgen.build_denoiser(kind, "xs", resolution, 1, num_classes, null_class=null_class)


def saved(folder, network, names):
    """A pipeline with classes of these names, as training saves it."""
    scheduler = hfgen.RectifiedFlowScheduler()
    pipeline = hfgen.DenoisingPipeline(network, scheduler, None if names is None else len(names), names)
    pipeline.save_pretrained(folder)
    return str(folder)


def table(network):
    return next(part for part in network.modules() if isinstance(part, torch.nn.Embedding)).weight


@pytest.mark.parametrize("kind", ["patch_unet", "dit", "unet"])
def test_rows_of_classes_go_by_name_and_the_others_begin_anew(tmp_path, capsys, kind):
    first, second = denoiser(2, kind=kind), denoiser(3, seed=1, kind=kind)
    before = table(second).detach().clone()
    begin_with(
        saved(tmp_path / "a", first, ["cat", "dog"]), tmp_path / "b", {"denoiser": second}, ["ape", "dog", "cat"]
    )
    for row, wanted in enumerate((before[0], table(first)[1], table(first)[0], table(first)[2])):
        assert torch.equal(table(second)[row], wanted)
    others = {name: value for name, value in first.state_dict().items() if value is not table(first)}
    for name, value in others.items():
        if value.shape == second.state_dict()[name].shape:
            assert torch.equal(second.state_dict()[name], value), name
    assert "new classes begin anew: ape" in capsys.readouterr().err


def test_a_network_without_classes_gives_all_but_the_table(tmp_path):
    first, second = denoiser(None), denoiser(3, seed=1)
    before = table(second).detach().clone()
    begin_with(saved(tmp_path / "a", first, None), tmp_path / "b", {"denoiser": second}, ["a", "b", "c"])
    assert torch.equal(table(second), before)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_other_architectures_and_families_are_refused(tmp_path):
    folder = saved(tmp_path / "a", denoiser(None), None)
    with pytest.raises(ValueError, match="Give the options of the network"):
        begin_with(folder, tmp_path / "b", {"denoiser": denoiser(None, kind="dit")}, None)
    with pytest.raises(ValueError, match="Give a pipeline of the same family"):
        begin_with(folder, tmp_path / "b", {"generator": denoiser(None)}, None)
    with pytest.raises(ValueError, match="would be overwritten"):
        begin_with(folder, tmp_path / "a", {"denoiser": denoiser(None)}, None)


def test_a_run_begins_with_the_weights_and_resumes_with_its_own(tmp_path, capsys):
    words = ["--dataset", "digits", "--max_train_samples", "40", "--train_batch_size", "8", "--model_size", "xs"]
    words += ["--report_to", "none", "--sample_steps", "0", "--eval_batch_size", "2", "--lr_warmup_steps", "1"]
    words += ["--lr_scheduler", "constant_with_warmup", "--checkpointing_steps", "1", "--no_use_ema"]
    first = [*words, "--max_train_steps", "1", "--output_dir", tmp_path / "a"]
    assert run_door(train_diffusion.main, capsys, *first)[0] == 0
    tiny = [*words, "--init_from", tmp_path / "a", "--learning_rate", "1e-12", "--seed", "5", "--optimizer", "adamw"]
    for folder, steps in (("b", 1), ("b", 2), ("c", 2)):
        output = ["--max_train_steps", steps, "--output_dir", tmp_path / folder]
        status, _, errors = run_door(train_diffusion.main, capsys, *tiny, *output)
        assert status == 0 and "denoiser begins with the weights of" in errors
    states = [hfgen.HFGenPipeline.from_pretrained(str(tmp_path / name)).denoiser.state_dict() for name in "abc"]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-9, rtol=0)
        assert torch.equal(states[1][name], states[2][name])
