"""Every family with its public classes, and the modules they live in; nothing is imported until it is used.

Saved pipelines name their classes; loading looks them up here and nowhere else, so that a folder can't choose what code
runs.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """One entry of the registry: the front door of a family, and the modules of its public classes by their names.

    Attributes:
        door: module with `main(argv)`, which `hfgen train <name>` runs.
        pipelines, networks, schedulers: classes that a saved pipeline may name.
        exports: other names that `from hfgen import ...` offers: objectives, functions that build networks.
    """

    door: str
    pipelines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    networks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    schedulers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exports: Mapping[str, str] = dataclasses.field(default_factory=dict)


FAMILIES = {
    "anomaly": Family(
        "hfgen.training.train_anomaly",
        pipelines={
            "AnomalyPipeline": "hfgen.pipelines.anomaly",
            "EnergyAnomalyPipeline": "hfgen.pipelines.energy_anomaly",
        },
        networks={"CalibrationModel": "hfgen.models.calibration"},
    ),
    "ar": Family(
        "hfgen.training.train_ar",
        pipelines={"ARPipeline": "hfgen.pipelines.autoregressive"},
        networks={
            "AutoregressiveTransformerModel": "hfgen.models.autoregressive_transformer",
            "ContinuousTransformerModel": "hfgen.models.continuous_transformer",
            "MaskedAutoregressiveModel": "hfgen.models.masked_autoregressive",
        },
        exports={
            "TokenFlow": "hfgen.objectives.token_flow",
            "build_autoregressive": "hfgen.models.build_autoregressive",
            "build_continuous": "hfgen.models.build_autoregressive",
        },
    ),
    "classifier": Family(
        "hfgen.training.train_classifier",
        pipelines={"NoisyClassifierPipeline": "hfgen.pipelines.noisy_classifier"},
        networks={"NoisyClassifierModel": "hfgen.models.noisy_classifier"},
        exports={"NoisyClassification": "hfgen.objectives.noisy_classification"},
    ),
    "diffusion": Family(
        "hfgen.training.train_diffusion",
        pipelines={"DenoisingPipeline": "hfgen.pipelines.denoising"},
        networks={
            "DiTModel": "hfgen.models.dit",
            "PatchUNet2DModel": "hfgen.models.patch_unet",
            "UViTModel": "hfgen.models.uvit",
            "VarianceHeadModel": "hfgen.models.variance_head",
        },
        schedulers={
            "DDIMInverseScheduler": "hfgen.schedulers.ddim",
            "DDIMScheduler": "hfgen.schedulers.ddim",
            "DDPMScheduler": "hfgen.schedulers.ddpm",
            "DPMSolverPlusPlusScheduler": "hfgen.schedulers.dpm_solver",
            "RectifiedFlowScheduler": "hfgen.schedulers.rectified_flow",
            "ScoreSDEScheduler": "hfgen.schedulers.sde",
        },
        exports={
            "AlignedDenoiser": "hfgen.models.aligned_denoiser",
            "Alignment": "hfgen.objectives.alignment",
            "Autoguidance": "hfgen.pipelines.guides",
            "ClassifierGuidance": "hfgen.pipelines.guides",
            "Denoising": "hfgen.objectives.denoising",
            "EnergyGuidance": "hfgen.pipelines.guides",
            "LearnedRange": "hfgen.objectives.learned_range",
            "PriorPreservation": "hfgen.objectives.prior_preservation",
            "ProjectedGuidance": "hfgen.pipelines.guides",
            "ReverseVariance": "hfgen.objectives.reverse_variance",
            "build_denoiser": "hfgen.models.build_denoiser",
            "hidden_features": "hfgen.pipelines.hidden_features",
        },
    ),
    "distill": Family(
        "hfgen.training.train_distill",
        schedulers={"ConsistencyScheduler": "hfgen.schedulers.consistency"},
        exports={"Distilled": "hfgen.objectives.distilled"},
    ),
    "energy": Family(
        "hfgen.training.train_energy",
        pipelines={"EnergyPipeline": "hfgen.pipelines.energy"},
        networks={"EnergyModel": "hfgen.models.energy"},
        schedulers={
            "AnnealedLangevinScheduler": "hfgen.schedulers.annealed_langevin",
            "GradientDescentScheduler": "hfgen.schedulers.descent",
            "HamiltonianScheduler": "hfgen.schedulers.hamiltonian",
            "LangevinScheduler": "hfgen.schedulers.langevin",
        },
        exports={
            "ContrastiveDivergence": "hfgen.objectives.contrastive",
            "EnergyMatching": "hfgen.objectives.energy_matching",
            "EnergyTerm": "hfgen.pipelines.energy_terms",
            "EquilibriumMatching": "hfgen.objectives.equilibrium",
            "NoiseConditionalScore": "hfgen.objectives.equilibrium",
            "Langevin": "hfgen.objectives.contrastive",
            "PersistentChains": "hfgen.objectives.persistent_chains",
            "build_energy": "hfgen.models.build_energy",
        },
    ),
    "flow": Family(
        "hfgen.training.train_flow",
        pipelines={"NormalizingFlowPipeline": "hfgen.pipelines.normalizing_flow"},
        networks={
            "AugmentedFlowModel": "hfgen.models.augmented_flow",
            "CouplingFlowModel": "hfgen.models.coupling_flow",
            "FlowPriorModel": "hfgen.models.flow_prior",
            "ResidualFlowModel": "hfgen.models.residual_flow",
            "TransformerFlowModel": "hfgen.models.transformer_flow",
        },
        exports={
            "ContinuousLikelihood": "hfgen.objectives.continuous_likelihood",
            "MaximumLikelihood": "hfgen.objectives.maximum_likelihood",
            "build_flow": "hfgen.models.build_flow",
        },
    ),
    "flow_map": Family("hfgen.training.train_flow_map", exports={"FlowMap": "hfgen.objectives.flow_map"}),
    "gan": Family(
        "hfgen.training.train_gan",
        pipelines={"GANPipeline": "hfgen.pipelines.gan"},
        networks={
            "DCGANDiscriminatorModel": "hfgen.models.discriminators",
            "DCGANGeneratorModel": "hfgen.models.generators",
            "MLPDiscriminatorModel": "hfgen.models.discriminators",
            "MLPGeneratorModel": "hfgen.models.generators",
            "ResNetDiscriminatorModel": "hfgen.models.discriminators",
            "ResNetGeneratorModel": "hfgen.models.generators",
            "ResidualDiscriminatorModel": "hfgen.models.discriminators",
            "ResidualGeneratorModel": "hfgen.models.generators",
        },
        exports={
            "AdaptiveAugmentation": "hfgen.objectives.adaptive_augmentation",
            "Adversarial": "hfgen.objectives.adversarial",
            "Consistency": "hfgen.objectives.penalties",
            "Control": "hfgen.objectives.penalties",
            "GradientPenalty": "hfgen.objectives.penalties",
            "R1": "hfgen.objectives.penalties",
            "R2": "hfgen.objectives.penalties",
            "Remembering": "hfgen.objectives.replay_buffer",
            "ReplayBuffer": "hfgen.objectives.replay_buffer",
            "WeightClipping": "hfgen.objectives.penalties",
            "build_gan": "hfgen.models.build_gan",
        },
    ),
    "gmmn": Family(
        "hfgen.training.train_gmmn",
        exports={
            "GaussianKernel": "hfgen.objectives.moment_matching",
            "MomentMatching": "hfgen.objectives.moment_matching",
            "median_distance": "hfgen.objectives.moment_matching",
            "mmd_squared": "hfgen.objectives.moment_matching",
        },
    ),
    "latent": Family(
        "hfgen.training.train_latent",
        pipelines={"LatentPipeline": "hfgen.pipelines.latent_denoising"},
        exports={
            "Encoded": "hfgen.objectives.encoded",
            "LatentScale": "hfgen.distributions.latents",
            "measured_scale": "hfgen.distributions.latents",
            "state_scale": "hfgen.distributions.latents",
            "stated_scale": "hfgen.distributions.latents",
        },
    ),
    "mae": Family(
        "hfgen.training.train_mae",
        pipelines={"MAEPipeline": "hfgen.pipelines.masked_autoencoder"},
        networks={"MaskedAutoencoderModel": "hfgen.models.masked_autoencoder"},
        exports={
            "MaskedAutoencoding": "hfgen.objectives.masked_autoencoding",
            "linear_probe": "hfgen.metrics.probe",
            "build_masked_autoencoder": "hfgen.models.build_masked_autoencoder",
        },
    ),
    "reflow": Family("hfgen.training.train_reflow"),
    "stylegan": Family(
        "hfgen.training.train_stylegan",
        pipelines={"StyleGANPipeline": "hfgen.pipelines.stylegan"},
        networks={
            "StyleDiscriminatorModel": "hfgen.models.stylegan",
            "StyleGeneratorModel": "hfgen.models.stylegan",
        },
        exports={
            "PathLength": "hfgen.objectives.regularizers",
            "Orthogonal": "hfgen.objectives.regularizers",
            "StyleInputs": "hfgen.objectives.style_inputs",
            "build_stylegan": "hfgen.models.build_stylegan",
        },
    ),
    "text_to_image": Family(
        "hfgen.training.train_text_to_image",
        pipelines={"TextToImagePipeline": "hfgen.pipelines.text_to_image"},
        exports={"TextDenoiser": "hfgen.models.text_denoiser"},
    ),
    "triple_gan": Family(
        "hfgen.training.train_triple_gan",
        exports={
            "LabelledPairs": "hfgen.data.partial_labels",
            "TripleAdversarial": "hfgen.objectives.triple_adversarial",
        },
    ),
    "unidiffuser": Family(
        "hfgen.training.train_unidiffuser",
        pipelines={"UniDiffuserPipeline": "hfgen.pipelines.unidiffuser"},
        networks={
            "TextAutoencoderModel": "hfgen.models.text_autoencoder",
            "UniDiffuserModel": "hfgen.models.unidiffuser",
            "UniDiffuserUNetModel": "hfgen.models.unidiffuser_unet",
        },
        exports={"UniDiffusion": "hfgen.objectives.unidiffusion"},
    ),
    "vae": Family(
        "hfgen.training.train_vae",
        pipelines={"VAEPipeline": "hfgen.pipelines.vae", "VQPipeline": "hfgen.pipelines.vq"},
        networks={
            "ConvAutoencoderModel": "hfgen.models.autoencoder",
            "GaussianMixturePriorModel": "hfgen.models.priors",
            "MLPAutoencoderModel": "hfgen.models.autoencoder",
            "VQAutoencoderModel": "hfgen.models.vq",
        },
        exports={
            "AutoencoderWithPrior": "hfgen.models.autoencoder_with_prior",
            "ELBO": "hfgen.objectives.autoencoding",
            "IWAE": "hfgen.objectives.autoencoding",
            "Reconstruction": "hfgen.objectives.autoencoding",
            "VampPriorModel": "hfgen.models.priors",
            "VectorQuantized": "hfgen.objectives.autoencoding",
            "build_autoencoder": "hfgen.models.build_autoencoder",
        },
    ),
    "vqgan": Family("hfgen.training.train_vqgan", exports={"AutoencoderGAN": "hfgen.objectives.autoencoder_gan"}),
    "word2vec": Family(
        "hfgen.training.train_word2vec",
        pipelines={"WordVectorsPipeline": "hfgen.pipelines.word_vectors"},
        networks={"WordVectorsModel": "hfgen.models.word_vectors"},
        exports={
            "NegativeSampling": "hfgen.objectives.negative_sampling",
            "WindowData": "hfgen.data.text",
        },
    ),
}
"""The families by the names that `hfgen train` takes. Everything below that lists classes is made of these entries."""

PIPELINES: dict[str, str] = {}
"""Pipelines that a saved index may name, and their modules."""

NETWORKS: dict[str, str] = {}
SCHEDULERS: dict[str, str] = {}
COMPONENTS: dict[str, str] = {}
"""Networks and schedulers that a saved pipeline may be made of, and their modules. Besides them it may be made of
diffusers' networks and schedulers, and of text encoders and tokenizers (hfgen/saving/transformers_classes.py)."""

EXPORTS = {
    "HFGenPipeline": "hfgen.pipelines.base",
    "CaptionCondition": "hfgen.models.conditions",
    "ClipScore": "hfgen.metrics.clip_score",
    "Callback": "hfgen.families.callbacks",
    "ClassCondition": "hfgen.models.conditions",
    "Condition": "hfgen.models.conditions",
    "Finished": "hfgen.families.finish",
    "Loss": "hfgen.objectives.base",
    "MappedData": "hfgen.data.tensors",
    "Monitor": "hfgen.families.callbacks",
    "Objective": "hfgen.objectives.base",
    "Preview": "hfgen.families.preview",
    "Provenance": "hfgen.utils.provenance",
    "TensorCondition": "hfgen.models.conditions",
    "TensorData": "hfgen.data.tensors",
    "TextCondition": "hfgen.models.conditions",
    "TorchModel": "hfgen.models.torch_model",
    "load_images": "hfgen.data.images",
    "provenance_of": "hfgen.utils.provenance",
    "read_provenance": "hfgen.utils.provenance",
    "save_image": "hfgen.utils.provenance",
    "train": "hfgen.families.train",
    # diffusers looks these two up in the library that a component is said to come from
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}
"""What `from hfgen import ...` offers, and its modules: these names and those of the families."""

RENAMED = {"Critiqued": "AutoencoderGAN"}
"""Former names of exported classes, and the present ones; they go with the next release."""


def register(name: str, family: Family) -> None:
    """Add a family, so that `hfgen train <name>` runs it and saved folders may name its classes.

    Raises:
        ValueError: another family, or another module, has one of these names already.
    """
    if FAMILIES.get(name, family) != family:
        raise ValueError(f"There is a family {name!r} already: {FAMILIES[name].door}. Choose another name.")
    components = {**family.networks, **family.schedulers}
    exports = {**family.pipelines, **components, **family.exports}
    for key, module in exports.items():
        if EXPORTS.get(key, module) != module:
            raise ValueError(f"{key} of {module} has the name of that of {EXPORTS[key]}. Choose another name.")
    FAMILIES[name] = family
    for table, classes in (
        (EXPORTS, exports),
        (PIPELINES, family.pipelines),
        (NETWORKS, family.networks),
        (SCHEDULERS, family.schedulers),
        (COMPONENTS, components),
    ):
        table.update(classes)


for _name, _family in FAMILIES.items():
    register(_name, _family)

SAMPLERS = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverPlusPlusScheduler", {}),
    "rectified_flow": ("RectifiedFlowScheduler", {}),
    "adams_bashforth2": ("RectifiedFlowScheduler", {"solver": "adams_bashforth2"}),
    "euler": ("RectifiedFlowScheduler", {"solver": "euler"}),
    "midpoint": ("RectifiedFlowScheduler", {"solver": "midpoint"}),
    "heun": ("RectifiedFlowScheduler", {"solver": "heun"}),
    "flow_map": ("RectifiedFlowScheduler", {"solver": "flow_map"}),
    "euler_maruyama": ("ScoreSDEScheduler", {}),
    "consistency": ("ConsistencyScheduler", {}),
    "annealed_langevin": ("AnnealedLangevinScheduler", {}),
}
"""What `--scheduler` may be: a class and its options. Each works with every path and prediction. `flow_map` takes
Euler's steps with a network that is no flow map, and `consistency` goes to its estimates of clean data."""

ENERGY_SAMPLERS = {
    "gradient_descent": ("GradientDescentScheduler", {}),
    "nesterov": ("GradientDescentScheduler", {"momentum": 0.35}),
    "langevin": ("LangevinScheduler", {}),
    "mala": ("HamiltonianScheduler", {"leapfrog_steps": 1}),
    "hmc": ("HamiltonianScheduler", {}),
    "annealed_langevin": ("AnnealedLangevinScheduler", {}),
}
"""The same for energies, which have no path: chains on exp(-E) and descents of E. The last one is for energies that
were trained at many levels of noise."""

SAMPLERS_BY = {"path": SAMPLERS, "energy": ENERGY_SAMPLERS}
"""What the schedulers of a pipeline follow, and their names."""


def sampler(name: str, table: Mapping[str, tuple[str, dict]] = SAMPLERS) -> tuple[str, dict]:
    """The class and the options that a name in SAMPLERS, or in another table, stands for. Raises ValueError naming
    those there are."""
    if name not in table:
        raise ValueError(f"scheduler={name!r} is not known. Choose one of: {', '.join(table)}.")
    return table[name]


PATHS = {
    "straight": {"path": "straight"},
    "vp": {"path": "discrete", "beta_schedule": "linear"},
    "cosine": {"path": "discrete", "beta_schedule": "squaredcos_cap_v2"},
    "ve": {"path": "ve"},
    "linear_vp": {"path": "linear_vp"},
    "cosine_vp": {"path": "cosine_vp"},
}
"""What `--path` may be, as scheduler configuration. `vp` and `cosine` are DDPM's tables of 1000 steps, which diffusers'
schedulers know too; `linear_vp` and `cosine_vp` are their limits in continuous time."""


def resolve(name: str) -> Any:
    """Import a public name of hfgen, such as a class that a saved index names. A former name gives a FutureWarning.

    Raises:
        ValueError: the name is none of `EXPORTS`.
    """
    if name in RENAMED:
        text = f"hfgen.{name} is now hfgen.{RENAMED[name]}. Write that: the former name goes with the next release."
        warnings.warn(text, FutureWarning, stacklevel=3)
        name = RENAMED[name]
    if name not in EXPORTS:
        raise ValueError(f"hfgen has no {name!r}. It has: {', '.join(sorted(EXPORTS))}.")
    return getattr(importlib.import_module(EXPORTS[name]), name)
