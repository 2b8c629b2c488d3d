"""What the page of a demo does, without a browser or gradio."""

import numpy as np
import pytest
import torch
from PIL import Image

import hfgen
from hfgen.demo.studio import OWN, Studio
from hfgen.utils.provenance import GENERATED, read_provenance
from tests.saving import test_portable as portable


def denoising(names=("cat", "dog")):
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "patch_size": 2, "num_class_embeds": 3}
    return hfgen.DenoisingPipeline(
        portable.network("DiTModel", **sizes), hfgen.RectifiedFlowScheduler(), 2, list(names)
    )


@pytest.fixture
def studio():
    with Studio(denoising(), "pets", max_batch=4) as made:
        yield made


def levels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_the_controls_are_those_of_the_pipeline(studio):
    assert studio.classes == ["cat", "dog"] and studio.steps == 20
    assert studio.schedulers[0] == OWN and {"ddim", "heun", "dpmsolver++"} <= set(studio.schedulers)
    assert studio.can("interpolate") and studio.can("reconstruct")
    assert studio.controls("dog", None, OWN, 3.0, 1) == {"class_labels": 1, "num_inference_steps": 3}
    assert studio.controls("cat", "x", "heun", 2, 2.5) == {
        "class_labels": 0, "scheduler": "heun", "num_inference_steps": 2, "guidance_scale": 2.5,
    }  # fmt: skip
    with Studio(portable.predicting()["made"], "bits") as other:
        assert other.schedulers == [] and other.steps is None
        assert not other.can("reconstruct") and not other.can("interpolate")
        assert [path.suffix for path in other.draw(0, 2)] == [".png", ".png"]


def test_images_are_those_of_their_seeds_and_say_so(studio):
    call = studio.controls("dog", None, "heun", 2, 1)
    paths = studio.draw(7, 3, call)
    for i, path in enumerate(paths):
        pipeline = studio.model.pipeline
        generator = torch.Generator().manual_seed(7 + i)
        expected = pipeline(class_labels=1, scheduler="heun", num_inference_steps=2, generator=generator)[0][0]
        assert abs(levels(path) - np.asarray(expected).astype(int)).max() <= 1
        said = read_provenance(path)
        assert (said["model"], said["seed"], said["scheduler"], said["steps"]) == ("pets", str(7 + i), "heun", "2")
        assert said["revision"] == studio.model.revision and said["digital_source_type"] == GENERATED


def test_interpolations_go_from_seed_to_seed_and_reconstructions_have_the_given_image_beside_them(studio):
    way = studio.interpolate(1, 2, 3, {"class_labels": 0, "num_inference_steps": 2})
    assert len(way) == 3 and {read_provenance(path)["action"] for path in way} == {"interpolate"}
    given, back = studio.reconstruct(Image.linear_gradient("L").resize((40, 60)).convert("RGBA"), 1)
    assert levels(given).shape == levels(back).shape == (8, 8)
    assert read_provenance(given) == {} and read_provenance(back)["action"] == "reconstruct"


def test_what_the_pipeline_refuses_is_an_error_and_files_go_with_the_studio():
    with Studio(denoising(), "pets", max_batch=2) as made:
        with pytest.raises(ValueError, match="A job of 3 samples must have from 1 to max_batch=2"):
            made.draw(0, 3)
        with pytest.raises(ValueError, match="seed -1"):
            made.draw(-1, 1)
        (path,) = made.draw(0, 1, {"num_inference_steps": 1})
        assert path.is_file()
    assert not path.exists()


def test_samples_that_are_no_images_are_refused():
    network = hfgen.TorchModel(torch.nn.Bilinear(2, 1, 2), (2,))
    with pytest.raises(ValueError, match=r"points draws samples of shape \(2,\), and hfgen demo shows images"):
        Studio(hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler()), "points")
