"""Fine-tuning: a training that begins with the weights of a saved pipeline."""

import pytest
import torch
from torch import nn

import hfgen
from hfgen.families.initial_weights import InitialWeights, load_base
from hfgen.training import train_diffusion, train_distill, train_flow_map, train_reflow
from tests.helpers.doors import check_refusal, run_door


class Named:
    """Data that have names of classes alone."""

    def __init__(self, label_names):
        self.label_names = label_names


class Text:
    """Data that have words."""

    label_names = None

    def __init__(self, words):
        self.words = words


def denoiser(num_classes, null_class=True, seed=0, kind="patch_unet", resolution=8, size="xs"):
    torch.manual_seed(seed)
    return hfgen.build_denoiser(kind, size, resolution, 1, num_classes, null_class=null_class)


def denoising(network, names):
    scheduler = hfgen.RectifiedFlowScheduler()
    return hfgen.DenoisingPipeline(network, scheduler, None if names is None else len(names), names)


def saved(folder, network, names):
    """A pipeline with classes of these names, as training saves it."""
    denoising(network, names).save_pretrained(folder)
    return str(folder)


PLAYERS = ("generator", "discriminator")


def begin(source, output, networks, names=None, pipeline=None, players=None):
    """Begin with the weights of a folder, as a training does."""
    data = names if isinstance(names, Text) else Named(names)
    begun = InitialWeights(str(source), load_base(str(source), output)).given_to(
        lambda: networks, players or networks, pipeline, data
    )
    assert begun() is networks


def table(network):
    return next(part for part in network.modules() if isinstance(part, nn.Embedding)).weight


@pytest.mark.parametrize("kind", ["patch_unet", "dit", "unet"])
def test_rows_of_classes_go_by_name_and_the_others_begin_anew(tmp_path, capsys, kind):
    first, second = denoiser(2, kind=kind), denoiser(3, seed=1, kind=kind)
    before = table(second).detach().clone()
    folder = saved(tmp_path / "a", first, ["cat", "dog"])
    begin(folder, tmp_path / "b", {"denoiser": second}, ["ape", "dog", "cat"])
    for row, wanted in enumerate((before[0], table(first)[1], table(first)[0], table(first)[2])):
        assert torch.equal(table(second)[row], wanted)
    others = {name: value for name, value in first.state_dict().items() if value is not table(first)}
    for name, value in others.items():
        if value.shape == second.state_dict()[name].shape:
            assert torch.equal(second.state_dict()[name], value), name
    assert "new classes begin anew: ape" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["residual", "dcgan", "resnet", "mlp"])
def test_each_table_of_classes_goes_by_name(kind):
    """Gains, shifts and projections of a GAN, whose names say nothing of classes."""
    pairs = [hfgen.build_gan(kind, "xs", 8, 1, 8, 2) for _ in range(2)]
    for pair in pairs:
        for part in pair:
            for value in part.parameters():
                nn.init.normal_(value)
    pipeline, networks = hfgen.GANPipeline(*pairs[0], 2, ["cat", "dog"]), dict(zip(PLAYERS, pairs[1], strict=True))
    weights = InitialWeights("a", pipeline)  # with its discriminator, which is not saved
    weights.given_to(lambda: networks, PLAYERS, None, Named(["dog", "cat"]))()
    for first, second in zip(*pairs, strict=True):
        tables = [(n, p.weight) for n, p in first.named_modules() if isinstance(p, nn.Embedding)]
        assert tables
        for name, weight in tables:
            turned = torch.cat([weight[:2].flip(0), weight[2:]])
            assert torch.equal(second.get_submodule(name).weight, turned), name


class Own(nn.Module):
    """A network of one's own, with a table of classes."""

    def __init__(self, classes):
        super().__init__()
        self.rows, self.last = nn.Embedding(classes, 2), nn.Linear(2, 2)


def test_rows_of_an_own_network_go_by_name():
    first, second = (hfgen.TorchModel(Own(3), (2,), 3) for _ in range(2))
    weights = InitialWeights("a", denoising(first, ["cat", "dog"]))
    weights.given_to(lambda: {"denoiser": second}, ["denoiser"], None, Named(["dog", "cat"]))()
    values = [next(part for part in each.modules() if isinstance(part, Own)) for each in (first, second)]
    assert torch.equal(values[1].rows.weight, values[0].rows.weight[[1, 0, 2]])
    assert torch.equal(values[1].last.weight, values[0].last.weight)


def test_rows_of_a_classifier_go_by_name(tmp_path):
    first, second = (hfgen.NoisyClassifierModel(8, 1, 2, block_out_channels=(8, 16)) for _ in range(2))
    scheduler = hfgen.DDIMScheduler(prediction_type="v_prediction")
    hfgen.NoisyClassifierPipeline(first, scheduler, 2, ["cat", "dog"]).save_pretrained(tmp_path / "a")
    begin(tmp_path / "a", tmp_path / "b", {"classifier": second}, ["dog", "cat"])
    assert torch.equal(second.out.weight, first.out.weight.flip(0))
    assert torch.equal(second.out.bias, first.out.bias.flip(0))
    assert torch.equal(second.conv_in.weight, first.conv_in.weight)


def test_vectors_go_by_word(tmp_path, capsys):
    first, second = hfgen.WordVectorsModel(3, 4), hfgen.WordVectorsModel(15, 4)
    hfgen.WordVectorsPipeline(first, ["a", "b", "c"]).save_pretrained(tmp_path / "a")
    before = second.input.weight.detach().clone()
    words = [*(f"w{number}" for number in range(13)), "c", "a"]
    begin(tmp_path / "a", tmp_path / "b", {"vectors": second}, Text(words))
    assert torch.equal(second.input.weight[13:], first.input.weight[[2, 0]])
    assert torch.equal(second.input.weight[:13], before[:13])
    assert "new words begin anew: w0, w1" in (error := capsys.readouterr().err) and "and 3 more" in error


def test_networks_have_the_place_of_their_pipeline(tmp_path, capsys):
    """A player may have another name than its component, or be a part of another module."""
    first, second = (hfgen.build_energy("dit", "xs", 8, 1) for _ in range(2))
    scheduler = hfgen.GradientDescentScheduler()
    hfgen.EnergyPipeline(first, scheduler).save_pretrained(tmp_path / "a")
    begin(
        tmp_path / "a",
        tmp_path / "b",
        {"energy": second, "judge": nn.Linear(1, 1)},
        pipeline=lambda networks: hfgen.EnergyPipeline(networks["energy"], scheduler),
    )
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert "judge begins anew" in (error := capsys.readouterr().err) and "energy_model begins with" in error


def test_a_part_of_a_network_that_no_pipeline_holds_begins_anew(tmp_path, capsys):
    """Such as the pseudo-inputs of a VampPrior, which a saved pipeline has as a mixture."""

    class Both(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.prior, self.loss = network, nn.Linear(1, 1), nn.MSELoss()

    first, second = denoiser(None), Both(denoiser(None, seed=1))
    folder, made = saved(tmp_path / "a", first, None), lambda networks: denoising(networks["both"].network, None)
    begin(folder, tmp_path / "b", {"both": second}, pipeline=made)
    assert all(map(torch.equal, first.state_dict().values(), second.network.state_dict().values()))
    assert "both.prior begins anew" in (error := capsys.readouterr().err) and "both.loss" not in error


def test_a_network_that_is_not_trained_stays_as_it_is(tmp_path):
    first, second, teacher = denoiser(None), denoiser(None, seed=1), nn.Linear(1, 1)
    folder, networks = saved(tmp_path / "a", first, None), {"denoiser": second, "teacher": teacher}
    begin(folder, tmp_path / "b", networks, players=("denoiser",))
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_a_network_without_classes_gives_all_but_the_table_and_takes_all_but_it(tmp_path):
    first, second, third = denoiser(None), denoiser(3, seed=1), denoiser(None, seed=2)
    before = table(second).detach().clone()
    begin(saved(tmp_path / "a", first, None), tmp_path / "b", {"denoiser": second}, ["a", "b", "c"])
    assert torch.equal(table(second), before)
    begin(saved(tmp_path / "c", second, ["a", "b", "c"]), tmp_path / "b", {"denoiser": third}, ["a", "b", "c"])
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value) and torch.equal(third.state_dict()[name], value), name


def test_other_architectures_and_families_are_refused(tmp_path):
    folder = saved(tmp_path / "a", denoiser(None), None)
    with pytest.raises(ValueError, match="is a PatchUNet2DModel in the saved pipeline, and a DiTModel in"):
        begin(folder, tmp_path / "b", {"denoiser": denoiser(None, kind="dit")})
    with pytest.raises(ValueError, match=r"has the shape .* Give the options of the network"):
        begin(folder, tmp_path / "b", {"denoiser": denoiser(None, size="s")})
    with pytest.raises(ValueError, match="Give a pipeline of the same family"):
        begin(folder, tmp_path / "b", {"generator": denoiser(None)})
    with pytest.raises(ValueError, match=r"--init_from .* would be overwritten"):
        begin(folder, tmp_path / "a", {"denoiser": denoiser(None)})


def test_a_deeper_network_does_not_lose_its_layers(tmp_path):
    shape = {"sample_size": 8, "in_channels": 1, "hidden_size": 16, "num_attention_heads": 2, "patch_size": 2}
    deep, shallow = (hfgen.DiTModel(**shape, num_layers=layers) for layers in (3, 2))
    folder = saved(tmp_path / "a", deep, None)
    with pytest.raises(ValueError, match="no such weights in this training"):
        begin(folder, tmp_path / "b", {"denoiser": shallow})


def test_settings_that_differ_are_told(tmp_path, capsys):
    """Weights of the same shapes mean something else with them."""
    first, second = (hfgen.build_energy("dit", "xs", 8, 1, form) for form in ("dot", "scalar"))
    scheduler = hfgen.GradientDescentScheduler()
    hfgen.EnergyPipeline(first, scheduler).save_pretrained(tmp_path / "a")
    begin(tmp_path / "a", tmp_path / "b", {"energy_model": second})
    assert "form was 'dot', and is 'scalar' now" in capsys.readouterr().err
    for kind in ("dit", "patch_unet"):
        hfgen.EnergyPipeline(hfgen.build_energy(kind, "xs", 8, 1), scheduler).save_pretrained(tmp_path / kind)
        begin(tmp_path / kind, tmp_path / "b", {"energy_model": hfgen.build_energy(kind, "xs", 8, 1)})
        assert " was " not in capsys.readouterr().err


@pytest.mark.parametrize("door", [train_reflow, train_distill, train_flow_map])
def test_what_begins_with_its_pipeline_refuses_another(door, capsys, monkeypatch, tmp_path):
    words = ["--pipeline", "outputs/a", "--init_from", "outputs/b"]
    check_refusal(door.main, capsys, monkeypatch, tmp_path / "x", words, "--init_from outputs/b")


def test_a_run_begins_with_the_weights_and_resumes_with_its_own(tmp_path, capsys):
    words = ["--dataset", "digits", "--max_train_samples", "40", "--train_batch_size", "8", "--model_size", "xs"]
    words += ["--report_to", "none", "--sample_steps", "0", "--eval_batch_size", "2", "--lr_warmup_steps", "1"]
    words += ["--lr_scheduler", "constant_with_warmup", "--checkpointing_steps", "1", "--no_use_ema"]
    first = [*words, "--max_train_steps", "1", "--output_dir", tmp_path / "a"]
    assert run_door(train_diffusion.main, capsys, *first)[0] == 0
    tiny = [*words, "--init_from", tmp_path / "a", "--learning_rate", "1e-12", "--seed", "5", "--optimizer", "adamw"]
    for folder, steps, told in (("b", 1, True), ("b", 2, False), ("c", 2, True)):
        output = ["--max_train_steps", steps, "--output_dir", tmp_path / folder]
        status, _, errors = run_door(train_diffusion.main, capsys, *tiny, *output)
        assert status == 0 and ("denoiser begins with the weights of" in errors) == told
    states = [hfgen.HFGenPipeline.from_pretrained(str(tmp_path / name)).denoiser.state_dict() for name in "abc"]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-9, rtol=0)
        assert torch.equal(states[1][name], states[2][name])
    (tmp_path / "a").rename(tmp_path / "gone")  # a run that goes on needs it no more
    output = ["--max_train_steps", 2, "--output_dir", tmp_path / "b"]
    assert run_door(train_diffusion.main, capsys, *tiny, *output)[0] == 0
    check = [*words, "--init_from", tmp_path / "a", "--max_train_steps", 1, "--output_dir", tmp_path / "d"]
    status, _, errors = run_door(train_diffusion.main, capsys, *check)
    assert status == 2 and str(tmp_path / "a") in errors and not (tmp_path / "d").exists()
