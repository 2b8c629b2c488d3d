"""GANPipeline: samples, truncation, classes, projection, what lies between, and a discriminator on request."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hfgen.pipelines.gan import truncate
from scipy import stats
from torch.testing import assert_close

import hfgen
from hfgen import GANPipeline, HFGenPipeline, cli

ARCHITECTURES = ("residual", "dcgan", "resnet", "mlp")
EXACT = {"rtol": 0, "atol": 0}


def small(architecture="mlp", classes=None, side=8, channels=1, discriminator=True, latent=4, **options):
    """A small pipeline, all of whose weights matter."""
    torch.manual_seed(0)
    networks = hfgen.build_gan(architecture, "xs", side, channels, latent, classes, **options)
    for network in networks:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    names = None if classes is None else [f"class {i}" for i in range(classes)]
    pipeline = GANPipeline(networks[0], networks[1] if discriminator else None, classes, names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def drawn(pipeline, *numbers, **call):
    """Images (B, C, H, W) of these seeds."""
    return pipeline(len(numbers), generator=seeds(*numbers), output_type="latent", **call).images


# --- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("classes", [None, 3])
def test_an_image_is_the_same_alone_and_in_a_batch(architecture, classes):
    pipeline = small(architecture, classes, channels=3)
    whole = drawn(pipeline, 0, 1, 2, 3, 4)
    assert whole.shape == (5, 3, 8, 8) and whole.std() > 0.01
    for i in range(5):
        assert (drawn(pipeline, i) - whole[i]).abs().max() <= 1e-5 * whole.abs().max()
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)


def test_images_are_what_the_generator_makes_of_the_noise():
    pipeline = small()
    z = torch.cat([torch.randn(1, 4, 1, 1, generator=each) for each in seeds(7, 8)])
    expected = pipeline.generator(z.flatten(1)).sample
    assert_close(drawn(pipeline, 7, 8), expected, **EXACT)
    for latents in (z, z.flatten(1)):
        assert_close(pipeline(latents=latents, output_type="latent").images, expected, **EXACT)
    assert_close(pipeline.decode(z), expected, **EXACT)
    assert_close(pipeline(latents=z, output_type="pt", return_dict=False)[0], expected / 2 + 0.5)
    pipeline = small("residual")  # without tanh
    generated, shown = (pipeline(latents=9 * z, output_type=kind).images for kind in ("latent", "pt"))
    assert generated.abs().max() > 1
    assert_close(shown, (generated / 2 + 0.5).clamp(0, 1))


def test_points_in_the_plane_are_images_of_one_pixel():
    torch.manual_seed(0)
    generator = hfgen.MLPGeneratorModel(1, 2, 2, (16,), output_activation="none")
    points = GANPipeline(generator)(50, output_type="latent").images
    assert points.shape == (50, 2, 1, 1)


def test_classes_by_number_and_name_and_at_random():
    pipeline = small(classes=3)
    by_number = drawn(pipeline, 0, 1, class_labels=[2, 0])
    assert_close(drawn(pipeline, 0, 1, class_labels=["class 2", "class 0"]), by_number, **EXACT)
    one, other = (drawn(pipeline, 0, class_labels=label) for label in (0, 1))
    assert (one - other).abs().max() > 1e-3  # the same latent in two classes
    numbers = range(60)
    of_classes = torch.stack([drawn(pipeline, *numbers, class_labels=label) for label in range(3)])
    at_random = drawn(pipeline, *numbers)
    chosen = (of_classes - at_random).flatten(2).abs().amax(2).argmin(0)
    assert_close(of_classes[chosen, torch.arange(60)], at_random, rtol=0, atol=1e-5)
    assert torch.bincount(chosen, minlength=3).min() >= 8  # 60 thirds: 20, deviation 3.7


# --- truncation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0.1, 0.5, 1.0, 2.0])
def test_truncation_draws_from_the_truncated_normal_distribution(bound):
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    samples = truncate(z, bound)
    assert samples.abs().max() <= bound and samples.dtype == z.dtype
    assert stats.kstest(samples.double().numpy(), stats.truncnorm(-bound, bound).cdf).pvalue > 0.01
    assert torch.equal(samples.argsort(), z.argsort())


def test_truncation_moves_images_to_the_typical_one_and_ends_at_none():
    pipeline = small()
    middle = pipeline.decode(torch.zeros(1, 4, 1, 1))
    numbers, free = range(20), drawn(pipeline, *range(20))
    spread = [(drawn(pipeline, *numbers, truncation=t) - middle).square().mean().item() for t in (0.1, 0.5, 1.5)]
    assert spread[0] < spread[1] < spread[2] < (free - middle).square().mean().item()
    assert_close(drawn(pipeline, *numbers, truncation=50.0), free, rtol=1e-5, atol=1e-6)


# --- projection, and what lies between --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("classes", [None, 2])
@pytest.mark.parametrize("discriminator", [False, True])
def test_projection_finds_a_generators_own_images(architecture, classes, discriminator):
    pipeline = small(architecture, classes, discriminator=discriminator)
    labels = None if classes is None else [0, 1, 1, 0]
    images = drawn(pipeline, 0, 1, 2, 3, class_labels=labels)
    latents = pipeline.project(images, labels, steps=150)
    assert latents.shape == (4, 4, 1, 1)
    error = (pipeline.decode(latents, labels) - images).square().flatten(1).mean(1)
    random = (drawn(pipeline, 4, 5, 6, 7, class_labels=labels) - images).square().flatten(1).mean(1)
    assert (error < 0.05 * random.mean()).all() and error.mean() < 0.02 * random.mean()


def test_projection_of_an_image_is_its_own_and_no_network_changes():
    pipeline = small(classes=2)
    images = drawn(pipeline, 0, 1, 2, class_labels=[0, 1, 0])
    before = {key: value.clone() for key, value in pipeline.generator.state_dict().items()}
    whole = pipeline.project(images, [0, 1, 0], steps=20)
    assert_close(pipeline.project(images[1:2], [1], steps=20), whole[1:2], rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in pipeline.generator.state_dict().items())
    assert all(p.grad is None for p in [*pipeline.generator.parameters(), *pipeline.discriminator.parameters()])


def test_the_discriminators_features_have_a_say_in_projection():
    pipeline = small()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    having = pipeline.project(images, steps=30)
    pipeline.register_modules(discriminator=None)
    assert (pipeline.project(images, steps=30) - having).abs().max() > 1e-3


def test_a_path_between_latents_and_images():
    pipeline = small()
    first, second = (torch.randn(3, 4, 1, 1, generator=each) for each in seeds(0, 1))
    path = pipeline.between(first, second, 5)
    assert path.shape == (5, 3, 1, 8, 8)
    assert_close(path[0], pipeline.decode(first))
    assert_close(path[2], pipeline.decode((first + second) / 2))
    assert_close(path[4], pipeline.decode(second))
    ends = pipeline.decode(first), pipeline.decode(second)
    path = pipeline.interpolate(*ends, 3)
    assert (path[0] - ends[0]).square().mean() < 0.05 * (ends[0] - ends[1]).square().mean()


def test_a_traversal_changes_one_dimension_at_a_time():
    pipeline = small()
    rows = pipeline.traversal(dims=[0, 3], steps=3, reach=2.0)
    z = torch.zeros(1, 4, 1, 1)
    assert rows.shape == (2, 3, 1, 8, 8)
    assert_close(rows[:, 1], pipeline.decode(z).expand(2, 1, 8, 8))
    z[0, 3] = 2.0
    assert_close(rows[1, 2], pipeline.decode(z)[0])


def test_one_class_of_many_has_all_that_a_model_without_classes_has():
    pipeline = small(classes=2)
    z = torch.randn(2, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    of_class = pipeline.of_class("class 1")
    assert_close(of_class.decode(z), pipeline.decode(z, [1, 1]), **EXACT)
    assert (of_class.decode(z) - pipeline.of_class(0).decode(z)).abs().max() > 1e-3
    assert_close(of_class.between(z[:1], z[1:], 2)[:, 0], pipeline.decode(z, 1))
    assert of_class.traversal(steps=2).shape == (4, 2, 1, 8, 8)
    images = pipeline.decode(z, 1)
    assert (of_class.reconstruct(images) - images).square().mean() < 0.05 * images.var()
    direction = of_class.attribute_direction(images[:1], images[1:])
    assert of_class.change(images, direction).shape == images.shape


# --- folders ----------------------------------------------------------------------------------------------------------

FRESH = """
import sys, torch
from hfgen import HFGenPipeline
for folder in sys.argv[1:]:
    pipeline = HFGenPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.discriminator is None
    images = pipeline(3, generator=[torch.Generator().manual_seed(i) for i in range(3)], output_type="latent").images
    assert torch.equal(images, torch.load(folder + ".pt"))
"""


def test_a_fresh_process_draws_the_same_bits(tmp_path):
    for architecture in ARCHITECTURES:
        pipeline = small(architecture, classes=3)
        pipeline.save_pretrained(tmp_path / architecture)
        torch.save(drawn(pipeline, 0, 1, 2), tmp_path / f"{architecture}.pt")
    command = [sys.executable, "-c", FRESH, *(str(tmp_path / architecture) for architecture in ARCHITECTURES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_discriminator_is_saved_and_loaded_on_request(tmp_path):
    pipeline = small(classes=3, discriminator=True)
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["discriminator"][1] == "MLPDiscriminatorModel" and index["label_names"]["1"] == "class 1"
    plain = HFGenPipeline.from_pretrained(tmp_path)
    assert plain.discriminator is None and plain.config.label_names == ["class 0", "class 1", "class 2"]
    loaded = GANPipeline.from_pretrained(tmp_path, discriminator=True)
    images = torch.zeros(2, 1, 8, 8)
    expected = pipeline.discriminator(images, torch.tensor([0, 1])).logits
    assert_close(loaded.discriminator(images, torch.tensor([0, 1])).logits, expected, **EXACT)
    loaded = HFGenPipeline.from_pretrained(tmp_path, discriminator=pipeline.discriminator)
    assert loaded.discriminator is pipeline.discriminator
    for path in (tmp_path / "discriminator").iterdir():
        path.unlink()
    assert HFGenPipeline.from_pretrained(tmp_path, discriminator=False).discriminator is None  # it was not looked at
    with pytest.raises((ValueError, OSError)):
        HFGenPipeline.from_pretrained(tmp_path, discriminator=True)


def test_a_generator_alone_is_a_pipeline(tmp_path):
    small(discriminator=False).save_pretrained(tmp_path)
    assert not (tmp_path / "discriminator").exists()
    assert HFGenPipeline.from_pretrained(tmp_path).discriminator is None
    with pytest.raises(ValueError, match=r"was saved without its discriminator\. Leave discriminator=True out"):
        HFGenPipeline.from_pretrained(tmp_path, discriminator=True)


def test_from_a_repository_the_discriminator_is_fetched_on_request(tmp_path, monkeypatch):
    from hfgen.saving import hub
    from tests.helpers.hub_server import Hub, use

    small().save_pretrained(tmp_path / "gan")
    with Hub() as server:
        use(server, monkeypatch, tmp_path)
        hub.push(tmp_path / "gan", "someone/gan")

        def fetched(**options):
            HFGenPipeline.from_pretrained("someone/gan", cache_dir=tmp_path / f"cache{len(options)}", **options)
            return {path.parent.name for path in (tmp_path / f"cache{len(options)}").rglob("*.safetensors")}

        assert fetched() == {"generator"}
        assert fetched(discriminator=True) == {"generator", "discriminator"}
        folder = HFGenPipeline.download("someone/gan", cache_dir=tmp_path / "all", discriminator=True)
        assert HFGenPipeline.from_pretrained(folder, discriminator=True).discriminator is not None


def test_sample_from_the_command_line(tmp_path):
    small(classes=2).save_pretrained(tmp_path / "gan")
    words = ["--num_samples", "4", "--output_dir", str(tmp_path / "drawn"), "--device", "cpu"]
    cli.main(["sample", str(tmp_path / "gan"), *words, "--class_labels", "class 1"])
    from PIL import Image

    shown = np.stack([np.asarray(Image.open(path), int) for path in sorted((tmp_path / "drawn").iterdir())])
    images = drawn(HFGenPipeline.from_pretrained(tmp_path / "gan"), 0, 1, 2, 3, class_labels=1)
    assert np.abs(shown - ((images[:, 0] + 1) * 127.5).numpy()).max() <= 1


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(num_inference_steps=2), "num_inference_steps=2: a GANPipeline draws in one pass"),
        (lambda p: p(truncation=0.0), "truncation=0.0 must be above 0"),
        (lambda p: p(truncation=1.0, latents=torch.zeros(1, 4)), "for random latents, not for given ones"),
        (lambda p: p(latents=torch.zeros(2, 5)), r"latents have shape \(2, 5, 1, 1\); this call needs \(2, 4, 1, 1\)"),
        (lambda p: p(latents=torch.zeros(2, 4, 2, 2)), r"latents have shape \(2, 4, 2, 2\); this call needs"),
        (lambda p: p(batch_size=0), "batch_size=0 must be at least 1"),
        (lambda p: p(2, generator=seeds(0)), "1 generators for 2 samples"),
        (lambda p: p(class_labels=3), "class 3 is not known"),
        (lambda p: p(output_type="x"), "output_type='x' is not known"),
        (lambda p: p.decode(torch.zeros(1, 4, 1, 1)), "needs to know classes: give class_labels, or use of_class"),
        (lambda p: p.decode(torch.zeros(1, 4), 0), r"this model needs \(B, 4, 1, 1\)"),
        (lambda p: p.project(torch.zeros(1, 1, 8, 8)), "needs to know classes"),
        (lambda p: p.project(torch.zeros(1, 1, 8, 9), 0), r"this model needs \(B, 1, 8, 8\)"),
        (lambda p: p.project(torch.zeros(1, 1, 8, 8), 0, steps=0), "steps=0 must be at least 1"),
        (lambda p: p.of_class(2), "class 2 is not known"),
        (lambda p: p.call_with(guidance_scale=2.0), "GANPipeline takes no guidance_scale"),
        (lambda p: p.use_scheduler("ddim"), "draws without a scheduler"),
    ],
)
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(small(classes=2))


def test_labels_for_a_model_without_classes_are_refused():
    with pytest.raises(ValueError, match="trained without classes"):
        small()(class_labels=1)
