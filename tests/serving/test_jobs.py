"""Samples of requests: the same seed gives the same image alone and in any batch, for every family that draws."""

import inspect
import random
import threading
from concurrent.futures import wait
from functools import cache

import numpy as np
import pytest
import torch

import hfgen
from hfgen.registry import PIPELINES, resolve
from hfgen.serving.engine import BatchEngine
from hfgen.serving.jobs import Alone, Draw
from tests.saving import test_portable as portable

LONG = 60
CLASSES = {"class_labels": [0, 1, 1], "guidance_scale": 2.0}


def autoregressive():
    model = hfgen.MaskedAutoregressiveModel("made", (1, 4, 4), num_orders=2, hidden_size=8, num_class_embeds=3)
    return hfgen.ARPipeline(model, 2, ["a", "b"])


def flow():
    sizes = {"network": "mlp", "hidden_channels": 8, "layers_per_level": 2, "num_class_embeds": 3}
    return hfgen.NormalizingFlowPipeline(hfgen.CouplingFlowModel(8, 1, **sizes), 2, ["a", "b"])


def denoising():
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "patch_size": 2, "num_class_embeds": 3}
    return hfgen.DenoisingPipeline(portable.network("DiTModel", **sizes), hfgen.RectifiedFlowScheduler(), 2, ["a", "b"])


FAMILIES = {
    "DenoisingPipeline": (denoising, {**CLASSES, "num_inference_steps": 3}),
    "ddpm": (denoising, {**CLASSES, "num_inference_steps": 3, "scheduler": "ddpm"}),
    "LatentPipeline": (lambda: portable.latent()["MLPAutoencoderModel"], {**CLASSES, "num_inference_steps": 2}),
    "TextToImagePipeline": (
        lambda: portable.showing()["DiTModel"],
        {"prompt": ["a cat", "dog", "a"], "negative_prompt": "b", "guidance_scale": 2.0, "num_inference_steps": 2},
    ),
    "UniDiffuserPipeline": (
        lambda: portable.speaking()["clocks"],
        {"prompt": ["a cat", "dog", "a"], "guidance_scale": 2.0, "num_inference_steps": 2},
    ),
    "GANPipeline": (lambda: portable.generating()["dcgan"], {"truncation": 1.0}),
    "GANPipeline of latents": (lambda: portable.generating()["latents"], {"truncation": 1.0}),
    "StyleGANPipeline": (lambda: portable.styling()["classes"], {"truncation": 0.7, "class_labels": [0, 1, 0]}),
    "VAEPipeline": (lambda: portable.decoding()["conv"], {"temperature": 0.9}),
    "VQPipeline": (lambda: portable.coding_with_prior()["prior"], {"class_labels": [0, 1, 0]}),
    "NormalizingFlowPipeline": (flow, {"class_labels": ["a", "b", "b"], "temperature": 0.8}),
    "ARPipeline": (autoregressive, {"class_labels": "b", "guidance_scale": 1.5}),
    "EnergyPipeline": (lambda: portable.descending()["dot"], {**CLASSES, "num_inference_steps": 2}),
}


@cache
def made(name):
    pipeline = FAMILIES[name][0]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def levels(samples):
    return np.stack([np.asarray(sample) for sample in samples]).astype(int)


def alone(pipeline, seed, count, call):
    return levels(Draw(pipeline, seed, count, call).run([Draw(pipeline, seed, count, call)])[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_seed_gives_the_same_image_alone_and_in_any_batch(name):
    pipeline, call = made(name), FAMILIES[name][1]
    calls = []
    with BatchEngine(max_batch=8, max_wait=LONG, max_queue=64, on_call=calls.append) as engine:
        drawn = engine.submit(Draw(pipeline, 7, 3, call))
        others = [engine.submit(Draw(pipeline, seed, 3, call)) for seed in (1, 100)]
        engine.drain()
        images = levels(drawn.result(LONG))
        assert all(len(other.result(LONG)) == 3 for other in others)
    assert [call.size for call in calls] == [6, 3]
    generators = [torch.Generator().manual_seed(7 + i) for i in range(3)]
    by_hand = levels(pipeline(**call, batch_size=3, generator=generators)[0])
    assert abs(images - by_hand).max() <= 1
    one = {key: value[1] if isinstance(value, list) else value for key, value in call.items()}
    assert abs(images[1] - alone(pipeline, 8, 1, one)[0]).max() <= 1  # sample 1 is drawn with seed 8, alone too
    assert abs(images - levels(others[0].result(LONG))).max() > 1  # and another seed gives another image


def test_every_pipeline_that_draws_is_here():
    draws = {name for name in PIPELINES if "generator" in inspect.signature(resolve(name).__call__).parameters}
    assert draws <= set(FAMILIES)


def test_a_call_that_draws_no_images_is_refused():
    job = Draw(made("UniDiffuserPipeline"), 0, 1, {"mode": "text", "num_inference_steps": 2})
    with pytest.raises(ValueError, match=r"^UniDiffuserPipeline draws no samples with mode='text'"):
        job.run([job])


def test_only_what_can_share_a_call_has_one_key():
    pipeline, other = made("DenoisingPipeline"), denoising()
    base = Draw(pipeline, 1, 1, {"num_inference_steps": 3})
    alike = [Draw(pipeline, 2, 4, {"num_inference_steps": 3}), Draw(pipeline, 1, 1, {"num_inference_steps": 3})]
    assert {job.key for job in alike} == {base.key}
    others = [
        Draw(other, 1, 1, {"num_inference_steps": 3}),
        Draw(pipeline, 1, 1, {"num_inference_steps": 4}),
        Draw(pipeline, 1, 1),
        Draw(pipeline, 1, 1, {"num_inference_steps": 3, "scheduler": "ddim"}),
        Draw(pipeline, 1, 1, {"num_inference_steps": 3, "class_labels": 1}),
        Draw(pipeline, 1, 1, {"num_inference_steps": 3, "class_labels": 1, "guidance_scale": 2.0}),
    ]
    assert len({job.key for job in [base, *others]}) == 7
    labels = [Draw(pipeline, 1, len(value), {"class_labels": value}).key for value in ([0], [1, 0], ["a", "b", 1])]
    assert len(set(labels)) == 1  # classes belong to samples
    order = [{"guidance_scale": 2.0, "num_inference_steps": 3}, {"num_inference_steps": 3, "guidance_scale": 2.0}]
    assert len({Draw(pipeline, 1, 1, {**call, "class_labels": 0}).key for call in order}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), r"^count=0 must be"),
        ((-1,), r"^seed -1 of a sample"),
        ((2**31 - 1, 2), r"^seed 2147483648 of a sample"),
        ((0, 1, {"generator": 3}), r"^generator is set for each call"),
        ((0, 1, {"batch_size": 3}), r"^batch_size is set"),
        ((0, 1, {"callback_on_step_end": print}), r"^callback_on_step_end is set"),
        ((0, 1, {"truncation": 0.5}), r"^DenoisingPipeline takes no truncation"),
        ((0, 1, {"scheduler": hfgen.DDIMScheduler()}), r"^scheduler is a DDIMScheduler; give plain data"),
        ((0, 1, {"class_labels": torch.ones(1)}), r"^class_labels is a list; give plain data"),
        ((0, 2, {"class_labels": [0, 1, 1]}), r"^3 class_labels for 2 samples"),
    ],
)
def test_what_no_request_can_ask_for_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Draw(made("DenoisingPipeline"), *arguments)


def test_a_pipeline_that_draws_nothing_is_refused():
    with pytest.raises(ValueError, match="NoisyClassifierPipeline draws no samples"):
        Draw(portable.classifying()["classifier"])


def test_a_poisoned_request_leaves_the_others_their_images():
    pipeline = made("DenoisingPipeline")
    with BatchEngine(max_batch=8, max_wait=LONG) as engine:
        good = [
            engine.submit(Draw(pipeline, seed, 1, {"class_labels": 1, "num_inference_steps": 2})) for seed in (1, 2)
        ]
        bad = engine.submit(Draw(pipeline, 3, 1, {"class_labels": 9, "num_inference_steps": 2}))
        engine.drain()
        assert "9" in str(bad.exception(LONG)) and isinstance(bad.exception(), ValueError)
        for seed, future in zip((1, 2), good, strict=True):
            expected = alone(pipeline, seed, 1, {"class_labels": 1, "num_inference_steps": 2})
            assert abs(levels(future.result(LONG)) - expected).max() <= 1


def test_work_of_its_own_shares_no_call():
    calls = []
    with BatchEngine(max_wait=0.01, on_call=calls.append) as engine:
        futures = [engine.submit(Alone(lambda i=i: i * i)) for i in range(3)]
        assert [future.result(LONG) for future in futures] == [0, 1, 4] and len(calls) == 3


def test_no_seed_is_answered_with_the_image_of_another():
    """200 requests of several threads, with random cancellations, deadlines, classes, numbers of samples and steps."""
    pipeline, answers, lock = made("DenoisingPipeline"), [], threading.Lock()

    def ask(number):
        chance = random.Random(number)
        for _ in range(25):
            seed, count = chance.randrange(10), chance.choice([1, 1, 1, 2, 3])
            label, steps = chance.choice([None, "b"]), chance.choice([1, 2])
            call = {"num_inference_steps": steps, **({} if label is None else {"class_labels": label})}
            future = engine.submit(Draw(pipeline, seed, count, call), chance.choice([None, None, 0.02, LONG]))
            if chance.random() < 0.2:
                future.cancel()
            with lock:
                answers.append((seed, label, steps, future))

    with BatchEngine(max_batch=8, max_wait=0.002, max_queue=1000, workers=2) as engine:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait([future for *_, future in answers], LONG)
        assert engine.wait(LONG) and engine.waiting == 0
    expected = cache(lambda *place: images_of(pipeline, *place))
    done = [each for each in answers if not each[3].cancelled() and not each[3].exception()]
    for seed, label, steps, future in done:
        images = levels(future.result())
        assert abs(images - expected(label, steps)[seed : seed + len(images)]).max() <= 1
    assert len(answers) == 200 and len(done) > 50
    table = expected(None, 2)
    assert min(abs(table[i] - table[j]).max() for i in range(12) for j in range(i)) > 8  # or the law would see nothing


def images_of(pipeline, label, steps):
    """Return the images of seeds 0 to 11, each drawn alone."""
    call = {"num_inference_steps": steps, **({} if label is None else {"class_labels": label})}
    draws = (pipeline(**call, generator=torch.Generator().manual_seed(seed)).images[0] for seed in range(12))
    return levels(draws)
