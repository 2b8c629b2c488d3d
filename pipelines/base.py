"""What every family's pipeline shares: loading that runs no code, saving, and images in and out."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from torch import Tensor

import hfgen
from hfgen.registry import COMPONENTS, PIPELINES, sampler
from hfgen.schedulers.solver import FACTS

LIBRARIES = ("hfgen", "diffusers", "transformers")
"""Where the classes of a saved pipeline may come from."""


class PipelineOutput(BaseOutput):
    """What a pipeline returns.

    Args:
        images: list of PIL images, (B, H, W, C) array in [0, 1], or (B, C, H, W) tensor in [0, 1].
        trajectory (steps + 1, B, C, H, W): the samples on their way from noise, in the model's range; only on request.
    """

    images: Any
    trajectory: Tensor | None = None


class HFGenPipeline(DiffusionPipeline):
    """The front door to every saved model: `HFGenPipeline.from_pretrained(folder)` gives the family's own pipeline.

    Class names are looked up in `hfgen.registry`; no code from the folder is ever imported, and there is no flag that
    would allow it.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "HFGenPipeline":
        """Load a pipeline from a folder that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: the folder.
            kwargs: as diffusers': `torch_dtype`, `variant`, components by name in place of the saved ones.

        Raises:
            ValueError: the folder is not a pipeline of a family that hfgen knows, or code was asked to be run.
        """
        for name in ("custom_pipeline", "trust_remote_code", "custom_revision"):
            if kwargs.pop(name, None):
                raise ValueError(f"{name} would run code from the folder, which hfgen never does. Leave it out.")
        path = str(pretrained_model_name_or_path)
        if not os.path.isfile(os.path.join(path, cls.config_name)):
            raise ValueError(f"{path} is not a saved pipeline: there is no {cls.config_name} in it.")
        index = cls.load_config(path)
        name = index.get("_class_name")
        if name not in PIPELINES:
            raise ValueError(f"{path} holds a {name}. The families hfgen can load are: {', '.join(PIPELINES)}.")
        family = getattr(hfgen, name)
        if not issubclass(family, cls):
            raise ValueError(
                f"{path} holds a {name}, not a {cls.__name__}. Load it with HFGenPipeline.from_pretrained."
            )
        needed = [key for key in family._get_signature_keys(family)[0] if key not in kwargs]
        for key in needed:
            entry = index.get(key)
            if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in LIBRARIES:
                raise ValueError(f"{path} has {entry} as {key}, which is no class of {', '.join(LIBRARIES)}.")
        kwargs.setdefault("use_safetensors", True)
        load = super(HFGenPipeline, family).from_pretrained
        if not any(os.path.isfile(os.path.join(path, key, f"{index[key][0]}.py")) for key in needed):
            return load(path, **kwargs)
        with tempfile.TemporaryDirectory() as bare:  # diffusers would take such a file for the component's code
            no_code = shutil.ignore_patterns("*.py")
            shutil.copytree(os.path.abspath(path), bare, ignore=no_code, copy_function=os.symlink, dirs_exist_ok=True)
            return load(bare, **kwargs)

    def register_modules(self, **components: Any) -> None:
        """As diffusers'; networks are put in evaluation mode, as loading does, so that saving changes nothing."""
        for component in components.values():
            if isinstance(component, torch.nn.Module):
                component.eval()
        super().register_modules(**components)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        # diffusers reads every index through this method. Whatever file a component of ours is said to come from, it
        # is the class of that name in hfgen.
        index = super()._dict_from_json_file(json_file)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][1]
        for key, value in index.items():
            if isinstance(value, list) and len(value) == 2 and value[0] != "diffusers" and str(value[1]) in COMPONENTS:
                index[key] = ["hfgen", value[1]]
        return index

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write the pipeline's folder: an index, and weights (safetensors) and configuration of each component."""
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory, self.config_name)
        written = {path: self._dict_from_json_file(path)}
        for name in self.components:
            if (file := Path(save_directory, name, "config.json")).is_file():
                written[file] = json.loads(file.read_text())
        for path, config in written.items():
            config.pop("_name_or_path", None)  # the folder it was loaded from means nothing on another machine
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def use_scheduler(self, name: str, **options: Any) -> None:
        """Sample with another of hfgen's schedulers from now on: `use_scheduler("dpmsolver++", solver_order=3)`.

        The path and the prediction kind stay, they belong to the network. For one of diffusers':
        `pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)`.

        Args:
            name: a key of `hfgen.registry.SAMPLERS`.
            options: of the scheduler's class.
        """
        cls, preset = sampler(name)
        config = self.scheduler.config
        kept = {key: config[key] for key in ("_class_name", "use_flow_sigmas", *FACTS) if key in config}
        self.scheduler = getattr(hfgen, cls).from_config({**kept, **preset, **options})

    @staticmethod
    def to_images(x: Tensor, output_type: str = "pil") -> Any:
        """(B, C, H, W) in [-1, 1] as `pil` images, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or
        untouched as `latent`. C is 1 (grey), 3 (RGB) or 4 (RGBA) for PIL.

        Raises:
            ValueError: an unknown output type, or a channel count PIL has no mode for.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type={output_type!r} is not known. Choose pil, np, pt or latent.")
        if output_type == "pil" and x.shape[1] not in (1, 3, 4):
            raise ValueError(f"Images with {x.shape[1]} channels have no PIL mode; use output_type='np' or 'pt'.")
        return VaeImageProcessor().postprocess(x.float(), output_type=output_type)
