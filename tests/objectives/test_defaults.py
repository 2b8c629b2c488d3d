"""Defaults of objectives: each is a choice that the docs and recipes state, and the papers where they have one."""

import importlib
import inspect
import pkgutil

import torch

import hfgen.objectives
from hfgen.distributions.densities import flow_log_prob
from hfgen.objectives.adversarial import LOSSES, Adversarial
from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.objectives.negative_sampling import NegativeSampling
from hfgen.paths import StraightPath

UNCONDITIONAL = {"num_classes": None, "condition": None}
DRAWN = {"time_sampling": "low_discrepancy", "label_dropout": 0.1, **UNCONDITIONAL}
LOGIT = {"logit_mean": 0.0, "logit_std": 1.0}
DEFAULTS = {
    "AdaptiveAugmentation": {"target": 0.6, "speed": 500_000},  # of Karras et al. 2020
    "Adversarial": {
        "penalties": (), "n_critic": 1, "augment": (), "mode_seeking": 0.0, "conditional": False, "replay": None,
        "fresh_batches": True, "regularizers": (), "inputs": None,
    },
    "AdversarialLoss": {"boundary": 0.0, "paired": False},
    "Alignment": {"weight": 0.5},  # of Yu et al. 2024
    "AutoencoderGAN": {
        "adversarial": "hinge", "weight": 1.0, "start_step": 0, "pixels": 1.0, "perceptual": 0.0,
        "feature_matching": 0.0, "adaptive": True, "penalties": (),
    },
    "AutoencoderTerms": {"sample_params": None},
    "Consistency": {"every": 1, "transforms": ("translation",)},
    "ContinuousLikelihood": {"num_steps": 8, "dequantisation": "uniform", "label_dropout": 0.0, **UNCONDITIONAL},
    "ContrastiveDivergence": {
        "start": "persistent", "chains": None, "restart": 0.05,  # of Du & Mordatch 2019, section 3
        "penalty": 0.1, "data_noise": 0.03, "num_classes": None, "label_dropout": 0.1,
    },
    "Control": {"every": 1},
    "Corner": {"moves": True, "to_data": False, "direction": "data", "step": None},
    "Denoising": {
        "prediction_type": "flow_prediction", "weighting": "simple", "snr_gamma": 5.0,  # of Hang et al. 2023
        "sigmoid_bias": 0.0, **DRAWN, **LOGIT, "time_sampling": "uniform",
    },
    "Distilled": {
        "prediction_type": "flow_prediction", "method": "sid", "alpha": 1.2, "last_alpha": 1.0, "alpha_steps": 1000,
        "least_time": 0.02, "most_time": 0.98, "guidance_scale": 1.0, "generate": None, "noise_shape": None,
        "adversarial": None, "adversarial_weight": 1.0, "label_dropout": 0.0, **UNCONDITIONAL,
    },
    "ELBO": {"beta": 1.0, "warmup_steps": 0, "free_bits": 0.0, "prior_samples": False},
    "Encoded": {"variational": True},  # z is drawn, as Rombach et al. 2022 do
    "EnergyMatching": {"weight": 1.0},
    "EquilibriumMatching": {"decay": 0.2, "coupling": "independent", **DRAWN},
    "FlowMap": {
        "method": "improved_mean_flow", "tangent": "difference", "step_share": 0.05, "curriculum_steps": 0,
        "flow_share": 0.5, "teacher": None, "guidance_scale": 1.0, "adaptive_power": 0.5, **DRAWN, **LOGIT,
    },
    "GradientPenalty": {"weight": 10.0, "every": 1},  # of Gulrajani et al. 2017
    "GradientRegression": {"coupling": "independent", **DRAWN},
    "Langevin": {"bound": None},
    "LearnedRange": {"vlb_weight": 1e-3, "importance": False},  # of Nichol & Dhariwal 2021
    "MaskedAutoencoding": {"mask_ratio": 0.75, "normalised_targets": False},  # 0.75 of He et al. 2022
    "MaximumLikelihood": {
        "dequantisation": "uniform", "noise_level": 0.05, "label_dropout": 0.0, "log_prob": flow_log_prob,
        "noise_shape": None, "player": "flow", **UNCONDITIONAL,
    },
    "MomentMatching": {"estimator": "unbiased", "root": False},
    "NegativeSampling": {  # of word2vec.c: 5 noise words, t = 1e-3, and the power of 3/4
        "method": "skip_gram", "negatives": 5, "subsample": 1e-3, "power": 0.75, "player": "vectors",
    },
    "NoiseConditionalScore": {"sigma_min": 0.01, "sigma_max": 10.0, **DRAWN},
    "NoisyClassification": {"noise": True, "label_smoothing": 0.0, "augment": ()},
    "OneStep": {"two_times": False, "ratio": None},
    "PathLength": {"weight": 0.01, "every": 4, "decay": 0.99},
    "Orthogonal": {"weight": 0.0001, "every": 1},
    "Penalty": {"every": 1},
    "R1": {"every": 1},
    "R2": {"every": 1},
    "PriorPreservation": {"weight": 1.0},  # lambda of Ruiz et al. 2022
    "Reconstruction": {"corruption": "none", "strength": 0.3},
    "ReverseVariance": {"prediction_type": "epsilon", "target": "npr", "label_dropout": 0.1, **UNCONDITIONAL},
    "Regularizer": {"every": 1},
    "Step": {"seed": 0, "turn": 0, "shard": 0, "shards": 1},
    "StyleInputs": {"mixing": 0.9},  # of Karras et al. 2019
    "Term": {"every": 1},
    "TokenFlow": {"random_order": False, "label_dropout": 0.0, "player": "model", **UNCONDITIONAL},
    "TripleAdversarial": {  # alpha of Li et al. 2017, and their weight of the pseudo-discriminative loss on MNIST
        "alpha": 0.5, "loss": "non_saturating", "estimator": "sampled", "pseudo_pairs": 0.0, "pseudo_weight": 0.1,
        "pseudo_after": 0, "entropy": 0.0, "penalties": (), "augment": (),
    },
    "UniDiffusion": {"text_weight": 1.0, "end_share": 0.5},
    "VectorQuantized": {"commitment": 0.25},  # of van den Oord et al. 2017
    "WeightClipping": {"bound": 0.01},  # of Arjovsky et al. 2017
}  # fmt: skip
"""Class -> the defaults of its arguments."""


def defaults_of(call):
    parameters = inspect.signature(call).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_defaults_are_the_documented_ones():
    """Of every public class of the room, so that a new one is noticed."""
    found = {}
    for module in pkgutil.iter_modules(hfgen.objectives.__path__):
        members = vars(importlib.import_module(f"hfgen.objectives.{module.name}"))
        for name, member in members.items():
            if inspect.isclass(member) and member.__module__.endswith(module.name) and not name.startswith("_"):
                found |= {name: values} if (values := defaults_of(member)) else {}
    assert found == DEFAULTS


def test_a_loss_that_does_not_say_so_reads_no_real_scores():
    """A turn of the generator evaluates the discriminator once, and twice where scores are compared in pairs."""
    for name, expected in {**dict.fromkeys(LOSSES, 1), "relativistic": 2}.items():
        calls = []
        networks = {"generator": lambda z: z, "discriminator": lambda x, calls=calls: calls.append(x) or x.sum(1)}
        Adversarial(name, 2).loss("generator", networks, {"x": torch.ones(3, 2)}, Step(0))
        assert len(calls) == expected, name


def test_five_noise_words_stand_against_a_pair():
    """Where all scores are zero, every one of the 1 + 5 words costs log 2."""
    network = lambda words, others: torch.zeros(others.shape, requires_grad=True)  # noqa: E731
    objective = NegativeSampling(torch.tensor([1, 1]), subsample=0.0)
    loss = objective.loss("vectors", {"vectors": network}, {"x": torch.tensor([[0, 1, 0]])}, Step(0))
    torch.testing.assert_close(loss.value, 6 * torch.tensor(2.0).log())
    assert loss.logs["pairs"] == 2


def test_words_are_as_frequent_as_the_defaults_say():
    """A word that is a hundredth of the text: (1e-3 / .01)^(1/2) + 1e-3 / .01 of it stays. Noise by the power 3/4."""
    objective = NegativeSampling(torch.tensor([99, 1]))
    windows = objective.windows(torch.ones(40_000, 1, dtype=torch.long), Step(0))
    assert abs(float((windows >= 0).double().mean()) - 0.1**0.5 - 0.1) < 0.01
    assert abs(float((objective.noise(20_000, Step(1)) == 1).double().mean()) - 1 / (1 + 99**0.75)) < 0.003


def test_objectives_say_what_they_differentiate_and_where_they_begin():
    assert not Denoising(StraightPath()).differentiates_twice and not Adversarial("hinge", 2).differentiates_twice
    assert Denoising(StraightPath()).earliest == 1e-3
