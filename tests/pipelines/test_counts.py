"""Counts that a caller gives to any method of any pipeline are whole numbers, or refused by name before any work."""

import inspect
import math

import pytest
import torch

from tests.pipelines.test_images import one_of_each

COUNTS = {"steps", "num_samples", "num_probes", "num_inference_steps", "batch_size"}
ONE_PASS = {("vae", "num_inference_steps"), ("gan", "num_inference_steps"), ("vq", "batch_size")}
"""Counts that have one value, said by another message."""


@pytest.fixture(scope="module")
def models():
    return one_of_each()


def images(pipeline):
    return torch.full((1, *pipeline.sample_shape), -1.0)  # of 8-bit levels


def noise(pipeline):
    return torch.zeros(1, *getattr(pipeline, "latent_shape", pipeline.sample_shape))


ARGUMENTS = {
    "__call__": lambda p: [images(p), 0.5] if hasattr(p, "calibration") else [],
    "interpolate": lambda p: [images(p), images(p)],
    "interpolate_latents": lambda p: [noise(p), noise(p)],
    "between": lambda p: [noise(p), noise(p)],
    "decode": lambda p: [noise(p)],
    "traversal": lambda p: [],
    "calibrate": lambda p: [images(p), 0.5],
}
"""Method -> its other arguments; those that are not listed take images."""


def methods(pipeline):
    """Yield each public method of a pipeline that takes a count, with the names of the counts."""
    for name, method in inspect.getmembers(type(pipeline), inspect.isfunction):
        own = method.__module__.startswith("hfgen")
        names = COUNTS & inspect.signature(method).parameters.keys()
        if own and names and (name == "__call__" or not name.startswith("_")):
            yield name, sorted(names)


def test_the_walk_finds_the_methods(models):
    found = {(kind, name, count) for kind, p in models.items() for name, counts in methods(p) for count in counts}
    assert len(found) > 35
    for kind, name, count in (
        ("denoising", "bits_per_dim", "num_probes"),
        ("denoising", "between", "steps"),
        ("vae", "log_likelihood", "num_samples"),
        ("gan", "project", "steps"),
        ("anomaly", "describe", "batch_size"),
    ):
        assert (kind, name, count) in found


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", math.nan, 2**40, [2]])
@pytest.mark.parametrize("kind", ["vae", "vq", "denoising", "gan", "anomaly", "flow"])
def test_what_is_no_count_is_refused_by_name(models, kind, value):
    pipeline = models[kind]
    for name, counts in methods(pipeline):
        for count in counts:
            if (kind, count) in ONE_PASS:
                continue
            with pytest.raises(ValueError, match=f"{count}=") as refusal:
                arguments = ARGUMENTS.get(name, lambda p: [images(p)])(pipeline)
                pytest.fail(
                    f"{kind}.{name} took {count}={value}: {getattr(pipeline, name)(*arguments, **{count: value})}"
                )
            assert str(value) in str(refusal.value), (name, count, refusal.value)


def test_samples_of_an_anomaly_score_are_a_count(models):
    import hfgen

    parts = {name: models["anomaly"].components[name] for name in ("autoencoder", "prior", "calibration")}
    for value in (0, 1.5, True, "4"):
        with pytest.raises(ValueError, match="num_samples="):
            hfgen.AnomalyPipeline(**parts, score="reconstruction", num_samples=value)


@pytest.mark.parametrize("dims", [[1.5], ["0"], [-1], [], [10**6]])
def test_dimensions_of_a_latent_are_whole_numbers(models, dims):
    with pytest.raises(ValueError, match=r"dims=.* must be (whole numbers from 0 to|a list, each a whole)"):
        models["vae"].traversal(dims=dims)
