"""Transformers over continuous tokens: what depends on what, in any order; the cache; samples of a known velocity."""

import pytest
import torch

import hfgen
from hfgen.models.continuous_transformer import FlowHead
from hfgen.objectives.base import Step
from tests.models.test_autoregressive import random_weights

SMALL = {"sample_size": 4, "patch_size": 2, "num_layers": 1, "hidden_size": 16, "num_attention_heads": 2}


def network(scale=0.3, **options):
    sizes = {**SMALL, "head_size": 16, "head_layers": 2, **options}
    return random_weights(hfgen.ContinuousTransformerModel(**sizes), scale=scale)


@pytest.mark.parametrize("random_order", [False, True])
def test_a_velocity_depends_on_its_own_noise_and_on_earlier_tokens(random_order):
    model = network(random_order=random_order).double()
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(1, 1, 4, 4, generator=generator).double() for _ in range(2))
    time = torch.rand(1, 4, generator=generator).double()
    order = torch.tensor([[2, 0, 3, 1]]) if random_order else None

    def velocities(x):
        return model(x, noise, time, order=order).sample[0]

    jacobian = torch.autograd.functional.jacobian(velocities, x)[:, :, 0, 0]  # (N, D, 4, 4)
    patches = torch.nn.functional.pixel_unshuffle(jacobian.flatten(0, 1)[:, None], 2).flatten(2)  # (N D, 4, patches)
    size = patches.abs().sum(1).view(4, 4, 4).sum(1)  # (of token, by patch)
    places = order[0].tolist() if random_order else range(4)
    for turn in range(4):
        for other, place in enumerate(places):
            assert (size[turn, place] > 0) == (other <= turn)  # its own token by x_t


@pytest.mark.parametrize("options", [{}, {"random_order": True}, {"sample_size": 8, "in_channels": 3}])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_cache_changes_no_bit(options, count, scale):
    model = network(num_class_embeds=4, **options)
    u = torch.rand(count, *model.noise_shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % 3
    draws = [model.draw(u, labels, scale, num_steps=3, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*draws)
    assert torch.equal(model.draw(u[:1], labels[:1], scale, num_steps=3), draws[0][:1])


def test_tokens_of_a_known_velocity_have_their_distribution():
    """A head whose velocity is that of N(m, s^2) on the straight path: samples have its mean and deviation."""
    model, mean, deviation = network(), 0.4, 0.5

    class Exact(torch.nn.Module):
        def forward(self, x, time, contexts):
            t = time[..., None]
            variance = ((1 - t) * deviation) ** 2 + t**2
            return (t - (1 - t) * deviation**2) / variance * (x - (1 - t) * mean) - mean

    model.head = Exact()
    u = torch.rand(500, *model.noise_shape, generator=torch.Generator().manual_seed(2))
    x = model.draw(u, num_steps=200)
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.std().item() == pytest.approx(deviation, abs=0.02)
    still = model.draw(u, num_steps=200, temperature=0.0)
    torch.testing.assert_close(still, torch.full_like(still, mean), atol=1e-2, rtol=0)


@pytest.mark.parametrize("random_order", [False, True])
def test_known_tokens_are_kept(random_order):
    model = network(random_order=random_order)
    u = torch.rand(3, *model.noise_shape, generator=torch.Generator().manual_seed(3))
    given = torch.randn(3, 1, 4, 4)
    drawn = model.draw(u, known=given, num_known=model.tokens_above(2), num_steps=2)
    assert torch.equal(drawn[:, :, :2], given[:, :, :2])
    assert not torch.equal(drawn, given)
    with pytest.raises(ValueError, match="1 rows"):
        model.tokens_above(1)


def test_the_objective_is_the_squared_error_of_velocities_in_its_order():
    model, x = network(random_order=True), torch.randn(3, 1, 4, 4)
    objective, step = hfgen.TokenFlow(4, random_order=True), Step(7)
    loss = objective.loss("model", {"model": model}, {"x": x}, step).value
    noise, time = step.randn("noise", x), step.rand("time", 12).view(3, 4).float()
    order = step.rand("order", 12).view(3, 4).argsort(1)
    assert sorted(order[0].tolist()) == [0, 1, 2, 3] and not torch.equal(order[0], order[1])
    target = torch.nn.functional.pixel_unshuffle(noise - x, 2).flatten(2).transpose(1, 2)
    target = torch.stack([row[places] for row, places in zip(target, order, strict=True)])
    velocity = model(x, noise, time, order=order).sample
    torch.testing.assert_close(loss, (velocity - target).square().mean())
    with pytest.raises(ValueError, match="num_tokens=0"):
        hfgen.TokenFlow(0)


def test_a_head_starts_at_zero_and_depends_on_its_time():
    head = FlowHead(3, 8, 16, 2)
    x, contexts = torch.randn(2, 4, 3), torch.randn(2, 4, 8)
    assert not head(x, torch.rand(2, 4), contexts).any()
    random_weights(head)
    assert not torch.equal(head(x, torch.zeros(2, 4), contexts), head(x, torch.ones(2, 4), contexts))


def test_pipelines_of_continuous_tokens():
    pipeline = hfgen.ARPipeline(network(num_class_embeds=4, random_order=True), 3)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(class_labels=[0, 1], guidance_scale=2.0, num_inference_steps=3).images
    assert images[0].size == (4, 4)
    assert pipeline.complete(torch.zeros(2, 1, 4, 4) - 0.1).images[0].size == (4, 4)
    with pytest.raises(ValueError, match="states no probabilities"):
        pipeline.log_likelihood(torch.zeros(1, 1, 4, 4) - 0.1)
    with pytest.raises(ValueError, match="states no probabilities"):
        pipeline.bits_per_dim(torch.full((1, 1, 4, 4), -1.0))
    plain = hfgen.ARPipeline(hfgen.build_autoregressive("fvsbn", "xs", 4, 1, 2))
    with pytest.raises(ValueError, match="num_inference_steps=3"):
        plain(num_inference_steps=3)
