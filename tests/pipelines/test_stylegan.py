"""The pipeline of styles: truncation, noise, mixing, closed-form directions, edits by layers, projection."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import hfgen
from tests.models.test_stylegan import generator_of, noise_of


def pipeline_of(classes=None, **options):
    generator = generator_of(channels=1, classes=classes, **options)
    names = None if classes is None else [f"class {label}" for label in range(classes)]
    pipeline = hfgen.StyleGANPipeline(generator, num_classes=classes, label_names=names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def images_of(pipeline, **call):
    return pipeline(output_type="latent", **call).images


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_truncation_0_gives_the_image_of_the_mean_style_for_every_latent():
    pipeline = pipeline_of()
    images = images_of(pipeline, latents=noise_of(3, 5), truncation=0.0, noise_strength=0.0)
    assert_close(images, images[:1].expand(3, -1, -1, -1))
    many = torch.cat([pipeline.styles(noise_of(5000, 5, seed=seed))[:, 0] for seed in range(4)])
    assert_close(pipeline.mean_style()[0], many.mean(0), rtol=0, atol=5 * (many.std() / 4096**0.5).item())
    assert_close(pipeline.decode(pipeline.mean_style()[None]), images[:1])


def test_truncation_1_and_none_are_the_same_and_between_styles_go_on_a_line():
    pipeline, z = pipeline_of(), noise_of(3, 5)
    whole, mean = pipeline.styles(z), pipeline.mean_style()
    assert_close(pipeline.styles(z, truncation=1.0), whole)
    assert_close(pipeline.styles(z, truncation=0.25), 0.75 * mean + 0.25 * whole)


def test_the_mean_style_of_a_class_is_that_of_its_latents():
    pipeline = pipeline_of(classes=3)
    z = noise_of(1, 5)
    for label in (2, "class 0"):
        styles = pipeline.styles(z, label, truncation=0.0)
        assert_close(styles[0], pipeline.mean_style(label))
    assert (pipeline.mean_style(0) - pipeline.mean_style(2)).abs().max() > 0.01
    assert_close(pipeline.mean_style(), sum(pipeline.mean_style(label) for label in range(3)) / 3)
    with pytest.raises(ValueError, match="This model needs to know classes"):
        pipeline.styles(z)


def test_noise_is_of_the_seed_unless_it_is_given_or_of_strength_0():
    pipeline, z = pipeline_of(), noise_of(2, 5)
    first, second = (images_of(pipeline, latents=z, generator=seeded(*seeds)) for seeds in ((0, 1), (2, 3)))
    assert (first - second).abs().max() > 0.01
    given = noise_of(1, pipeline.noise_size)
    first, second = (images_of(pipeline, latents=z, generator=seeded(seed, seed), noise=given) for seed in (0, 1))
    assert torch.equal(first, second)
    first, second = (
        images_of(pipeline, latents=z, generator=seeded(seed, seed), noise_strength=0.0) for seed in (0, 1)
    )
    assert torch.equal(first, second) and torch.equal(first, pipeline.decode(pipeline.styles(z)))
    double = images_of(pipeline, latents=z, noise=given, noise_strength=2.0)
    assert torch.equal(double, images_of(pipeline, latents=z, noise=2 * given))


def test_an_image_is_the_same_alone_and_in_a_batch_with_and_without_classes():
    for classes in (None, 3):
        pipeline = pipeline_of(classes)
        together = images_of(pipeline, batch_size=3, generator=seeded(4, 5, 6))
        for place, seed in enumerate((4, 5, 6)):
            alone = images_of(pipeline, batch_size=1, generator=seeded(seed))
            assert_close(alone[0], together[place], rtol=1e-4, atol=1e-5)


# --- styles -----------------------------------------------------------------------------------------------------------


def test_mixing_with_itself_changes_nothing_and_with_others_the_named_layers():
    pipeline = pipeline_of()
    first, second = pipeline.styles(noise_of(2, 5)), pipeline.styles(noise_of(2, 5, seed=1))
    for layers in ("coarse", "middle", "fine", "all", [0, 2]):
        assert torch.equal(pipeline.mix(first, first, layers), first)
    assert pipeline.layer_groups == {"coarse": [0], "middle": [1, 2], "fine": [3]}
    mixed = pipeline.mix(first, second, "middle")
    assert torch.equal(mixed[:, [0, 3]], first[:, [0, 3]]) and torch.equal(mixed[:, 1:3], second[:, 1:3])
    assert torch.equal(pipeline.mix(first, second, "all"), second)
    grid = pipeline.mixing_grid(first, second, "coarse", noise_of(1, pipeline.noise_size))
    assert grid.shape == (2, 2, 1, 8, 8)
    one = pipeline.mix(first[1:], second[:1], "coarse")
    assert_close(grid[1, 0], pipeline.decode(one, noise_of(1, pipeline.noise_size))[0])


@pytest.mark.parametrize("layers", ["all", "middle", [3]])
def test_directions_are_orthonormal_eigenvectors_of_the_modulation_weights(layers):
    pipeline = pipeline_of()
    directions, values = pipeline.directions(layers)
    assert_close(directions @ directions.T, torch.eye(7), rtol=0, atol=1e-5)
    rows = {"all": range(4), "middle": (1, 2)}[layers] if isinstance(layers, str) else layers
    convolutions = [conv for row in rows for conv in pipeline.generator.modulations()[row]]
    a = np.concatenate([conv.affine.weight.detach().double().numpy() / np.sqrt(7) for conv in convolutions])
    expected, vectors = np.linalg.eigh(a.T @ a)
    np.testing.assert_allclose(values.numpy(), expected[::-1], rtol=1e-4, atol=1e-6)
    for direction, vector in zip(directions.double().numpy()[:3], vectors.T[::-1], strict=False):
        assert abs(abs(direction @ vector) - 1) < 1e-5
    # the first one moves the scales of the layers more than any other vector of its length
    unit = torch.nn.functional.normalize(noise_of(500, 7), dim=1).double().numpy()
    assert np.linalg.norm(a @ directions[0].double().numpy()) >= np.linalg.norm(unit @ a.T, axis=1).max()
    assert torch.equal(pipeline.directions(layers, 2)[0], directions[:2])


def test_edits_move_the_named_layers_alone():
    pipeline = pipeline_of()
    styles, direction = pipeline.styles(noise_of(2, 5)), noise_of(7, seed=3)
    moved = pipeline.edits(styles, direction, "fine", steps=3, reach=2.0)
    assert moved.shape == (2, 3, 1, 8, 8)
    assert_close(moved[:, 1], pipeline.decode(styles))
    expected = styles.clone()
    expected[:, 3] -= 2 * direction
    assert_close(moved[:, 0], pipeline.decode(expected))
    rows = pipeline.traversal(dims=[1], steps=3)
    first = pipeline.edits(pipeline.mean_style()[None], pipeline.directions()[0][1], "all", 3)
    assert_close(rows, first)


def test_projection_finds_the_styles_of_generated_images():
    pipeline = pipeline_of()
    with torch.no_grad():
        for layer in pipeline.generator.mapping.layers:  # styles of many sizes
            layer.bias.zero_()
    styles = pipeline.styles(noise_of(3, 5, seed=8))
    images = pipeline.decode(styles)
    spread = images.var(0).mean()
    errors = {}
    for space in ("w", "w+"):
        found = pipeline.project(images, space, steps=150)
        errors[space] = (pipeline.decode(found) - images).square().flatten(1).mean(1)
        assert (found[:, 0] == found[:, 1]).all() == (space == "w")
    assert errors["w"].max() < 0.01 * spread and errors["w+"].max() < 0.01 * spread
    other = 0.5 * noise_of(2, 1, 8, 8, seed=9)  # no image of the model: more freedom comes nearer
    near = {
        space: (pipeline.decode(pipeline.project(other, space, 60)) - other).square().mean() for space in ("w", "w+")
    }
    assert near["w+"] < near["w"]
    alone = pipeline.project(images[:1], "w", steps=20)
    assert_close(alone[0], pipeline.project(images, "w", steps=20)[0], rtol=1e-3, atol=1e-3)
    assert pipeline_of(classes=3).project(images, steps=2).shape == (3, 4, 7)  # styles need no classes


def test_the_methods_of_latents_work_on_styles():
    pipeline = pipeline_of()
    first, second = pipeline.styles(noise_of(1, 5)), pipeline.styles(noise_of(1, 5, seed=1))
    path = pipeline.between(first, second, 3)
    assert_close(path[1], pipeline.decode((first + second) / 2))
    assert pipeline.latent_shape == (4, 7) and pipeline.sample_shape == (1, 8, 8)
    path = pipeline.interpolate(*(pipeline.decode(each).clamp(-1, 1) for each in (first, second)), 2)
    assert path.shape == (2, 1, 1, 8, 8)


def test_what_does_not_fit_is_refused():
    pipeline = pipeline_of()
    styles = pipeline.styles(noise_of(2, 5))
    for call, message in (
        (lambda: pipeline(num_inference_steps=2), "draws in one pass"),
        (lambda: pipeline(truncation=-1.0), "truncation=-1.0 must be at least 0"),
        (lambda: pipeline(noise_strength=-1.0), "noise_strength=-1.0"),
        (lambda: pipeline(latents=noise_of(2, 4)), "latents have shape"),
        (lambda: pipeline(noise=noise_of(2, 4)), r"noise have shape \(2, 4\)"),
        (lambda: pipeline.decode(styles, noise_of(3, pipeline.noise_size)), "3 rows of noise for 2 images"),
        (lambda: pipeline.decode(styles[:, :3]), "latents have shape"),
        (lambda: pipeline.mix(styles, styles, [4]), r"layers=\[4\] must be numbers from 0 to 3"),
        (lambda: pipeline.directions(count=8), "at most style_dim, 7"),
        (lambda: pipeline.traversal(dims=[7]), "whole numbers from 0 to 6"),
        (lambda: pipeline.edits(styles, noise_of(6)), "direction"),
        (lambda: pipeline.project(torch.zeros(1, 1, 8, 8) - 1, learning_rate=0.0), "learning_rate"),
        (lambda: hfgen.StyleGANPipeline(hfgen.build_gan("mlp", "xs", 8, 1)[0]), "no config.style_dim"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
