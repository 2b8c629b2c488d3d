"""What every family's pipeline shares: loading that runs no code, saving, and images in and out."""

import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from torch import Tensor

import hfgen
from hfgen.registry import COMPONENTS, PIPELINES, SAMPLERS


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
        name = cls.load_config(path)["_class_name"]
        if name not in PIPELINES:
            raise ValueError(f"{path} holds a {name}. The families hfgen can load are: {', '.join(PIPELINES)}.")
        family = getattr(hfgen, name)
        if not issubclass(family, cls):
            raise ValueError(
                f"{path} holds a {name}, not a {cls.__name__}. Load it with HFGenPipeline.from_pretrained."
            )
        return super(HFGenPipeline, family).from_pretrained(path, **kwargs)

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
            if isinstance(value, list) and len(value) == 2 and value[1] in COMPONENTS:
                index[key] = ["hfgen", value[1]]
        return index

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write the pipeline's folder: an index, and weights (safetensors) and configuration of each component."""
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory, self.config_name)
        index = self._dict_from_json_file(path)
        index.pop("_name_or_path", None)
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def use_scheduler(self, name: str, **options: Any) -> None:
        """Sample with another of hfgen's schedulers from now on: `use_scheduler("dpmsolver++", solver_order=3)`.

        The path and the prediction kind stay, they belong to the network. For one of diffusers':
        `pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)`.

        Args:
            name: a key of `hfgen.registry.SAMPLERS`.
            options: of the scheduler's class.
        """
        if name not in SAMPLERS:
            raise ValueError(f"scheduler={name!r} is not known. Choose one of: {', '.join(SAMPLERS)}.")
        cls, preset = getattr(hfgen, SAMPLERS[name][0]), SAMPLERS[name][1]
        known = inspect.signature(cls.__init__).parameters
        kept = {key: value for key, value in self.scheduler.config.items() if key in known}
        self.scheduler = cls.from_config({**kept, **preset, **options})

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


def classes_of(
    class_labels: Any, batch_size: int | None, num_classes: int | None, label_names: list[str] | None
) -> tuple[int, Tensor | None]:
    """How many images to draw and of which classes: (batch size, labels (B,) or None).

    `class_labels` is a class, or a list or tensor of classes, each by number or by name; one label is repeated to
    `batch_size`.

    Raises:
        ValueError: a class that the model does not have, or a list whose length is not the batch size.
    """
    if class_labels is None:
        return batch_size or 1, None
    if num_classes is None:
        raise ValueError("class_labels were given but this model was trained without classes. Leave them out.")
    given = class_labels.tolist() if isinstance(class_labels, Tensor) else class_labels
    given = given if isinstance(given, list | tuple | range) else [given]
    numbers = [label_names.index(c) if label_names and c in label_names else c for c in given]
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < num_classes:
            names = f", or one of {', '.join(label_names)}" if label_names else ""
            raise ValueError(f"class {number!r} is not known: give a number from 0 to {num_classes - 1}{names}.")
    if len(numbers) == 1:
        numbers *= batch_size or 1
    if batch_size not in (None, len(numbers)):
        raise ValueError(f"batch_size={batch_size} but {len(numbers)} class_labels; give one label, or one an image.")
    return len(numbers), torch.tensor(numbers, dtype=torch.long)
