"""Every public class by name, and the module it lives in: one line a class, nothing imported until it is asked for.

Saved pipelines name their classes; loading looks them up here and nowhere else, so that a folder can't choose what code
runs.
"""

import importlib
import warnings
from typing import Any

PIPELINES = {
    "AnomalyPipeline": "hfgen.pipelines.anomaly",
    "DenoisingPipeline": "hfgen.pipelines.denoising",
    "GANPipeline": "hfgen.pipelines.gan",
    "VAEPipeline": "hfgen.pipelines.vae",
    "VQPipeline": "hfgen.pipelines.vq",
}

FAMILIES = {
    "anomaly": "train_anomaly",
    "diffusion": "train_diffusion",
    "gan": "train_gan",
    "reflow": "train_reflow",
    "vae": "train_vae",
    "vqgan": "train_vqgan",
}
"""What `hfgen train` may be told: a front door in `training/`."""

NETWORKS = {
    "CalibrationModel": "hfgen.models.calibration",
    "ConvAutoencoderModel": "hfgen.models.autoencoder",
    "DCGANDiscriminatorModel": "hfgen.models.discriminators",
    "DCGANGeneratorModel": "hfgen.models.generators",
    "DiTModel": "hfgen.models.dit",
    "GaussianMixturePriorModel": "hfgen.models.priors",
    "MLPAutoencoderModel": "hfgen.models.autoencoder",
    "MLPDiscriminatorModel": "hfgen.models.discriminators",
    "MLPGeneratorModel": "hfgen.models.generators",
    "PatchUNet2DModel": "hfgen.models.patch_unet",
    "ResNetDiscriminatorModel": "hfgen.models.discriminators",
    "ResNetGeneratorModel": "hfgen.models.generators",
    "ResidualDiscriminatorModel": "hfgen.models.discriminators",
    "ResidualGeneratorModel": "hfgen.models.generators",
    "VQAutoencoderModel": "hfgen.models.vq",
}

SCHEDULERS = {
    "DDIMInverseScheduler": "hfgen.schedulers.ddim",
    "DDIMScheduler": "hfgen.schedulers.ddim",
    "DDPMScheduler": "hfgen.schedulers.ddpm",
    "DPMSolverPlusPlusScheduler": "hfgen.schedulers.dpm_solver",
    "RectifiedFlowScheduler": "hfgen.schedulers.rectified_flow",
    "ScoreSDEScheduler": "hfgen.schedulers.sde",
}

SAMPLERS = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverPlusPlusScheduler", {}),
    "rectified_flow": ("RectifiedFlowScheduler", {}),
    "adams_bashforth2": ("RectifiedFlowScheduler", {"solver_type": "adams_bashforth2"}),
    "euler": ("RectifiedFlowScheduler", {"solver_type": "euler"}),
    "midpoint": ("RectifiedFlowScheduler", {"solver_type": "midpoint"}),
    "heun": ("RectifiedFlowScheduler", {"solver_type": "heun"}),
    "euler_maruyama": ("ScoreSDEScheduler", {}),
}
"""What `--scheduler` may be: a class and its options. Each works with every path and prediction."""


def sampler(name: str) -> tuple[str, dict]:
    """The class and the options that a name in SAMPLERS stands for. Raises ValueError naming those there are."""
    if name not in SAMPLERS:
        raise ValueError(f"scheduler={name!r} is not known. Choose one of: {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


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

COMPONENTS = {**NETWORKS, **SCHEDULERS}
"""Classes that a saved pipeline may be made of, beside diffusers' networks and schedulers and those of TRANSFORMERS."""

TEXT_ENCODERS = (
    "BertModel",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "LlamaForCausalLM",
    "LlamaModel",
    "T5EncoderModel",
)

TOKENIZERS = (
    "BertTokenizer",
    "BertTokenizerFast",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
    "TokenizersBackend",  # how transformers 5 calls PreTrainedTokenizerFast
)

TRANSFORMERS = (*TEXT_ENCODERS, *TOKENIZERS)
"""Classes of transformers that a saved pipeline may be made of. They run no code of a folder, weights are safetensors,
and a tokenizer is one file, tokenizer.json."""

EXPORTS = {
    "HFGenPipeline": "hfgen.pipelines.base",
    "Adversarial": "hfgen.objectives.adversarial",
    "Callback": "hfgen.families.callbacks",
    "ClassCondition": "hfgen.models.conditions",
    "Condition": "hfgen.models.conditions",
    "Consistency": "hfgen.objectives.penalties",
    "Control": "hfgen.objectives.penalties",
    "AutoencoderGAN": "hfgen.objectives.autoencoder_gan",
    "Denoising": "hfgen.objectives.denoising",
    "ELBO": "hfgen.objectives.autoencoding",
    "GradientPenalty": "hfgen.objectives.penalties",
    "IWAE": "hfgen.objectives.autoencoding",
    "Objective": "hfgen.objectives.base",
    "Loss": "hfgen.objectives.base",
    "MappedData": "hfgen.data.tensors",
    "Monitor": "hfgen.families.callbacks",
    "Preview": "hfgen.families.preview",
    "R1": "hfgen.objectives.penalties",
    "R2": "hfgen.objectives.penalties",
    "Reconstruction": "hfgen.objectives.autoencoding",
    "Remembering": "hfgen.objectives.replay_buffer",
    "ReplayBuffer": "hfgen.objectives.replay_buffer",
    "TensorCondition": "hfgen.models.conditions",
    "TensorData": "hfgen.data.tensors",
    "TextCondition": "hfgen.models.conditions",
    "TorchModel": "hfgen.models.torch_model",
    "VampPriorModel": "hfgen.models.priors",
    "VectorQuantized": "hfgen.objectives.autoencoding",
    "WeightClipping": "hfgen.objectives.penalties",
    "build_autoencoder": "hfgen.models.build_autoencoder",
    "build_denoiser": "hfgen.models.build_denoiser",
    "build_gan": "hfgen.models.build_gan",
    "load_images": "hfgen.data.images",
    "train": "hfgen.families.train",
    **PIPELINES,
    **COMPONENTS,
    # diffusers looks these two up in the library that a component is said to come from
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}
"""What `from hfgen import ...` offers."""


RENAMED = {"Critiqued": "AutoencoderGAN"}
"""Former names of exported classes, and the present ones; they go with the next release."""


def resolve(name: str) -> Any:
    """Import a public name of hfgen, such as a class that a saved index names. A former name gives a FutureWarning.

    Raises:
        ValueError: the name is none of `EXPORTS`.
    """
    if name in RENAMED:
        warnings.warn(f"hfgen.{name} is now hfgen.{RENAMED[name]}.", FutureWarning, stacklevel=3)
        name = RENAMED[name]
    if name not in EXPORTS:
        raise ValueError(f"hfgen has no {name!r}. It has: {', '.join(sorted(EXPORTS))}.")
    return getattr(importlib.import_module(EXPORTS[name]), name)
