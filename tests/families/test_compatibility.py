"""Networks, objectives, data and pipelines that do not belong together are refused by name, before any step."""

import pytest
import torch
from torch import nn

import hfgen
from hfgen.distributions.likelihoods import build_likelihood
from hfgen.objectives.base import Loss, Objective
from hfgen.paths import StraightPath

DIGITS = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LIKELIHOOD = build_likelihood("gaussian")


def dit(**options):
    return hfgen.DiTModel(8, 1, 1, patch_size=4, hidden_size=16, num_layers=1, num_attention_heads=2, **options)


def glow():
    return hfgen.CouplingFlowModel(8, 1, hidden_channels=8, network_depth=1, layers_per_level=2)


def tokens():
    return hfgen.ContinuousTransformerModel(8, 1, patch_size=4, num_layers=1, hidden_size=16, num_attention_heads=1)


def fit(folder, network, objective, data=DIGITS, **options):
    options = {"max_train_steps": 1, "train_batch_size": 4, "report_to": "none", "sample_steps": 0, **options}
    return hfgen.train(network, objective, data, folder, **options)


MISMATCHES = {
    "a denoiser for a likelihood": (dit, hfgen.MaximumLikelihood, DIGITS, "MaximumLikelihood calls flow with items"),
    "a flow for denoising": (glow, lambda: hfgen.Denoising(StraightPath()), DIGITS, "calls denoiser with items, times"),
    "a denoiser of tokens": (dit, lambda: hfgen.TokenFlow(4), DIGITS, "TokenFlow calls model with items, noise, time"),
    "diffusers' denoiser for a likelihood": (
        *(lambda: hfgen.build_denoiser("unet", "xs", 8, 1), hfgen.MaximumLikelihood, DIGITS),
        r"no loss for flow \(UNet2DModel\) on items of shape \(1, 8, 8\)",
    ),
    "other channels": (glow, hfgen.MaximumLikelihood, torch.zeros(8, 3, 8, 8), r"shape \(1, 8, 8\), .*\(3, 8, 8\)"),
    "other channels for diffusers'": (
        *(lambda: hfgen.build_denoiser("unet", "xs", 8, 1), lambda: hfgen.Denoising(StraightPath())),
        *(torch.zeros(8, 3, 8, 8), r"no loss for denoiser \(UNet2DModel\) on items of shape \(3, 8, 8\)"),
    ),
    "other number of tokens": (tokens, lambda: hfgen.TokenFlow(7), DIGITS, "no loss for model .*: The size of tensor"),
    "more classes": (
        *(lambda: dit(num_class_embeds=3), lambda: hfgen.Denoising(StraightPath(), num_classes=2)),
        *({"x": DIGITS, "labels": torch.arange(16) % 3}, r"num_classes=2, .* 3 classes. Give num_classes=3"),
    ),
    "a denoiser for an ELBO": (dit, lambda: hfgen.ELBO(LIKELIHOOD, (3, 1, 1)), DIGITS, "ELBO has no loss for autoenc"),
    "latents of another shape": (
        lambda: hfgen.AutoencoderWithPrior(hfgen.build_autoencoder("mlp", "s", 8, 1, 1)),
        *(lambda: hfgen.ELBO(LIKELIHOOD, (3, 1, 1)), DIGITS, "ELBO has no loss for autoencoder"),
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, case):
    network, objective, data, message = MISMATCHES[case]
    with pytest.raises(ValueError, match=message) as error:
        fit(tmp_path, network(), objective(), data)
    assert "\n" not in str(error.value)


def test_parts_that_belong_together_train(tmp_path):
    assert fit(tmp_path / "a", tokens(), hfgen.TokenFlow(4)).step == 1
    assert fit(tmp_path / "b", glow(), hfgen.MaximumLikelihood()).step == 1
    few = {"x": DIGITS, "labels": torch.zeros(16, dtype=torch.long)}  # fewer classes than the network has
    assert fit(tmp_path / "c", dit(num_class_embeds=3), hfgen.Denoising(StraightPath(), num_classes=2), few).step == 1


def test_an_error_of_a_later_step_stays_as_it_is(tmp_path):
    class Late(Objective):
        players = ("net",)

        def loss(self, player, networks, batch, step):
            if step.number == 1:
                raise RuntimeError("the disk of the caller")
            return Loss(networks[player](batch["x"].flatten(1)).mean(), {})

    with pytest.raises(RuntimeError, match=r"^the disk of the caller$"):
        fit(tmp_path, nn.Linear(64, 1), Late(), max_train_steps=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hfgen.ARPipeline(dit()), r"model \(DiTModel\) has no draw and no noise_shape. Give an Autoregressive"),
        (lambda: hfgen.NormalizingFlowPipeline(dit()), r"flow \(DiTModel\) has no inverse. Give a CouplingFlowModel"),
        (lambda: hfgen.GANPipeline(dit()), r"generator \(DiTModel\) has no config.latent_channels"),
        (
            lambda: hfgen.VQPipeline(hfgen.build_autoencoder("mlp", "s", 8, 1, 1)),
            r"autoencoder \(MLPAutoencoderModel\) has no config.num_vq_embeddings",
        ),
        (
            lambda: hfgen.VAEPipeline(
                hfgen.build_autoencoder("vq", "s", 8, 1, 1), hfgen.GaussianMixturePriorModel((32, 2, 2))
            ),
            "has codes and no q",
        ),
        (
            lambda: hfgen.VAEPipeline(
                hfgen.build_autoencoder("mlp", "s", 8, 1, 1), hfgen.GaussianMixturePriorModel((3, 1, 1))
            ),
            r"latents \(3, 1, 1\), and the autoencoder's have 20 channels",
        ),
        (
            lambda: hfgen.VAEPipeline(hfgen.build_autoencoder("mlp", "s", 8, 1, 1), dit()),
            r"prior \(DiTModel\) has no config.latent_shape",
        ),
    ],
)
def test_a_pipeline_refuses_a_network_of_another_kind(make, message):
    with pytest.raises(ValueError, match=message):
        make()
