"""Trainings on a base: adapters with classes of their own, prior preservation, and what they refuse."""

import json
from pathlib import Path

import pytest
import torch
from hfgen.pipelines.adapter_file import ADAPTER
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import hfgen
from hfgen import cli
from hfgen.data.relabelled import RelabelledData, classes_after, labelled, relabelled
from hfgen.data.tensors import TensorData
from hfgen.families import preservation
from hfgen.families.adaptation import layers_to_adapt
from hfgen.training import train_diffusion
from hfgen.utils import pictures
from hfgen.utils.adapters import adapters_in, adapters_text, use_adapters
from tests.helpers.doors import check_refusal, check_stops, run_door


def network(classes=3, **options):
    torch.manual_seed(0)
    made = hfgen.PatchUNet2DModel(
        *(8, 1, options.pop("out_channels", 1)),
        **{"block_out_channels": (8, 16), "attention_levels": (False, True), "norm_num_groups": 4},
        **{"attention_head_dim": 8, "layers_per_block": 1, "num_class_embeds": classes, **options},
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


def save_base(folder, names=("0", "1"), scheduler=None, **options):
    made = network(None if names is None else len(names) + options.pop("null", 1), **options)
    classes = () if names is None else (len(names), list(names))
    hfgen.DenoisingPipeline(made, scheduler or hfgen.RectifiedFlowScheduler(), *classes).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "base")


WORDS = ["--dataset", "digits", "--max_train_samples", "20", "--train_batch_size", "4", "--report_to", "none"]
WORDS += ["--sample_steps", "0", "--eval_batch_size", "4", "--lr_warmup_steps", "1", "--num_inference_steps", "2"]
NEW = ["--label_column", "none", "--new_class", "seven", "--lora_rank", "2", "--max_train_steps", "5"]
NEW += ["--prior_weight", "0.5", "--prior_samples", "6", "--prior_steps", "2"]


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A folder with an adapter that has learnt a class, trained by the front door."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    train_diffusion.main([*WORDS, *NEW, "--init_from", base, "--output_dir", str(folder)])
    return folder


def test_layers_go_by_kind_and_by_name():
    made = network()
    attention = layers_to_adapt(made, "attention")
    assert attention and all("attentions" in name for name in attention)
    kinds = {kind: set(layers_to_adapt(made, kind)) for kind in ("linear", "convolutions")}
    assert set(attention) < kinds["linear"] and not kinds["linear"] & kinds["convolutions"]
    assert layers_to_adapt(made, "to_q, to_k") == [n for n in attention if n.endswith(("to_q", "to_k"))]
    assert layers_to_adapt(made, "unet.conv_in") == layers_to_adapt(made, "conv_in") == ["unet.conv_in"]
    for word in ("q", "to", "to_q,", "Attention", "unet.*"):
        with pytest.raises(ValueError, match="is no layer of PatchUNet2DModel"):
            layers_to_adapt(made, word)
    bare = nn.Sequential(nn.Embedding(2, 2), nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(ValueError, match="none that can be adapted"):
        layers_to_adapt(bare, "attention")


def test_an_adapter_is_saved_alone_and_says_what_it_is(base, trained):
    assert not (trained / "model_index.json").exists() and (trained / ADAPTER).stat().st_size < 100_000
    card = (trained / "README.md").read_text()
    for words in ("base_model: base", "- lora", 'load_lora_weights("adapter")', "LoRA of rank 2, alpha 2"):
        assert words in card
    pipeline = hfgen.HFGenPipeline.from_pretrained(base)
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor(300.0), torch.tensor([0, 1])
    with torch.no_grad():
        plain = pipeline.denoiser(x, t, label).sample
        pipeline.load_lora_weights(trained)
        assert not torch.equal(pipeline.denoiser(x, t, label).sample, plain)
        pipeline.disable_lora()
        assert torch.equal(pipeline.denoiser(x, t, label).sample, plain)
    assert pipeline.config.label_names == ["0", "1", "seven"]


def test_the_pictures_are_those_of_the_loaded_adapter(base, trained, tmp_path):
    pipeline = hfgen.HFGenPipeline.from_pretrained(base)
    pipeline.load_lora_weights(trained)
    images = pipeline(3, [0, 1, 2], 2, generator=[torch.Generator().manual_seed(i) for i in range(3)]).images
    with Image.open(trained / "samples.png") as grid:
        assert grid.tobytes() == pictures.grid(images, 1, labels=["0", "1", "seven"]).tobytes()
    words = ["--num_samples", "3", "--class_labels", "all", "--num_inference_steps", "2", "--device", "cpu"]
    cli.main(["sample", base, "--lora", str(trained), *words, "--output_dir", str(tmp_path / "x")])
    files = sorted((tmp_path / "x").iterdir())
    assert [Image.open(file).tobytes() for file in files] == [image.tobytes() for image in images]


def test_only_factors_and_the_row_of_the_new_class_learn(base, trained):
    state = load_file(trained / "checkpoint-5" / "ema_denoiser.safetensors")
    before = hfgen.HFGenPipeline.from_pretrained(base).denoiser.state_dict()
    table = next(name for name in before if name.endswith("class_embedding.weight"))
    for name, value in before.items():
        layer, _, kind = f"module.{name}".rpartition(".")
        wanted = f"{layer}.table.{kind}" if name == table else f"module.{name}"
        found = state.get(wanted, state.get(f"{layer}.base_layer.{kind}"))
        assert torch.equal(found, value), name
    rows = load_file(trained / ADAPTER)["denoiser.class_rows"]
    assert rows.shape[0] == 1 and not torch.equal(rows[0], before[table][-1])  # it began as the row of no class
    assert (rows[0] - before[table][-1]).abs().max() < 0.05


@pytest.mark.parametrize("more", [[], ["--gradient_accumulation_steps", "2"]])
def test_a_run_goes_on_exactly(base, capsys, monkeypatch, tmp_path, more):
    words = [*WORDS, *NEW, "--init_from", base, "--checkpointing_steps", "2", *more]
    stops = {3 if more else 1: 2}
    check_stops(train_diffusion.main, capsys, monkeypatch, tmp_path, words, stops)


def test_a_run_does_not_go_on_with_another_base_or_adapter(base, capsys, tmp_path):
    own = save_base(tmp_path / "own")
    words = [
        *WORDS,
        "--label_column",
        "none",
        "--new_class",
        "seven",
        "--init_from",
        own,
        "--output_dir",
        tmp_path / "x",
    ]
    assert run_door(train_diffusion.main, capsys, *words, "--lora_rank", 2, "--max_train_steps", 1)[0] == 0
    for more, why in (
        (["--lora_rank", 3], "lora_rank: 2 -> 3"),
        (["--lora_rank", 2, "--lora_targets", "to_q"], "to_q"),
    ):
        status, _, errors = run_door(train_diffusion.main, capsys, *words, *more, "--max_train_steps", 2)
        assert status == 1 and why in errors
    pipeline = hfgen.HFGenPipeline.from_pretrained(own)
    nn.init.normal_(pipeline.denoiser.unet.conv_in.weight)
    pipeline.save_pretrained(own)
    status, _, errors = run_door(train_diffusion.main, capsys, *words, "--lora_rank", 2, "--max_train_steps", 2)
    assert status == 1 and "base: " in errors


def test_samples_of_the_base_are_drawn_once_and_are_the_bases(base, trained, capsys, monkeypatch, tmp_path):
    (drawn,) = (load_file(shard) for shard in (trained / "prior").glob("*.safetensors"))
    pipeline = hfgen.HFGenPipeline.from_pretrained(base)
    again = pipeline(6, [0, 1] * 3, 2, latents=drawn["noise"], output_type="latent").images
    torch.testing.assert_close(again, drawn["images"], atol=1e-5, rtol=0)
    assert drawn["labels"].tolist() == [0, 1] * 3
    assert json.loads((trained / "prior" / "pairs.json").read_text())["prior_steps"] == 2
    monkeypatch.setattr(preservation, "AT_ONCE", 4)  # whole batches, of which six samples are used
    words = [*WORDS, *NEW, "--init_from", base, "--output_dir", tmp_path / "x"]
    assert run_door(train_diffusion.main, capsys, *words)[0] == 0
    parts = [load_file(tmp_path / "x" / "prior" / f"pairs-{n:05d}.safetensors")["images"] for n in (0, 1)]
    torch.testing.assert_close(torch.cat(parts)[:6], drawn["images"], atol=1e-5, rtol=0)


def test_damaged_samples_are_said_and_others_are_not_taken(base, capsys, tmp_path):
    words = [*WORDS, *NEW, "--init_from", base, "--output_dir", tmp_path / "x"]
    assert run_door(train_diffusion.main, capsys, *words)[0] == 0
    for checkpoint in (tmp_path / "x").glob("checkpoint-*"):
        checkpoint.rename(tmp_path / checkpoint.name)
    status, _, errors = run_door(train_diffusion.main, capsys, *words, "--prior_steps", 3)
    assert status == 2 and "prior_steps is 2 there and 3 here" in errors and "--output_dir" in errors
    next((tmp_path / "x" / "prior").glob("*.safetensors")).write_bytes(b"x")
    status, _, errors = run_door(train_diffusion.main, capsys, *words)
    assert status == 2 and "Remove it; the same command draws it again" in errors


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--lora_rank", "2"], "--lora_rank 2 does nothing without --init_from"),
        (["--prior_weight", "1"], "--prior_weight 1.0 does nothing without --init_from"),
        (["--lora_alpha", "2"], "--lora_alpha 2.0 does nothing without --lora_rank"),
        (["--lora_targets", "linear"], "--lora_targets linear does nothing without --lora_rank"),
        (["--init_from", "BASE", "--new_class", "a"], "does nothing without --lora_rank or --prior_weight"),
        (["--init_from", "BASE", "--prior_samples", "9"], "--prior_samples 9 does nothing with --prior_weight 0.0"),
        (["--init_from", "BASE", "--lora_rank", "0"], "--lora_rank 0 must be at least 1"),
        (["--init_from", "BASE", "--lora_rank", "2", "--lora_targets", "x"], "'x' is no layer of PatchUNet2DModel"),
        (["--init_from", "BASE", "--lora_rank", "2", "--optimizer", "muon"], "Use --optimizer adamw"),
        (["--init_from", "BASE", "--lora_rank", "2", "--sharding", "fsdp2"], "--lora_rank trains few weights"),
        (["--init_from", "BASE", "--lora_rank", "2", "--path", "vp"], "--path vp: the pipeline of --init_from"),
        (["--init_from", "BASE", "--lora_rank", "2", "--prediction_type", "epsilon"], "has flow_prediction"),
        (["--init_from", "BASE", "--lora_rank", "2", "--class_conditional", "no"], "has True. Leave it out"),
        (["--init_from", "BASE", "--lora_rank", "2", "--model", "dit"], "--model dit: the pipeline of --init_from"),
        (["--init_from", "BASE", "--lora_rank", "2", "--model_size", "l"], "has its own network"),
    ],
)
def test_options_that_do_not_go_together_are_refused(base, capsys, monkeypatch, tmp_path, words, why):
    words = [base if word == "BASE" else word for word in words]
    check_refusal(train_diffusion.main, capsys, monkeypatch, tmp_path / "x", words, why)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "Name their column, --label_column, or their one class: --new_class NAME"),
        (["--resolution", "16", "--new_class", "x"], "Give the data that it was trained on"),
    ],
)
def test_data_that_do_not_fit_the_base_are_refused(base, capsys, tmp_path, words, why):
    lora = ["--label_column", "none", "--init_from", base, "--lora_rank", 2, "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_diffusion.main, capsys, *WORDS, *lora, *words)
    assert status == 2 and why in errors and not (tmp_path / "x").exists()


def test_a_base_without_classes_or_of_another_family_says_so(capsys, tmp_path):
    free = save_base(tmp_path / "free", None)
    lora = ["--lora_rank", 2, "--output_dir", tmp_path / "x", "--max_train_steps", 1]
    status, _, errors = run_door(train_diffusion.main, capsys, *WORDS, *lora, "--init_from", free, "--new_class", "a")
    assert status == 2 and "has no classes. Leave it out" in errors
    assert run_door(train_diffusion.main, capsys, *WORDS, *lora, "--init_from", free)[0] == 0
    hfgen.GANPipeline(*hfgen.build_gan("mlp", "xs", 8, 1, 8)).save_pretrained(tmp_path / "gan")
    lora[3] = tmp_path / "y"
    status, _, errors = run_door(train_diffusion.main, capsys, *WORDS, *lora, "--init_from", tmp_path / "gan")
    assert status == 2 and "need a denoiser" in errors


def test_a_folder_with_a_pipeline_is_not_mixed_with_an_adapter(base, capsys, tmp_path):
    output = save_base(tmp_path / "there")
    words = [*WORDS, "--init_from", base, "--lora_rank", 2, "--output_dir", output]
    status, _, errors = run_door(train_diffusion.main, capsys, *words)
    assert status == 2 and "holds a pipeline, beside which an adapter would lie" in errors


def test_a_flow_map_is_no_base(capsys, tmp_path):
    few = save_base(tmp_path / "few", scheduler=hfgen.RectifiedFlowScheduler(solver="flow_map"), two_times=True)
    words = [*WORDS, "--init_from", few, "--lora_rank", 2, "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_diffusion.main, capsys, *words)
    assert status == 2 and "is a flow map" in errors


def test_a_pipeline_of_latents_is_adapted_elsewhere(capsys, tmp_path):
    vae = hfgen.build_autoencoder("mlp", "s", 8, 1, 4)
    hfgen.state_scale(vae, hfgen.LatentScale((0.0,) * 4, (1.0,) * 4))
    denoiser = hfgen.DiTModel(1, 4, 4, 1, hidden_size=16, num_layers=1, num_attention_heads=2)
    hfgen.LatentPipeline(denoiser, hfgen.RectifiedFlowScheduler(), vae).save_pretrained(tmp_path / "latent")
    words = [*WORDS, "--init_from", tmp_path / "latent", "--lora_rank", 2, "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_diffusion.main, capsys, *words)
    assert status == 2 and "holds a LatentPipeline; an adapter of a DenoisingPipeline is trained here" in errors


def test_path_prediction_and_network_are_the_bases(capsys, tmp_path):
    table = hfgen.DDPMScheduler(variance_type="learned_range", prediction_type="v_prediction")
    learned = save_base(tmp_path / "learned", scheduler=table, out_channels=2, null=0)
    words = [*WORDS, "--init_from", learned, "--lora_rank", 2, "--max_train_steps", 1, "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_diffusion.main, capsys, *words)
    assert status == 0, errors
    assert "path vp, prediction_type v_prediction, variance learned_range" in errors and "label_dropout 0.0" in errors
    config = (tmp_path / "x" / "config.yaml").read_text()
    assert "path: vp" in config and "class_conditional: true" in config and "optimizer: adamw" in config
    again = ["--config", tmp_path / "x" / "config.yaml", "--output_dir", tmp_path / "again"]
    assert run_door(train_diffusion.main, capsys, *again)[0] == 0
    first, second = (load_file(tmp_path / name / ADAPTER) for name in ("x", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_all_weights_learn_with_prior_preservation_and_keep_the_classes(base, capsys, tmp_path):
    words = [*NEW[:4], "--max_train_steps", "1", *NEW[8:], "--optimizer", "adamw", "--no_use_ema"]
    words += ["--init_from", base, "--output_dir", tmp_path / "x", "--learning_rate", "1e-9"]
    assert run_door(train_diffusion.main, capsys, *WORDS, *words)[0] == 0
    pipeline, before = (hfgen.HFGenPipeline.from_pretrained(str(each)) for each in (tmp_path / "x", base))
    assert pipeline.config.label_names == ["0", "1", "seven"]
    state = pipeline.denoiser.state_dict()
    for name, value in before.denoiser.state_dict().items():
        rows = [0, 1, 3] if name.endswith("class_embedding.weight") else slice(None)
        torch.testing.assert_close(state[name][rows], value, atol=1e-6, rtol=0)
    log = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["prior_loss"] > 0


def test_from_python_the_same(base, tmp_path):
    pipeline = hfgen.HFGenPipeline.from_pretrained(base)
    images = TensorData({"x": torch.rand(8, 1, 8, 8) * 2 - 1, "labels": torch.ones(8).long()}, "mine", "images")
    result = hfgen.train(
        *(network(), hfgen.Denoising(pipeline.scheduler.path, num_classes=2), images, tmp_path / "x"),
        lambda networks: hfgen.DenoisingPipeline(networks["denoiser"], pipeline.scheduler, 2, ["0", "1"]),
        **{"init_from": base, "lora_rank": 2, "lora_targets": "attention,convolutions", "max_train_steps": 1},
        **{"train_batch_size": 4, "report_to": "none", "eval_batch_size": 2, "use_ema": False},
    )
    assert result.finished and result.pipeline.get_active_adapters() == ["default"]
    pipeline.load_lora_weights(tmp_path / "x")
    mine, loaded = (dict(each.denoiser.named_parameters()) for each in (result.pipeline, pipeline))
    for name, value in mine.items():
        assert torch.equal(loaded[name.replace(".default.", ".default_0.")], value), name
    with pytest.raises(ValueError, match="lora_rank needs a pipeline"):
        hfgen.train(network(), hfgen.Denoising(pipeline.scheduler.path), images, init_from=base, lora_rank=2)


# --- classes of data --------------------------------------------------------------------------------------------------


def items(labels, names=None):
    tensors = {"x": torch.arange(len(labels)).float()[:, None]} | (
        {} if names is None else {"labels": torch.tensor(labels)}
    )
    return TensorData(tensors, "some", "items", label_names=names)


def test_known_classes_come_first_and_data_go_by_name():
    data = items([0, 1, 2, 0], ["c", "a", "d"])
    names = classes_after(["a", "b"], data)
    assert names == ["a", "b", "c", "d"]
    changed = relabelled(data, names)
    rows = torch.arange(4)
    assert changed.finish(changed.read(rows), 0, 0)["labels"].tolist() == [2, 0, 3, 2]
    assert (changed.num_classes, changed.label_names, len(changed), changed.unit) == (4, names, 4, "items")
    assert changed.fingerprint != data.fingerprint and relabelled(data, ["c", "a", "d"]) is data
    one = labelled(items([0, 0]), "x")
    assert isinstance(one, RelabelledData) and one.finish(one.read(torch.arange(2)), 0, 0)["labels"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="Two classes of the pipeline are named 'a'"):
        classes_after(["a", "a"], data)
    with pytest.raises(ValueError, match="--new_class x: some has labels, c, a, d"):
        labelled(data, "x")


def test_images_keep_their_kind_and_get_another_fingerprint():
    data = hfgen.load_images(hfgen.options.DataArgs(dataset="digits", max_train_samples=12))
    names = classes_after(["9", "8"], data)
    changed = relabelled(data, names)
    assert type(changed) is type(data) and changed.fingerprint != data.fingerprint
    assert [names[label] for label in changed.labels] == [data.label_names[label] for label in data.labels]


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a", [("a", 1.0)]),
        ("a:0.5, b:-2", [("a", 0.5), ("b", -2.0)]),
        ("someone/b:1e-1", [("someone/b", 0.1)]),
        ("C:\\x", [("C:\\x", 1.0)]),
    ],
)
def test_adapters_have_weights_after_a_colon(text, found):
    assert [tuple(each) for each in adapters_in(text)] == found


@pytest.mark.parametrize("text", ["", "a,", "a:x", "a:nan", "a:inf", ":1"])
def test_a_list_of_adapters_is_one(text):
    with pytest.raises(ValueError, match="must be adapters with their weights"):
        adapters_in(text)


def test_a_name_with_a_colon_that_exists_is_a_name(tmp_path):
    (tmp_path / "a:2").mkdir()
    assert adapters_in(str(tmp_path / "a:2")) == [(str(tmp_path / "a:2"), 1.0)]
    assert adapters_text(f"{tmp_path}:0.5") == f"{tmp_path.name}:0.5"


def test_results_of_an_adapter_belong_to_its_folder(base, trained, capsys, tmp_path):
    def evaluate(*words):
        try:
            cli.main(["evaluate", *map(str, words)])
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    few = [
        "--dataset",
        "digits",
        "--label_column",
        "none",
        "--num_samples",
        "8",
        "--metrics",
        "spectrum",
        "--num_inference_steps",
        "1",
    ]
    assert evaluate(base, "--lora", trained, *few, "--device", "cpu")[0] == 0
    entries = json.loads((trained / "metrics.json").read_text())["evaluation"]
    assert entries[0]["protocol"]["adapters"] == "adapter:1" and not (Path(base) / "metrics.json").exists()
    assert "## Results" in (trained / "README.md").read_text()
    two = evaluate(base, "--lora", f"{trained},{trained}", *few)
    assert two[0] == 2 and "Give --output" in two[1]
    lone = evaluate(trained, *few)
    assert lone[0] == 2 and "holds an adapter" in lone[1] and "--lora" in lone[1]


def test_what_takes_no_adapters_says_so(trained):
    with pytest.raises(ValueError, match="GANPipeline takes no adapters"):
        use_adapters(hfgen.GANPipeline(*hfgen.build_gan("mlp", "xs", 8, 1, 8)), str(trained))


def test_an_adapter_is_pushed_with_its_card_and_nothing_else(trained):
    from hfgen.saving.hub import files_to_push

    files = files_to_push(trained, "me/mine")
    assert ADAPTER in files and not [name for name in files if name.startswith(("checkpoint", "prior", "logs"))]
    card = files["README.md"].decode()
    assert 'load_lora_weights("me/mine")' in card and 'base = "base"' in card
