"""Guides of `hfgen sample` and `hfgen evaluate`: the same images as a call from Python with the same guides."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import hfgen
from hfgen import cli
from hfgen.utils.seeds import sample_generators
from tests.helpers.doors import run_door


def denoiser(classes=None, seed=0, path="straight"):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 1}
    network = hfgen.DiTModel(8, 1, 1, 2, **sizes, num_class_embeds=classes and classes + 1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    scheduler = hfgen.RectifiedFlowScheduler(path=path)
    names = None if classes is None else [f"n{i}" for i in range(classes)]
    return hfgen.DenoisingPipeline(network, scheduler, classes, names)


def classifier(names=("n2", "n1", "n0"), path="straight"):
    torch.manual_seed(5)
    model = hfgen.NoisyClassifierModel(8, 1, 3, 1, (8, 8), 4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return hfgen.NoisyClassifierPipeline(model, hfgen.RectifiedFlowScheduler(path=path), 3, list(names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saved models: without and with classes, a worse one, a classifier with the classes in another order."""
    folder = tmp_path_factory.mktemp("guides")
    made = {"plain": denoiser(), "classes": denoiser(3), "worse": denoiser(3, seed=1), "classifier": classifier()}
    made |= {
        "other path": classifier(path="cosine_vp"),
        "gan": hfgen.GANPipeline(hfgen.build_gan("mlp", "xs", 8, 1, 4)[0]),
    }
    for name, pipeline in made.items():
        pipeline.save_pretrained(folder / name)
    return folder


def sample(capsys, *words):
    return run_door(cli.main, capsys, "sample", *words)


def images_of(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_sample_draws_what_the_call_with_these_guides_draws(folder, capsys, tmp_path):
    """Classes go to the classifier by name; a model without classes is guided to those of the classifier."""
    few = ["--num_samples", "4", "--batch_size", "3", "--num_inference_steps", "4", "--device", "cpu"]
    strong = ["--classifier", folder / "classifier", "--classifier_scale", "80", "--classifier_interval", "0.1,0.8"]
    away = ["--autoguidance", folder / "worse", "--autoguidance_scale", "1.5"]
    load = hfgen.HFGenPipeline.from_pretrained
    pair = load(folder / "classifier"), load(folder / "worse")
    cases = {
        "plain": ([*strong], [2, 2, 0, 0], None, [2, 2, 0, 0]),
        "classes": ([*strong, *away], [0, 0, 2, 2], [0, 0, 2, 2], [2, 2, 0, 0]),
    }
    for name, (words, _, told, numbers) in cases.items():
        labels = "n0,n2"  # the classifier has them as 2 and 0, the model as 0 and 2
        given = [folder / name, *few, *words, "--class_labels", labels, "--output_dir", tmp_path / name]
        status, _, errors = sample(capsys, *given)
        assert status == 0, errors
        guides = [hfgen.ClassifierGuidance(pair[0], numbers, 80.0, (0.1, 0.8))]
        guides += [hfgen.Autoguidance(pair[1], 1.5)] if "--autoguidance" in words else []
        call = {"generator": sample_generators(0, range(4)), "num_inference_steps": 4, "output_type": "np"}
        pipeline = load(folder / name)
        expected = pipeline(4, class_labels=told, guidance=guides, **call).images[..., 0]
        plain = pipeline(4, class_labels=told, **{**call, "generator": sample_generators(0, range(4))}).images[..., 0]
        found = images_of(tmp_path / name) / 255
        assert np.abs(found - expected).max() < 0.01 < np.abs(plain - expected).max()


def test_evaluate_judges_guided_samples_and_says_so(folder, capsys, tmp_path):
    words = ["--dataset", "digits", "--metrics", "spectrum", "--num_samples", "6", "--num_reference", "40"]
    words += ["--num_inference_steps", "2", "--device", "cpu", "--bootstrap", "0", "--label_column", "none"]
    for guides in ([], ["--classifier", folder / "classifier", "--classifier_scale", "9"]):
        output = tmp_path / "metrics.json"
        status, out, errors = run_door(
            cli.main, capsys, "evaluate", folder / "plain", *words, *guides, "--output", output
        )
        assert status == 0, errors
    plain, guided = json.loads(output.read_text())["evaluation"]  # one does not replace the other
    assert plain["value"] != guided["value"] and plain["protocol"]["guidance"] == 1.0
    assert guided["protocol"]["guidance"] == "1; classifier classifier, scale 9, times 0,0.95"
    assert guided["protocol"]["labels"] == "all classes in turn" and "--classifier_scale 9.0" in out


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("plain", ["--classifier", "classifier"], "guides to classes. Name them: --class_labels"),
        ("plain", ["--classifier", "worse", "--class_labels", "0"], "--classifier needs a NoisyClassifierPipeline"),
        ("plain", ["--classifier", "other path", "--class_labels", "0"], "on the path 'cosine_vp'"),
        ("plain", ["--classifier_scale", "2"], "--classifier_scale 2.0 does nothing without --classifier"),
        ("classes", ["--autoguidance", "classifier"], "--autoguidance needs a DenoisingPipeline"),
        ("classes", ["--autoguidance_interval", "0,0.5"], "does nothing without --autoguidance"),
        ("classes", ["--autoguidance", "worse", "--autoguidance_interval", "0.5,0"], "must be two times low,high"),
        ("classes", ["--autoguidance", "worse", "--autoguidance_scale", "-1"], "autoguidance_scale"),
        ("gan", ["--autoguidance", "worse"], "GANPipeline takes no guidance"),
    ],
)
def test_guides_that_do_not_fit_are_refused(folder, capsys, name, words, message):
    words = [folder / word if (folder / str(word)).is_dir() else word for word in words]
    status, _, errors = sample(capsys, folder / name, "--num_inference_steps", "2", *words)
    assert status == 2 and message in errors, errors
