"""Models of latents: their scale, their cache, both stages with exact resume, and what learns from them."""

import json
import math
import os
import signal

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import hfgen
from hfgen import cli
from hfgen.data.block_cache import BlockCache
from hfgen.data.images import load_images
from hfgen.distributions.latents import Coded, coded, measured_scale
from hfgen.families import latent_data as latents
from hfgen.families.latent.options import LatentNoiseArgs
from hfgen.families.latent.recipe import plain
from hfgen.families.latent_data import Encoder, latent_data
from hfgen.options import DataArgs
from hfgen.training import train_distill, train_flow_map, train_latent, train_reflow
from tests.helpers.doors import check_refusal, run_door

DATA = ["--dataset", "digits", "--max_train_samples", "30"]
FEW = ["--train_batch_size", "4", "--model_size", "xs", "--lr_warmup_steps", "1", "--eval_batch_size", "4"]
FEW += ["--report_to", "none", "--sample_steps", "0", "--lr_scheduler", "constant_with_warmup"]
PLAIN = ["--perceptual", "0", "--adversarial_weight", "0", "--autoencoder_batch_size", "4"]


def kl(channels=2, **options):
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": channels}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(1, 1, sample_size=8, **sizes, **blocks, **options).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a latent pipeline whose autoencoder states its scale, and that of the autoencoder alone."""
    folder = tmp_path_factory.mktemp("latent")
    kl().save_pretrained(folder / "kl")
    words = ["--autoencoder", folder / "kl", "--measure_latents", *DATA, *FEW, "--class_conditional"]
    train_latent.main(list(map(str, [*words, "--max_train_steps", 2, "--output_dir", folder / "flow"])))
    return folder


def weights_of(folder, name="denoiser"):
    return (folder / name / "diffusion_pytorch_model.safetensors").read_bytes()


# --- scale ------------------------------------------------------------------------------------------------------------


def test_latents_of_the_training_images_have_mean_0_and_deviation_1(trained):
    pipeline = hfgen.HFGenPipeline.from_pretrained(trained / "flow")
    images = load_images(DataArgs(max_train_samples=30)).pixels(torch.arange(30))[0] / 127.5 - 1
    with torch.no_grad():
        q = pipeline.vae.encode(images).latent_dist
    shape, (mean, deviation) = (
        (1, 2, 1, 1),
        (torch.tensor(pipeline.vae.config[f"latents_{n}"]) for n in ("mean", "std")),
    )
    mu, sigma = ((q.mean - mean.view(shape)) / deviation.view(shape)).double(), (q.std / deviation.view(shape)).double()
    assert mu.mean((0, 2, 3)).abs().max() < 1e-6
    second = (mu.square() + sigma.square()).mean((0, 2, 3))
    torch.testing.assert_close(second, torch.ones(2).double(), atol=1e-5, rtol=0)
    assert pipeline.latent_scale.images == 30
    assert "measured on 30 images" in (trained / "flow/README.md").read_text(encoding="utf-8")


def test_the_scale_of_blocks_is_that_of_all_latents():
    torch.manual_seed(0)
    mean, deviation = 3 + 2 * torch.randn(50, 2, 3, 3), torch.rand(50, 2, 3, 3)
    scale = measured_scale(Coded(*part) for part in zip(mean.split(7), deviation.split(7), strict=True))
    drawn = mean + deviation * torch.randn(4000, *mean.shape)
    for channel in (0, 1):
        assert abs(scale.mean[channel] - drawn[:, :, channel].mean()) < 5e-3
        assert abs(scale.deviation[channel] - drawn[:, :, channel].double().std()) < 5e-3
    x = scale.normalise(mean)
    torch.testing.assert_close(scale.restore(x), mean)
    expected = 9 * (math.log(scale.deviation[0]) + math.log(scale.deviation[1]))
    assert scale.log_volume((2, 3, 3)) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"Channel 1 of the latents is constant"):
        measured_scale([Coded(mean * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.zeros_like(mean))])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),  # 0.18215, the default of the class, which saving writes for every autoencoder
        ({"scaling_factor": 1.0}, None),
        ({"scaling_factor": 0.5}, (0.0, 2.0)),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, (0.25, 2.0)),
        ({"scaling_factor": 1.0, "shift_factor": 0.25}, (0.25, 1.0)),
        ({"latents_mean": (1.0, 1.0), "latents_std": (3.0, 3.0)}, (1.0, 3.0)),
        ({"latents_mean": (1.0, 1.0), "latents_std": (3.0, 3.0), "scaling_factor": 0.5}, (1.0, 6.0)),
    ],
)
def test_what_a_configuration_states_as_diffusers_reads_it(options, expected, tmp_path):
    """diffusers feeds its denoisers (z - shift) * factor, or (z - mean) / std * factor."""
    kl(**options).save_pretrained(tmp_path)
    scale = hfgen.stated_scale(diffusers.AutoencoderKL.from_pretrained(tmp_path))
    assert scale is None if expected is None else [scale.mean[0], scale.deviation[0]] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["kl", "conv", "vq", "vqmodel"])
def test_a_stated_scale_is_saved_and_read_without_a_warning(kind, tmp_path, caplog):
    torch.manual_seed(0)
    network = hfgen.build_autoencoder(kind, "s", 8, 1, 1)
    assert hfgen.stated_scale(network) is None
    scale = hfgen.LatentScale((0.5, 1.0), (2.0, 3.0), 7)
    hfgen.state_scale(network, scale)
    network.save_pretrained(tmp_path)
    caplog.clear()
    assert hfgen.stated_scale(type(network).from_pretrained(tmp_path)) == scale
    assert not caplog.records


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,), (1.0, 2.0)), ((0.0, 0.0), (1.0, 0.0)), ((0.0, math.nan), (1.0, 1.0))]
)
def test_what_is_no_scale_is_refused(mean, std):
    with pytest.raises(ValueError, match=r"latents_mean=.*must be finite"):
        hfgen.LatentScale(mean, std)


def test_a_latent_model_without_statistics_is_refused(tmp_path, capsys, monkeypatch):
    kl().save_pretrained(tmp_path / "kl")
    words = ["--autoencoder", tmp_path / "kl", *FEW]
    check_refusal(train_latent.main, capsys, monkeypatch, tmp_path / "out", words, "Add --measure_latents")
    inner = hfgen.Denoising(hfgen.paths.StraightPath())
    with pytest.raises(ValueError, match=r"states no statistics of its latents.*--measure_latents"):
        hfgen.Encoded(inner, kl())
    denoiser = hfgen.build_denoiser("dit", "xs", 4, 2)
    with pytest.raises(ValueError, match=r"states no statistics of its latents"):
        hfgen.LatentPipeline(denoiser, hfgen.RectifiedFlowScheduler(), kl())


# --- the cache --------------------------------------------------------------------------------------------------------


def test_an_interrupted_encoding_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "BLOCK", 10)
    encoder = Encoder(kl(), load_images(DataArgs(max_train_samples=25)), 0)
    whole = latent_data(encoder, tmp_path / "whole")
    whole.prepare()
    compute, calls = encoder.block, []

    def interrupted(number):
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(number)

    cut = latent_data(encoder, tmp_path / "cut")
    object.__setattr__(cut.cache, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut.prepare()
    cut.prepare()
    assert calls == [0, 1, 1, 2]
    for name in ("x", "deviation", "labels"):
        assert torch.equal(cut.tensors[name], whole.tensors[name])
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes()
    with torch.no_grad():
        q = coded(encoder.autoencoder, encoder.images.pixels(torch.arange(25))[0] / 127.5 - 1)
    torch.testing.assert_close(whole.tensors["x"], q.mean)
    torch.testing.assert_close(whole.tensors["deviation"], q.deviation)


@pytest.mark.parametrize("change", ["weights", "images", "preparation", "index"])
def test_stale_latents_are_refused(change, tmp_path):
    encoder = Encoder(kl(), load_images(DataArgs(max_train_samples=8)), 0)
    latent_data(encoder, tmp_path).prepare()
    network, images, options = encoder.autoencoder, encoder.images, {}
    if change == "weights":
        network = kl()
        with torch.no_grad():
            next(network.parameters()).mul_(1.001)
    elif change == "images":
        images = load_images(DataArgs(max_train_samples=8, dataset_split="train[8:]"))
    elif change == "preparation":
        options = {"likelihood": hfgen.distributions.likelihoods.build_likelihood("bernoulli")}
    else:
        (tmp_path / "latents.json").unlink()
    message = "no latents.json" if change == "index" else rf"holds latents of another .*{change}"
    with pytest.raises(ValueError, match=message):
        latent_data(Encoder(network, images, 0, **options), tmp_path).prepare()


@pytest.mark.parametrize("damage", ["cut", "shape", "not finite", "no labels"])
def test_damaged_latents_are_named(damage, tmp_path):
    from safetensors.torch import save_file

    data = latent_data(Encoder(kl(), load_images(DataArgs(max_train_samples=8)), 0), tmp_path)
    data.prepare()
    file = data.cache.file(0)
    tensors = load_file(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        changed = {"shape": {"x": tensors["x"][:3]}, "not finite": {"deviation": -tensors["deviation"]}}
        tensors |= changed.get(damage, {})
        save_file({name: each for name, each in tensors.items() if (name, damage) != ("labels", "no labels")}, file)
    with pytest.raises(ValueError, match=r"latents-00000\.safetensors .*Remove it; the same command computes it again"):
        latent_data(Encoder(kl(), load_images(DataArgs(max_train_samples=8)), 0), tmp_path).prepare()


def test_two_caches_of_one_name_do_not_mix(tmp_path):
    one = BlockCache(tmp_path, "things", {"source": "a"}, (1,), lambda _: {"x": torch.ones(1)}, "Working", "thing")
    one.fill()
    other = BlockCache(tmp_path, "things", {"source": "b"}, (1,), lambda _: {"x": torch.zeros(1)}, "Working", "thing")
    with pytest.raises(ValueError, match=r"things of another model or options: source is a there and b here"):
        other.fill()
    assert one.load(lambda tensors, size: None)[0]["x"] == 1


# --- objective --------------------------------------------------------------------------------------------------------


def test_the_loss_of_images_is_that_of_their_normalised_latents():
    network = kl()
    hfgen.state_scale(network, hfgen.LatentScale((0.5, -1.0), (2.0, 0.5)))
    inner = hfgen.Denoising(hfgen.paths.StraightPath())
    objective, step = hfgen.Encoded(inner, network, variational=False), hfgen.objectives.base.Step(3, 1)
    denoiser, images = hfgen.build_denoiser("dit", "xs", 4, 2), torch.rand(4, 1, 8, 8) * 2 - 1
    torch.nn.init.normal_(denoiser.proj_out.weight) if hasattr(denoiser, "proj_out") else None
    with torch.no_grad():
        mean = network.encode(images).latent_dist.mean
        items = (mean - torch.tensor([0.5, -1.0]).view(1, 2, 1, 1)) / torch.tensor([2.0, 0.5]).view(1, 2, 1, 1)
        expected = inner.loss("denoiser", {"denoiser": denoiser}, {"x": items}, step).value
        got = objective.loss("denoiser", {"denoiser": denoiser}, {"x": images}, step).value
        cached = {"x": mean, "encoded": torch.ones(4, dtype=torch.bool)}
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(objective.loss("denoiser", {"denoiser": denoiser}, cached, step).value, expected)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_images_are_trained_on_from_python(tmp_path):
    network = kl()
    hfgen.state_scale(network, hfgen.LatentScale((0.0, 0.0), (1.0, 1.0)))
    objective = hfgen.Encoded(hfgen.Denoising(hfgen.paths.StraightPath()), network)
    data = hfgen.TensorData({"x": torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)})
    options = {"max_train_steps": 2, "train_batch_size": 4, "report_to": "none"}
    make = lambda networks: hfgen.LatentPipeline(networks["denoiser"], hfgen.RectifiedFlowScheduler(), network)  # noqa: E731
    result = hfgen.train(
        {"denoiser": hfgen.build_denoiser("dit", "xs", 4, 2)}, objective, data, tmp_path, make, **options
    )
    assert result.step == 2
    assert hfgen.HFGenPipeline.from_pretrained(tmp_path).sample_shape == (1, 8, 8)


# --- doors ------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_anywhere_has_the_bits_of_one_that_was_not(tmp_path, capsys, monkeypatch):
    """In the training of the autoencoder, in the middle of the encoding, and in the training of the flow."""
    monkeypatch.setattr(latents, "BLOCK", 10)
    words = ["--from_scratch", *DATA, *FEW, *PLAIN, "--checkpointing_steps", 1]

    def run(folder, autoencoder_steps=2, steps=3):
        stages = ["--autoencoder_steps", autoencoder_steps, "--max_train_steps", steps]
        return run_door(train_latent.main, capsys, *words, *stages, "--output_dir", tmp_path / folder)

    status, _, errors = run("whole")
    assert status == 0, errors
    from hfgen.trainer.training import Training

    advance, calls = Training.advance, []

    def kill_in_the_first_stage(self, step):
        advance(self, step)
        calls.append(step)
        if len(calls) == 1:
            self.write_checkpoint(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "advance", kill_in_the_first_stage)
    assert run("cut")[0] == 130
    monkeypatch.setattr(Training, "advance", advance)
    assert not (tmp_path / "cut/autoencoder/model_index.json").exists()
    block = Encoder.block
    monkeypatch.setattr(
        Encoder, "block", lambda self, n: block(self, n) if n == 0 else (_ for _ in ()).throw(OSError("x"))
    )
    assert run("cut")[0] == 2
    assert [f.name for f in (tmp_path / "cut/latents").glob("*.safetensors")] == ["latents-00000.safetensors"]
    monkeypatch.setattr(Encoder, "block", block)
    for steps in (1, 3):
        status, _, errors = run("cut", steps=steps)
        assert status == 0, errors
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    assert weights_of(tmp_path / "cut", "vae") == weights_of(tmp_path / "whole", "vae")
    configs = [json.loads((tmp_path / f / "vae/config.json").read_text(encoding="utf-8")) for f in ("cut", "whole")]
    assert configs[0]["latents_mean"] == configs[1]["latents_mean"] and configs[0]["_latents_images"] == 30
    status, _, errors = run("cut", autoencoder_steps=3)
    assert status == 2 and "autoencoder_steps is 2 there and 3 here" in errors


def test_a_dry_run_of_both_stages_leaves_nothing(tmp_path, capsys):
    words = ["--from_scratch", *DATA, *FEW, *PLAIN, "--autoencoder_steps", 4, "--max_train_steps", 4, "--dry_run"]
    status, out, errors = run_door(train_latent.main, capsys, *words, "--output_dir", tmp_path / "x")
    assert status == 0 and not (tmp_path / "x").exists(), errors
    assert "autoencoder parameters" in out and "denoiser parameters" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--autoencoder outputs/vae, or train one: --from_scratch"),
        (["--autoencoder", "x", "--from_scratch"], "--autoencoder"),
        (["--from_scratch", "--random_flip"], "Drop --streaming and --random_flip"),
        (["--kl_weight", "1"], "--kl_weight"),
        (
            ["--from_scratch", "--time_shift", "2", "--time_sampling", "uniform"],
            "--time_shift 2 moves logit-normal times",
        ),
        (["--autoencoder", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message, tmp_path, capsys, monkeypatch):
    check_refusal(train_latent.main, capsys, monkeypatch, tmp_path / "out", [*words, *FEW], message)


def test_images_of_another_shape_are_refused(trained, tmp_path, capsys):
    base = ["--autoencoder", trained / "flow", *DATA, *FEW, "--max_train_steps", 1, "--output_dir", tmp_path / "x"]
    for words, message in ((["--channels", 3], "takes images of 1 channels"), (["--resolution", 9], "8 x 8 pixels of")):
        status, _, errors = run_door(train_latent.main, capsys, *base, *words)
        assert status == 2 and message in errors
    assert not (tmp_path / "x").exists()


def test_a_signal_in_the_first_stage_ends_the_run(tmp_path, capsys, monkeypatch):
    from hfgen.trainer.training import Training

    advance = Training.advance
    monkeypatch.setattr(
        Training, "advance", lambda self, step: (advance(self, step), os.kill(os.getpid(), signal.SIGTERM))
    )
    words = ["--from_scratch", *DATA, *FEW, *PLAIN, "--autoencoder_steps", 3, "--max_train_steps", 1]
    status, _, errors = run_door(train_latent.main, capsys, *words, "--output_dir", tmp_path / "x")
    assert status == 143, errors
    assert [path.name for path in (tmp_path / "x/autoencoder").glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (tmp_path / "x/latents").exists()


def test_the_autoencoder_of_a_pipeline_of_diffusers_is_found(trained, tmp_path, capsys):
    kl(scaling_factor=0.5).save_pretrained(tmp_path / "sd/vae")
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "sd/model_index.json").write_text(json.dumps(index))
    words = ["--autoencoder", tmp_path / "sd", *DATA, *FEW, "--max_train_steps", 1, "--time_shift", 3]
    status, _, errors = run_door(train_latent.main, capsys, *words, "--output_dir", tmp_path / "out")
    assert status == 0, errors
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.latent_scale.deviation == (2.0, 2.0) and pipeline.scheduler.config.shift == 3
    with pytest.raises(ValueError, match=r"no bound on log p\(x\) holds.*states no p"):
        pipeline.bits_per_dim(torch.zeros(1, 1, 8, 8) + 1 / 255)
    # the same weights, whose latents are scaled otherwise
    config = json.loads((tmp_path / "sd/vae/config.json").read_text(encoding="utf-8"))
    (tmp_path / "sd/vae/config.json").write_text(json.dumps({**config, "scaling_factor": 0.25}))
    status, _, errors = run_door(
        train_latent.main, capsys, *words, "--max_train_steps", 2, "--output_dir", tmp_path / "out"
    )
    assert status == 1 and "data_fingerprint" in errors


def test_what_a_pipeline_with_classes_keeps_of_images_is_measured(trained, capsys):
    """Its classes are those of its noise: the autoencoder is not told them."""
    words = ["evaluate", trained / "flow", "--dataset", "digits", "--max_train_samples", 30, "--num_likelihood", 8]
    status, out, errors = run_door(cli.main, capsys, *words, "--metrics", "reconstruction")
    assert status == 0 and "reconstruction error, mse" in out, errors


def test_shifted_logit_normal_times_have_a_shifted_mean():
    """logit(s t / (1 + (s - 1) t)) = logit(t) + log s, whatever t."""
    args = LatentNoiseArgs(logit_mean=0.5)
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    shifted = 3 * t / (1 + 2 * t)
    torch.testing.assert_close(torch.logit(shifted), torch.logit(t) + math.log(3))
    assert plain(args, 3.0).logit_mean == pytest.approx(0.5 + math.log(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "words"),
    [
        (train_reflow.main, ["--num_pairs", 8, "--pair_batch_size", 4, "--pair_steps", 2]),
        (train_flow_map.main, []),
        (train_distill.main, []),
    ],
)
def test_others_learn_from_latent_pipelines_as_they_are(main, words, trained, tmp_path, capsys):
    few = [word for word in FEW if word not in ("--model_size", "xs")]
    words = ["--pipeline", trained / "flow", *words, *few, "--features", "none", "--num_samples", 8]
    status, _, errors = run_door(main, capsys, *words, "--max_train_steps", 2, "--output_dir", tmp_path / "out")
    assert status == 0, errors
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "out")
    assert type(pipeline) is hfgen.LatentPipeline and pipeline.latent_scale.images == 30
    assert weights_of(tmp_path / "out", "vae") == weights_of(trained / "flow", "vae")
    assert weights_of(tmp_path / "out") != weights_of(trained / "flow")
    assert pipeline(class_labels=[0, 1], num_inference_steps=1).images[0].size == (8, 8)
