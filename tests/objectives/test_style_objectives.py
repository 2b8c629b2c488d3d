"""Path lengths, style inputs and adaptive augmentation: closed forms, brute force, state that goes on bit for bit."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import hfgen
from hfgen.objectives.augmentation import AUGMENTATIONS, augment
from hfgen.objectives.base import Step
from hfgen.objectives.regularizers import GeneratorTurn, path_lengths

NAMES = tuple(AUGMENTATIONS)


def noise_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- path lengths -----------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """x_k = w^T A_k w + b_k . w of styles w, with a Jacobian that is known."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(noise_of(8, 6, 6).double())
        self.b = nn.Parameter(noise_of(8, 6, seed=1).double())

    def forward(self, styles):
        w = styles.flatten(1)
        values = torch.einsum("bi,kij,bj->bk", w, self.a, w) + w @ self.b.T
        return SimpleNamespace(sample=values.view(-1, 2, 2, 2), styles=styles)


def test_a_path_length_is_the_norm_of_the_jacobian_times_noise_by_finite_differences():
    model, styles, y = Quadratic(), noise_of(3, 2, 3).double().requires_grad_(), noise_of(3, 2, 2, 2, seed=2).double()
    found = path_lengths(model(styles).sample, styles, y)
    h = 1e-6
    for image in range(3):
        gradient = []
        for number in range(6):
            shift = torch.zeros(6).double()
            shift[number] = h
            above, below = (model(styles[image : image + 1] + sign * shift.view(2, 3)).sample for sign in (1, -1))
            gradient.append((((above - below) / (2 * h)) * y[image]).sum().item() / 2)  # sqrt(H W) = 2
        assert_close(found[image].item(), torch.tensor(gradient).norm().item(), rtol=1e-6, atol=1e-8)


def test_the_mean_square_of_path_lengths_is_the_squared_norm_of_the_jacobian_over_pixels():
    model, styles = Quadratic(), noise_of(1, 2, 3).double()
    jacobian = torch.autograd.functional.jacobian(lambda w: model(w).sample.flatten(), styles).view(8, 6)
    many = styles.expand(40_000, -1, -1).clone().requires_grad_()
    lengths = path_lengths(model(many).sample, many, noise_of(40_000, 2, 2, 2, seed=3).double())
    assert_close(lengths.square().mean().item(), (jacobian.square().sum() / 4).item(), rtol=0.03, atol=0)


def test_the_gradient_of_the_penalty_is_that_of_finite_differences():
    step, styles = Step(0), noise_of(4, 2, 3).double()

    def penalty(model):
        term, leaf = hfgen.PathLength(), styles.clone().requires_grad_()
        term.state.mean.fill_(2.0)
        output = model(leaf)
        return term.value(GeneratorTurn(output, output.sample, step, None))

    model = Quadratic()
    penalty(model).backward()
    for place in ((0, 1, 2), (5, 3, 3)):
        values = []
        for sign in (1, -1):
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.a[place] += sign * 1e-5
            values.append(penalty(other).item())
        assert_close(model.a.grad[place].item(), (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-7)


def test_the_reference_length_is_the_first_mean_and_then_a_moving_average_of_means_of_steps():
    term, model = hfgen.PathLength(decay=0.9), Quadratic()
    means = []
    for number in range(3):
        halves = []
        for part in range(2):  # micro-batches
            styles = noise_of(4, 2, 3, seed=10 * number + part).double().requires_grad_()
            output = model(styles)
            term.value(GeneratorTurn(output, output.sample, Step(number, shard=part, shards=2), None))
            y = Step(number, shard=part, shards=2).randn("path_length", output.sample)
            halves.append(path_lengths(output.sample, styles, y).mean().item())
        term.end_step()
        means.append(sum(halves) / 2)
    assert_close(term.state.mean.item(), 0.81 * means[0] + 0.09 * means[1] + 0.1 * means[2], rtol=1e-5, atol=0)
    before = term.state.mean.clone()
    term.end_step()  # of a step without the penalty
    assert torch.equal(term.state.mean, before)
    with pytest.raises(ValueError, match="PathLength needs a generator whose output has styles"):
        term.value(GeneratorTurn(SimpleNamespace(sample=None), torch.zeros(1), Step(0), None))


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_style_inputs_mix_the_stated_share_of_images_at_every_inner_layer():
    inputs, items = hfgen.StyleInputs(3, 5, 7, 0.25), torch.zeros(20_000, 1)
    drawn = inputs(items, Step(3), "input")
    counts = torch.bincount(drawn["crossover"], minlength=6) / len(items)
    assert counts[0] == 0 and abs(counts[5].item() - 0.75) < 0.015
    assert (counts[1:5] - 0.0625).abs().max() < 0.008
    assert drawn["noise"].shape == (20_000, 7) and drawn["mixed"].shape == (20_000, 3)
    assert abs(drawn["noise"].std().item() - 1) < 0.01
    again = inputs(items, Step(3), "input")
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert not torch.equal(inputs(items, Step(4), "input")["noise"], drawn["noise"])
    assert set(hfgen.StyleInputs(3, 5, 7, 0.0)(items, Step(3), "input")) == {"noise"}


# --- augmentation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_probability_0_is_the_identity_and_1_is_the_augmentation(name):
    images, step = noise_of(16, 3, 8, 6), Step(5)
    assert torch.equal(augment(images, [name], step, "real", torch.tensor(0.0)), images)
    whole = augment(images, [name], step, "real")
    assert torch.equal(augment(images, [name], step, "real", torch.tensor(1.0)), whole)
    half = augment(images.repeat(40, 1, 1, 1), [name], Step(5), "real", torch.tensor(0.5))
    whole = augment(images.repeat(40, 1, 1, 1), [name], Step(5), "real")
    kept, idle = ((each == images.repeat(40, 1, 1, 1)).flatten(1).all(1) for each in (half, whole))
    assert ((half == whole).flatten(1).all(1) | kept).all()  # each image is augmented whole or not at all
    assert abs(kept[~idle].float().mean().item() - 0.5) < 0.09  # half of the flips, for one, change nothing


@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_through_every_augmentation(name):
    images = (0.5 * noise_of(4, 2, 6, 6)).double().requires_grad_()
    weights = noise_of(4, 2, 6, 6, seed=1).double()

    def value(x):
        return (augment(x, [name], Step(2), "fake", torch.tensor(0.7)) * weights).sum()

    (gradient,) = torch.autograd.grad(value(images), images)
    for place in ((0, 0, 2, 3), (1, 1, 3, 1), (3, 0, 5, 5)):
        shift = torch.zeros_like(images)
        shift[place] = 1e-5
        with torch.no_grad():
            expected = (value(images + shift) - value(images - shift)) / 2e-5
        assert_close(gradient[place], expected, rtol=1e-5, atol=1e-7)


def test_augmentations_leave_the_statistics_that_they_should():
    images = noise_of(200, 3, 6, 6)
    flipped = augment(images, ["flip"], Step(0), "real")
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (mirrored | (flipped == images).flatten(1).all(1)).all() and 0.35 < mirrored.float().mean() < 0.65
    shifts = (augment(images, ["brightness"], Step(0), "real") - images).flatten(1)
    assert shifts.std(1).max() < 1e-5 and shifts.abs().max() <= 0.5 and shifts[:, 0].std() > 0.2
    pale = augment(images, ["saturation"], Step(0), "real")
    assert_close(pale.mean(1), images.mean(1), rtol=1e-4, atol=1e-5)  # grey values stay
    factors = pale.std((1, 2, 3)) / images.std((1, 2, 3))
    assert factors.min() < 0.8 and factors.max() > 1.2
    flat = augment(images, ["contrast"], Step(0), "real")
    assert_close(flat.mean((1, 2, 3)), images.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    factors = flat.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.5 <= factors.min() < 0.6 and 1.4 < factors.max() < 1.5


def test_the_probability_goes_up_when_real_scores_are_too_often_positive_and_down_otherwise():
    adaptive = hfgen.AdaptiveAugmentation(["flip"], target=0.5, speed=100)
    path = []
    for margins in ([1.0, 2, 3, 4], [1, 1, 1, -1.0], [1, 1, 1, 1], [-1, -2, -3, -4.0], [-1, -1, -1, -1]):
        for half in torch.tensor(margins).chunk(2):  # micro-batches
            adaptive.observe(half)
        adaptive.end_step()
        path.append(round(adaptive.probability.item(), 4))
    assert path == [0.04, 0.04, 0.08, 0.04, 0.0]  # the second step is at the target; p is never below 0
    for _ in range(60):
        adaptive.observe(torch.ones(4))
        adaptive.end_step()
    assert adaptive.probability == 1
    adaptive.end_step()  # nothing was observed
    assert adaptive.probability == 1


def test_the_state_of_adaptation_and_of_lengths_goes_on_bit_for_bit():
    def fresh():
        adaptive = hfgen.AdaptiveAugmentation(["flip"], 0.5, 1000)
        return hfgen.Adversarial("non_saturating", 4, augment=adaptive, regularizers=[hfgen.PathLength()])

    first, second = fresh(), fresh()
    assert set(first.state) == {"augmentation", "path_length"}
    for number in range(5):
        first.augment.observe(noise_of(6, seed=number) + 0.5)
        first.regularizers[0].state.steps.add(noise_of(6, seed=number).abs())
        if number == 2:  # in the middle of a step
            for name, module in first.state.items():
                second.state[name].load_state_dict(module.state_dict())
        if number > 2:
            second.augment.observe(noise_of(6, seed=number) + 0.5)
            second.regularizers[0].state.steps.add(noise_of(6, seed=number).abs())
        for each in (first, second) if number >= 2 else (first,):
            for player in ("discriminator", "generator"):
                each.constrain(player, {"discriminator": nn.Identity(), "generator": nn.Identity()})
    assert first.augment.probability > 0 and first.regularizers[0].state.mean > 0
    for name, module in first.state.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, second.state[name].state_dict()[key])


# --- the objective ----------------------------------------------------------------------------------------------------


def game(**options):
    torch.manual_seed(0)
    generator, discriminator = hfgen.build_stylegan("xs", 8, 1, 4)
    for layer in generator.layers:
        torch.nn.init.constant_(layer.noise_strength, 0.3)
    inputs = hfgen.StyleInputs(4, generator.num_layers, generator.noise_size)
    objective = hfgen.Adversarial("non_saturating", 4, inputs=inputs, **options)
    return {"generator": generator, "discriminator": discriminator}, objective


def test_the_generator_loss_is_the_adversarial_one_plus_the_lazy_penalty():
    term = hfgen.PathLength(weight=2.0, every=3)
    networks, objective = game(regularizers=[term])
    batch = {"x": noise_of(6, 1, 8, 8)}
    for number in (0, 1):
        step = Step(number, turn=1)
        loss = objective.loss("generator", networks, batch, step)
        z = step.randn("latent", torch.empty(6, 4))
        output = networks["generator"](z, **objective.inputs(batch["x"], step, "input"))
        scores = networks["discriminator"](output.sample).logits
        expected = torch.nn.functional.softplus(-scores).mean()
        if number == 0:
            lengths = path_lengths(output.sample, output.styles, step.randn("path_length", output.sample))
            expected = expected + 6 * lengths.var(unbiased=False)  # the reference is their mean
        assert_close(loss.value, expected)
        assert ("path_length" in loss.logs) == (number == 0)
    objective.loss("generator", networks, batch, Step(3, turn=1)).value.backward()
    assert all(parameter.grad is not None for parameter in networks["generator"].parameters())


def test_the_discriminator_sees_augmented_images_with_the_present_probability():
    adaptive = hfgen.AdaptiveAugmentation(["brightness", "flip"], 0.6, 100)
    networks, objective = game(augment=adaptive)
    adaptive.probability.fill_(0.5)
    batch, step = {"x": noise_of(6, 1, 8, 8)}, Step(0)
    loss = objective.loss("discriminator", networks, batch, step)
    real = augment(batch["x"], ("brightness", "flip"), step, "real", torch.tensor(0.5))
    real_scores = networks["discriminator"](real).logits
    assert_close(loss.logs["score_real"], real_scores.mean())
    assert loss.logs["augment_probability"] == 0.5
    objective.constrain("discriminator", networks)
    sign = 1 if real_scores.sign().mean() > 0.6 else -1
    assert_close(adaptive.probability.item(), 0.5 + sign * 0.06)


def test_parts_that_do_not_go_together_are_refused():
    adaptive = hfgen.AdaptiveAugmentation(["flip"])
    for build, message in (
        (lambda: hfgen.AdaptiveAugmentation([]), "names are empty"),
        (lambda: hfgen.AdaptiveAugmentation(["blur"]), "'blur' is not known"),
        (lambda: hfgen.AdaptiveAugmentation(["flip"], target=0.0), "target"),
        (lambda: hfgen.AdaptiveAugmentation(["flip"], speed=0), "speed"),
        (lambda: hfgen.Adversarial("relativistic", 4, augment=adaptive), "no score that divides real from generated"),
        (lambda: hfgen.Adversarial("hinge", 4, regularizers=[hfgen.PathLength()] * 2), "two of one class"),
        (lambda: hfgen.PathLength(weight=0.0), "PathLength: weight"),
        (lambda: hfgen.PathLength(decay=1.0), "PathLength: decay"),
        (lambda: hfgen.StyleInputs(4, 4, 8, 1.5), "mixing"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
