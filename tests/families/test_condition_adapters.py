"""Fine-tuning of models of texts and of latents: whole weights and adapters."""

import shlex

import pytest
import torch
from hfgen.pipelines.adapter_file import ADAPTER
from PIL import Image

import hfgen
from hfgen import cli
from hfgen.training import train_diffusion, train_latent, train_text_to_image
from tests.helpers.captions import write_captioned
from tests.helpers.doors import check_refusal, check_stops, run_door

FEW = [
    *("--train_batch_size", 4, "--lr_warmup_steps", 1, "--eval_batch_size", 4, "--num_inference_steps", 2),
    *("--report_to", "none", "--sample_steps", 0, "--lr_scheduler", "constant_with_warmup"),
]
TEXTS, NEW_TEXTS = ["a dark cat", "a bright dog"], ["a grey zebra", "a dark cat", "two zebras at night"]
DIGITS = ["--dataset", "digits", "--max_train_samples", 20]
AUTOENCODER = ["--from_scratch", "--perceptual", 0, "--adversarial_weight", 0, "--autoencoder_steps", 2]


def main_of(door, *words):
    door.main([str(word) for word in (*FEW, *words)])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folders of images with captions, of models of texts whose encoder has learnt, of latents and of pixels."""
    home = tmp_path_factory.mktemp("bases")
    for name, texts in (("data", TEXTS), ("new", NEW_TEXTS)):
        (home / name).mkdir()
        write_captioned(home / name, texts)
    words = ["--model_size", "xs", "--max_train_steps", 2]
    main_of(train_text_to_image, "--dataset", home / "data", *words, "--output_dir", home / "text")
    latent = [*DIGITS, *AUTOENCODER, "--autoencoder_batch_size", 4, "--class_conditional"]
    main_of(train_latent, *latent, *words, "--output_dir", home / "latent")
    main_of(train_diffusion, *DIGITS, *words, "--output_dir", home / "pixels")
    return home


def text_words(home, output, *words):
    return ["--dataset", home / "new", "--init_from", home / "text", "--output_dir", output, *words]


def latent_words(home, output, *words):
    return [*DIGITS, "--init_from", home / "latent", "--output_dir", output, *words]


def loaded(folder):
    pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def states(folder, part):
    return getattr(loaded(folder), part).state_dict()


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **{"atol": 0, "rtol": 0, **tolerance})


# --- texts ------------------------------------------------------------------------------------------------------------


def test_a_model_of_texts_begins_with_the_weights_and_the_words_of_another(home, tmp_path):
    """At a rate of almost nothing it ends with what it began with."""
    rate = ["--learning_rate", 1e-12, "--model_size", "xs", "--max_train_steps", 1]
    main_of(train_text_to_image, *text_words(home, tmp_path / "run", *rate))
    same(states(tmp_path / "run", "denoiser"), states(home / "text", "denoiser"), atol=1e-8)
    same(states(tmp_path / "run", "text_encoder"), states(home / "text", "text_encoder"))
    for file in ("tokenizer/tokenizer.json", "text_encoder/model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (home / "text" / file).read_bytes()
    assert loaded(tmp_path / "run").config.max_length == loaded(home / "text").config.max_length


def test_its_encoder_learns_if_asked(home, tmp_path):
    words = ["--train_text_encoder", "--model_size", "xs", "--max_train_steps", 4]
    main_of(train_text_to_image, *text_words(home, tmp_path / "run", *words))
    before, after = (states(folder, "text_encoder") for folder in (home / "text", tmp_path / "run"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("q_proj" in name for name in changed), changed
    same(before, after, atol=0.05)


@pytest.mark.parametrize("more", [["--model_size", "xs"], ["--model_size", "xs", "--train_text_encoder"]])
def test_a_fine_tuning_on_texts_goes_on_exactly(home, capsys, monkeypatch, tmp_path, more):
    words = ["--dataset", home / "new", "--init_from", home / "text", *FEW, *more, "--max_train_steps", 3]
    check_stops(train_text_to_image.main, capsys, monkeypatch, tmp_path, [*words, "--checkpointing_steps", 1], {1: 2})


def test_an_adapter_on_texts_is_saved_alone_and_draws_as_its_next_line_says(home, capsys, tmp_path, monkeypatch):
    words = text_words(home, tmp_path / "adapter", *FEW, "--lora_rank", 2, "--max_train_steps", 2)
    status, out, errors = run_door(train_text_to_image.main, capsys, *words)
    assert status == 0, errors
    assert (tmp_path / "adapter" / ADAPTER).is_file() and not (tmp_path / "adapter/model_index.json").exists()
    pipeline = loaded(home / "text")
    draw = {"num_inference_steps": 2, "output_type": "pt"}

    def drawn():
        return pipeline("a grey zebra", generator=torch.Generator().manual_seed(0), **draw).images

    plain = drawn()
    pipeline.load_lora_weights(tmp_path / "adapter")
    assert not torch.equal(drawn(), plain)
    pipeline.disable_lora()
    assert torch.equal(drawn(), plain)
    (line,) = [line.strip() for line in out.splitlines() if line.strip().startswith("hfgen sample")]
    assert "--lora" in line and "--prompt 'a grey zebra'" in line
    monkeypatch.chdir(tmp_path)
    cli.main(shlex.split(line)[1:])
    assert Image.open(tmp_path / "grid.png").size[0] > 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text_encoder", "x"], "--text_encoder x does nothing with --init_from"),
        (["--max_length", 5], "--max_length 5 does nothing with --init_from"),
        (["--vocab_size", 300], "--vocab_size 300 does nothing with --init_from"),
        (["--lora_rank", 2, "--train_text_encoder"], "--train_text_encoder"),
        (["--train_text_encoder", "--states_dir", "x"], "--states_dir x does nothing"),
        (["--lora_rank", 2, "--path", "vp"], "has straight. Leave it out."),
        (["--lora_rank", 2, "--prior_weight", 1], "--prior_weight 1.0 does nothing"),
        (["--lora_rank", 2, "--new_class", "x"], "--new_class x does nothing"),
    ],
)
def test_what_a_model_of_texts_can_not_be_trained_with_is_refused(home, capsys, monkeypatch, tmp_path, words, message):
    own = ["--dataset", home / "new", "--init_from", home / "text", *words]
    check_refusal(train_text_to_image.main, capsys, monkeypatch, tmp_path / "run", own, message)


def test_an_encoder_learns_only_on_a_base(capsys, monkeypatch, tmp_path):
    words = ["--train_text_encoder"]
    check_refusal(train_text_to_image.main, capsys, monkeypatch, tmp_path / "run", words, "--train_text_encoder")


@pytest.mark.parametrize("rank", [[], ["--lora_rank", 2]])
def test_a_base_of_another_kind_is_refused(home, capsys, tmp_path, rank):
    words = ["--dataset", home / "new", "--init_from", home / "pixels", *FEW, *rank, "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_text_to_image.main, capsys, *words, "--max_train_steps", 1)
    assert status == 2 and "holds a DenoisingPipeline" in errors and "TextToImagePipeline" in errors


# --- latents ----------------------------------------------------------------------------------------------------------


def test_latents_are_those_of_the_base(home, tmp_path):
    """No autoencoder is named: it is that of the pipeline. At a rate of almost nothing the denoiser is, too."""
    words = latent_words(home, tmp_path / "run", "--class_conditional", "--model_size", "xs")
    main_of(train_latent, *words, "--learning_rate", 1e-12, "--max_train_steps", 1)
    same(states(tmp_path / "run", "vae"), states(home / "latent", "vae"))
    same(states(tmp_path / "run", "denoiser"), states(home / "latent", "denoiser"), atol=1e-8)


def test_an_adapter_on_latents_learns_a_class_of_its_own(home, capsys, tmp_path):
    words = latent_words(home, tmp_path / "adapter", *FEW, "--lora_rank", 2, "--max_train_steps", 2)
    status, _, errors = run_door(train_latent.main, capsys, *words, "--label_column", "none", "--new_class", "mine")
    assert status == 0, errors
    pipeline = loaded(home / "latent")
    known = list(pipeline.config.label_names)
    draw = {"num_inference_steps": 2, "output_type": "pt", "class_labels": "3"}
    plain = pipeline(generator=torch.Generator().manual_seed(0), **draw).images
    pipeline.load_lora_weights(tmp_path / "adapter")
    assert pipeline.config.label_names == [*known, "mine"]
    assert pipeline(2, class_labels="mine", num_inference_steps=2).images[0].size == (8, 8)
    pipeline.unload_lora_weights()
    assert torch.equal(pipeline(generator=torch.Generator().manual_seed(0), **draw).images, plain)


def test_an_adapter_on_latents_goes_on_exactly(home, capsys, monkeypatch, tmp_path):
    words = [*DIGITS, "--init_from", home / "latent", *FEW, "--lora_rank", 2, "--max_train_steps", 3]
    check_stops(train_latent.main, capsys, monkeypatch, tmp_path, [*words, "--checkpointing_steps", 1], {1: 2})


def test_an_adapter_on_latents_keeps_the_shift_of_the_base(home, capsys, tmp_path):
    pipeline = loaded(home / "latent")
    pipeline.scheduler = type(pipeline.scheduler).from_config({**pipeline.scheduler.config, "shift": 2.5})
    pipeline.save_pretrained(tmp_path / "base")
    words = [*DIGITS, "--init_from", tmp_path / "base", *FEW, "--lora_rank", 2, "--max_train_steps", 1]
    status, _, errors = run_door(train_latent.main, capsys, *words, "--output_dir", tmp_path / "adapter")
    assert status == 0, errors
    loaded(tmp_path / "base").load_lora_weights(tmp_path / "adapter")
    other = loaded(tmp_path / "base")
    other.scheduler = type(other.scheduler).from_config({**other.scheduler.config, "prediction_type": "sample"})
    with pytest.raises(ValueError, match="prediction"):
        other.load_lora_weights(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--autoencoder", "x"], "--autoencoder x does nothing with --lora_rank 2"),
        (["--from_scratch"], "--from_scratch"),
        (["--measure_latents"], "--measure_latents"),
        (["--time_shift", 3], "--time_shift 3.0 does nothing with --lora_rank 2"),
        (["--prior_weight", 1], "--prior_weight 1.0 does nothing"),
        (["--model", "unet"], "has its own network. Leave it out."),
    ],
)
def test_what_an_adapter_on_latents_takes_from_its_base_is_refused(home, capsys, monkeypatch, tmp_path, words, message):
    own = [*DIGITS, "--init_from", home / "latent", "--lora_rank", 2, *words]
    check_refusal(train_latent.main, capsys, monkeypatch, tmp_path / "run", own, message)


def test_pixels_are_no_base_of_latents(home, capsys, tmp_path):
    words = [*DIGITS, "--init_from", home / "pixels", *FEW, "--lora_rank", 2, "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_latent.main, capsys, *words, "--max_train_steps", 1)
    assert status == 2 and "an adapter of a LatentPipeline is trained here" in errors
