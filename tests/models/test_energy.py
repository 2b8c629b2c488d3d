"""Energies of denoisers: the score against differences, forms, what the network is not told, smooth activations."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import hfgen
from hfgen.models.energy import ENERGY_FORMS

BUILDS = [("patch_unet", "dot"), ("dit", "dot"), ("unet", "scalar"), ("patch_unet", "scalar")]


def small(architecture="patch_unet", form="dot", classes=None):
    """A small energy of random weights, in float64."""
    torch.manual_seed(0)
    energy = hfgen.build_energy(architecture, "xs", 8, 1, form, classes).double().eval()
    for parameter in energy.parameters():
        nn.init.normal_(parameter, std=0.08)
    return energy


@pytest.mark.parametrize(("architecture", "form"), BUILDS)
def test_the_score_is_minus_the_gradient_by_central_differences(architecture, form):
    energy = small(architecture, form, 3)
    x, labels = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 3])
    direction, h = torch.randn_like(x), 1e-5
    with torch.no_grad():
        after, before = (energy(x + sign * h * direction, labels).energy for sign in (1, -1))
        score = energy.score(x, labels)
    slope = (score * direction).flatten(1).sum(1)
    assert_close(slope, -(after - before) / (2 * h), rtol=1e-6, atol=1e-8)
    assert not score.requires_grad and score.abs().max() > 1e-3


def test_the_dot_form_is_the_product_with_the_denoiser_at_time_zero():
    energy = small()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        output = energy.denoiser(x, torch.zeros(3)).sample
        assert_close(energy(x).energy, torch.einsum("bchw,bchw->b", x, output))
        assert_close(small(form="scalar")(x).energy, output.sum((1, 2, 3)))
        assert_close(small(form="field")(x).gradient, output)


def test_a_field_has_no_energy():
    field = small(form="field")
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    assert field(x).energy is None and not field.has_energy and small().has_energy
    assert field(x, return_dict=False)[0] is None


def test_the_gradient_can_be_differentiated_for_the_weights():
    """By central differences in a weight, through attention too."""
    energy = small()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    weight = dict(energy.named_parameters())["denoiser.unet.mid_block.attentions.0.to_q.weight"]
    energy(x, with_gradient=True).gradient.square().sum().backward()
    slope, h = weight.grad[0, 0].item(), 1e-5
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            weight[0, 0] += sign * h
            values.append(float(energy(x, with_gradient=True).gradient.square().sum()))
            weight[0, 0] -= sign * h
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("architecture", ["patch_unet", "unet", "dit", "uvit"])
def test_activations_are_smooth(architecture):
    """An energy with kinks has a score that jumps."""
    rough = (nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.PReLU, nn.RReLU, nn.Threshold, nn.Hardswish, nn.MaxPool2d)
    assert not [m for m in hfgen.build_energy(architecture, "xs", 8, 1).modules() if isinstance(m, rough)]


def test_the_initial_weights_are_those_of_the_denoiser():
    torch.manual_seed(5)
    denoiser = hfgen.build_denoiser("patch_unet", "xs", 8, 1)
    torch.manual_seed(5)
    energy = hfgen.build_energy("patch_unet", "xs", 8, 1)
    for name, value in denoiser.state_dict().items():
        assert torch.equal(energy.denoiser.state_dict()[name], value)


@pytest.mark.parametrize("form", ENERGY_FORMS)
def test_a_saved_energy_is_the_same(form, tmp_path):
    energy = small(form=form, classes=2).float()
    energy.save_pretrained(tmp_path)
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    loaded = hfgen.EnergyModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.score(x, labels), energy.score(x, labels))
    assert loaded.sample_shape == (1, 8, 8) and loaded.config.form == form


def test_what_no_energy_is_made_of_is_refused():
    with pytest.raises(ValueError, match="network='Linear' is not known"):
        hfgen.EnergyModel("Linear")
    with pytest.raises(ValueError, match="form='norm' is not known"):
        hfgen.EnergyModel(form="norm")
    with pytest.raises(ValueError, match="class_labels are needed"):
        small(classes=2)(torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="differentiated twice"):
        hfgen.build_energy("patch_unet", "xs", 8, 1, gradient_checkpointing=True)
    hfgen.build_energy("patch_unet", "xs", 8, 1, "field", gradient_checkpointing=True)
