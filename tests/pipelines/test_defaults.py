"""Defaults of calls of pipelines: what is computed where nothing is said."""

from tests.helpers.defaults import defaults_in

MODULES = ("anomaly", "autoregressive", "energy", "energy_terms", "guidance", "guides", "inversion", "latent_denoising")
MODULES += ("latents", "normalizing_flow", "styles", "stylegan", "vae", "word_vectors")
IMAGE = {"guidance_scale": 1.0, "temperature": 1.0, "output_type": "pil"}
LIKELIHOOD = {"likelihood_sigma": 0.1, "likelihood_components": 5, "variational": True}
ODE = {"num_inference_steps": 50, "guidance_scale": 1.0, "method": "ode"}
TRACE = {"num_inference_steps": 20, "num_probes": 1, "trace": "auto", "batch_size": 64}
DEFAULTS = {
    "Scorer": {"noise_seed": 0},
    "AnomalyPipeline": {
        "score": "density", "num_samples": 8, "false_alarm_rate": 0.001, "heat_scale": 1.0, "center_crop": True,
        "background": "white", "likelihood": "gaussian", **LIKELIHOOD, "likelihood_sigma": 0.2, "noise_seed": 0,
    },
    "AnomalyPipeline.describe": {"batch_size": 256},
    "ARPipeline.__call__": IMAGE,
    "ARPipeline.complete": IMAGE,
    "ARPipeline.log_likelihood": {"batch_size": 256},
    "ARPipeline.bits_per_dim": {"batch_size": 256},
    "EnergyPipeline.__call__": {
        "guidance_scale": 1.0, "return_trajectory": False, "callback_on_step_end_tensor_inputs": ("latents",),
    },
    "EnergyPipeline.inpaint": {"guidance_scale": 1.0, "output_type": "pil"},
    "EnergyPipeline.energy": {"batch_size": 256},
    "EnergyPipeline.score": {"batch_size": 256},
    "EnergyPipeline.anomaly_score": {"batch_size": 256},
    "EnergyGuidance": {"scale": 1.0, "interval": (0.0, 1.0), "on": "x_0"},
    "ClassifierGuidance": {"scale": 1.0, "interval": (0.0, 0.95)},
    "Autoguidance": {"scale": 2.0, "interval": (0.0, 1.0)},
    "ProjectedGuidance": {"parallel": 0.0, "momentum": 0.0},
    "InversionMixin.invert": ODE,
    "InversionMixin.decode": ODE,
    "InversionMixin.reconstruct": ODE,
    "InversionMixin.interpolate": {"steps": 9, "kind": "spherical", **ODE},
    "InversionMixin.between": {"steps": 9, "kind": "spherical", **ODE},
    "LatentPipeline": LIKELIHOOD,
    "LatentPipeline.log_likelihood": TRACE,
    "LatentPipeline.bits_per_dim": TRACE,
    "LatentMixin.interpolate": {"steps": 9, "kind": "linear"},
    "LatentMixin.between": {"steps": 9, "kind": "linear"},
    "LatentMixin.change": {"strength": 1.0},
    "LatentMixin.traversal": {"steps": 9, "reach": 3.0},
    "NormalizingFlowPipeline": {"noise_level": 0.0},
    "NormalizingFlowPipeline.__call__": IMAGE,
    "NormalizingFlowPipeline.log_likelihood": {"batch_size": 256, "num_samples": 1},
    "NormalizingFlowPipeline.bits_per_dim": {"batch_size": 256, "num_samples": 1},
    "StyleGANPipeline.__call__": {"noise_strength": 1.0, "output_type": "pil"},
    "StyleGANPipeline.project": {"space": "w+", "steps": 300, "learning_rate": 0.1},
    "StyleMixin.directions": {"layers": "all"},
    "StyleMixin.edits": {"layers": "all", "steps": 7, "reach": 3.0},
    "StyleMixin.mix": {"layers": "fine"},
    "StyleMixin.mixing_grid": {"layers": "fine"},
    "StyleMixin.traversal": {"steps": 9, "reach": 3.0},
    "VAEPipeline": {"likelihood": "bernoulli", **LIKELIHOOD},
    "VAEPipeline.__call__": {"temperature": 1.0, "output_type": "pil"},
    "VAEPipeline.elbo": {"num_samples": 10, "batch_size": 800},
    "VAEPipeline.log_likelihood": {"num_samples": 100, "batch_size": 800},
    "VAEPipeline.bits_per_dim": {"num_samples": 100, "batch_size": 800},
    "WordVectorsPipeline.most_similar": {"negative": (), "count": 10},
    "WordVectorsPipeline.analogy": {"count": 1},
}  # fmt: skip


def test_defaults_are_the_documented_ones():
    assert defaults_in("hfgen.pipelines", MODULES) == DEFAULTS
