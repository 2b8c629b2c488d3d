"""The denoising loop and guidance for items and conditions that are not images and classes."""

import pytest
import torch
from hfgen.pipelines.inputs import check_latents, check_shape, noise_of, sample_shape_of
from hfgen.pipelines.sampling import clone_of, denoise, guided
from torch.testing import assert_close

import hfgen
from hfgen.models.conditions import ClassCondition, TensorCondition, TextCondition
from hfgen.registry import PATHS, SAMPLERS
from tests.helpers.text import text_encoder, tokenizer
from tests.pipelines.sequence_network import SequenceModel
from tests.pipelines.sequences import ObservedSequencePipeline, SequenceOutput, TextSequencePipeline

SCALES = [0.0, 0.5, 1.0, 3.0]


def scheduler_of(sampler="rectified_flow", path="straight", kind="flow_prediction"):
    cls, options = SAMPLERS[sampler]
    return getattr(hfgen, cls).from_config({**PATHS[path], "prediction_type": kind, **options})


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def network(**options):
    """A small network of sequences (5, 3), all of whose parameters matter."""
    torch.manual_seed(0)
    return SequenceModel(**options).eval()


def observed(sampler="rectified_flow"):
    pipeline = ObservedSequencePipeline(network(), scheduler_of(sampler))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def described(sampler="rectified_flow"):
    pipeline = TextSequencePipeline(network(), scheduler_of(sampler), text_encoder(), tokenizer())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_is_its_numbers_whatever_their_shape(sampler, shape):
    """A network that treats numbers alone gives the same sample to (B, D) and to any shape of D numbers."""
    size = torch.Size(shape).numel()
    noise = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    scheduler, draws = scheduler_of(sampler), []
    for x in (noise, noise.view(2, *shape)):
        clone = clone_of(scheduler)
        clone.set_timesteps(5)
        draws.append(denoise(lambda x, t, scale: torch.tanh(x) * 0.5, clone, x, seeds(1, 2)))
    (flat, _), (item, trajectory) = draws
    assert item.shape == (2, *shape) and trajectory is None
    assert torch.equal(item.view(2, size), flat)


def test_the_loop_is_the_schedulers_contract():
    scheduler = scheduler_of("dpmsolver++", "ve", "epsilon")
    first, second = clone_of(scheduler), clone_of(scheduler)
    noise, calls = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)), []
    for clone in (first, second):
        clone.set_timesteps(6)

    def predict(x, t, scale):
        calls.append((float(t), scale))
        return x * 0.1 * scale

    sample, trajectory = denoise(predict, first, noise, None, 2.0, (0.25, 0.65), return_trajectory=True)
    x = noise * second.init_noise_sigma
    assert trajectory.shape == (7, 2, 5, 3) and torch.equal(trajectory[0], x)
    for i, t in enumerate(second.timesteps):
        scale = 2.0 if 250 <= t <= 650 else 1.0
        assert calls[i] == (float(t), scale)
        x = second.step(second.scale_model_input(x, t) * 0.1 * scale, t, x).prev_sample
        assert torch.equal(trajectory[i + 1], x)
    assert torch.equal(sample, x) and {scale for _, scale in calls} == {1.0, 2.0}


def test_a_step_can_be_replaced_and_the_loop_interrupted():
    clone = clone_of(scheduler_of())
    clone.set_timesteps(5)
    steps = []

    def on_step(i, t, x):
        steps.append((i, float(t)))
        return torch.full_like(x, float(i))

    sample, trajectory = denoise(
        lambda x, t, scale: x,
        clone,
        torch.zeros(2, 3),
        on_step=on_step,
        interrupted=lambda: len(steps) == 3,
        return_trajectory=True,
    )
    assert steps == list(enumerate(clone.timesteps.tolist()))[:3]
    assert torch.equal(sample, torch.full((2, 3), 2.0)) and len(trajectory) == 4


# --- guidance ---------------------------------------------------------------------------------------------------------

CONDITIONS = {
    "tensor": (TensorCondition("observation"), {"observation": torch.tensor([[1.0, -2.0], [0.5, 3.0]])}),
    "text": (
        TextCondition(),
        {
            "encoder_hidden_states": torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)),
            "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]),
        },
    ),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CONDITIONS)
def test_guidance_by_any_condition_is_the_formula_from_one_forward(name, scale):
    (condition, kwargs), model = CONDITIONS[name], network()
    x, t = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3)), torch.tensor(400.0)
    output = guided(model, x, t, condition, kwargs, scale)
    assert model.calls == [2 if scale == 1.0 else 4]
    with_condition = model(x, t.expand(2), **kwargs).sample
    without = model(x, t.expand(2), **condition.null(kwargs)).sample
    assert (with_condition - without).abs().min() > 1e-4
    assert_close(output, scale * with_condition + (1 - scale) * without, rtol=1e-5, atol=1e-6)


def test_without_a_condition_nothing_is_guided():
    model, x = network(), torch.zeros(2, 5, 3)
    assert_close(guided(model, x, 0.0, scale=4.0), model(x, torch.zeros(2)).sample, rtol=0, atol=0)
    assert model.calls == [2, 2]


def test_real_conditions_take_the_networks_dtype_and_labels_stay():
    calls = []

    class Half(torch.nn.Linear):
        def forward(self, x, t, **kwargs):
            calls.append((x.dtype, {name: (value.dtype, len(value)) for name, value in kwargs.items()}))
            return super().forward(x)

    x, model = torch.zeros(2, 4, dtype=torch.float64), Half(4, 4, dtype=torch.bfloat16)
    assert guided(model, x, 1.0, ClassCondition(3), {"class_labels": torch.tensor([0, 2])}, 2.0).dtype == x.dtype
    guided(model, x, 1.0, *CONDITIONS["text"], 1.0)
    half, whole = torch.bfloat16, torch.int64
    assert calls == [
        (half, {"class_labels": (whole, 4)}),
        (half, {"encoder_hidden_states": (half, 2), "encoder_attention_mask": (whole, 2)}),
    ]


# --- pipelines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["rectified_flow", "ddpm"])
def test_a_pipeline_of_sequences_under_an_observation(sampler):
    pipeline, observation = observed(sampler), torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    options = {"num_inference_steps": 4, "guidance_scale": 2.0}
    batch = pipeline(observation, generator=seeds(1, 2), return_trajectory=True, **options)
    assert type(batch) is SequenceOutput and batch[0] is batch.samples
    assert batch.samples.shape == (2, 5, 3) and batch.trajectory.shape == (5, 2, 5, 3)
    assert pipeline.num_timesteps == 4 and pipeline.denoiser.calls == [4] * 4
    for i in range(2):
        single = pipeline(observation[i : i + 1], generator=seeds(1 + i), **options).samples
        assert_close(single, batch.samples[i : i + 1], rtol=0, atol=1e-6)
    assert (batch.samples[0] - batch.samples[1]).abs().max() > 1e-2
    plain = pipeline(observation, generator=seeds(1, 2), num_inference_steps=4).samples
    assert (plain - batch.samples).abs().max() > 1e-3


def test_a_pipeline_of_sequences_under_text():
    pipeline, noise = described(), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "latents": noise}
    samples = pipeline(["a cat", "dog"], **options).samples
    tokens = pipeline.tokenizer(["a cat", "dog"], padding="max_length", return_tensors="pt")
    assert tokens["input_ids"].tolist()[0] == [0, 28, 55, 1, 1, 1]
    states, mask = pipeline.text_encoder(**tokens).last_hidden_state, tokens["attention_mask"]
    first = torch.tensor([[1, 0, 0, 0, 0, 0]] * 2)
    scheduler, x = scheduler_of(), noise
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        read = pipeline.denoiser(x, t.expand(2), encoder_hidden_states=states, encoder_attention_mask=mask).sample
        null = pipeline.denoiser(x, t.expand(2), None, torch.zeros_like(states), first).sample
        x = scheduler.step(3 * read - 2 * null, t, x).prev_sample
    assert_close(samples, x.detach(), rtol=1e-5, atol=1e-5)
    assert (pipeline(["dog", "dog"], **options).samples[0] - samples[0]).abs().max() > 1e-3


def test_callbacks_see_items_of_any_shape():
    pipeline, shapes = observed(), []

    def callback(pipe, i, t, tensors):
        shapes.append(tensors["latents"].shape)
        pipe._interrupt = i == 1

    pipeline(torch.zeros(2, 2), num_inference_steps=4, callback_on_step_end=callback)
    assert shapes == [(2, 5, 3)] * 2


def test_shapes_that_do_not_fit_are_refused_by_the_shape_that_does():
    assert sample_shape_of(network()) == (5, 3)
    assert sample_shape_of(hfgen.DiTModel((8, 12), 3, 3, hidden_size=8, num_layers=1, num_attention_heads=1)) == (
        3,
        8,
        12,
    )
    with pytest.raises(ValueError, match=r"latents have shape \(2, 5\); this call needs \(2, 5, 3\)"):
        observed()(torch.zeros(2, 2), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"2 generators for 3 samples"):
        observed()(torch.zeros(3, 2), generator=seeds(0, 1))
    with pytest.raises(ValueError, match=r"latents have shape \(2, 3, 5\); this model needs \(B, 5, 3\)"):
        check_latents(torch.zeros(2, 3, 5), (5, 3))
    for shape in ((), (0, 5, 3), (2, 5), (2, 5, 3, 1), (2, 15)):
        with pytest.raises(ValueError, match=rf"samples have shape \({', '.join(map(str, shape))},?\); .* \(B, 5, 3\)"):
            check_shape(torch.zeros(shape), (5, 3), "samples")
    check_shape(torch.zeros(1, 5, 3), (5, 3), "samples")
    check_latents(torch.zeros(0), ())
    assert noise_of((2,), None, seeds(0, 1), torch.device("cpu")).shape == (2,)


def test_a_call_takes_what_its_signature_names():
    assert observed().call_with(latents=3, generator=None) == {"latents": 3}
    with pytest.raises(
        ValueError, match=r"ObservedSequencePipeline takes no class_labels \(0 given\), only ARPipeline, Den"
    ):
        observed().call_with(class_labels=0)
