"""Any torch module as a model of diffusers, so that pipelines can hold it and save its weights."""

import os
import re
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from safetensors.torch import load_model, save_model
from torch import nn

from hfgen.saving.folders import check_values, read_json, weights_of

from ..utils.arguments import checked


class TorchModel(ModelMixin, ConfigMixin):
    """A wrapper of an own `torch.nn.Module`, so that pipelines can hold and save it. Calls pass through.

    Its saved folder holds the weights and these arguments, not the code. `load` puts the weights back into a module
    that the caller makes:

        network = TorchModel.load(Net(), "outputs/mine/denoiser")
        pipeline = HFGenPipeline.from_pretrained("outputs/mine", denoiser=network)

    Args:
        module: the network.
        sample_shape: shape of an item without the batch dimension, such as (2,) or (C, H, W).
        num_class_embeds: classes that the network embeds, one more than the data have if it learns the null class.
    """

    config_name = "config.json"

    @checked
    def __init__(
        self, module: nn.Module, sample_shape: tuple[int, ...] | None = None, num_class_embeds: int | None = None
    ):
        super().__init__()
        self.register_to_config(sample_shape=sample_shape, num_class_embeds=num_class_embeds)
        self.module = module

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """Return the shape of an item; None if it is not known."""
        shape = self.config.sample_shape
        return None if shape is None else tuple(shape)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, variant: str | None = None) -> None:
        """Write the configuration and one file of weights, in which tied ones are held once.

        Args:
            save_directory: the folder.
            variant: of the name of the file, as in diffusers.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.save_config(save_directory)
        save_model(self, str(_weights(save_directory, variant)))

    @classmethod
    def load(
        cls, module: nn.Module, folder: str | os.PathLike, variant: str | None = None, **hub_options: Any
    ) -> "TorchModel":
        """Return a model of `module` with the weights and the arguments that `save_pretrained` wrote into a folder.

        Args:
            module: the network, of the same shapes as the saved one.
            folder: the folder, or owner/name/component for a component of a repository on the Hub.
            variant: of the name of the file, as in diffusers.
            hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for a repository.

        Raises:
            ValueError: the configuration or the weights are damaged, no regular files, too large, or hold values that
                are not finite or of another kind than the module's.
            OSError: the folder holds no configuration or no weights, or the Hub does not; or a save of its pipeline was
                cut off, so that they may be those of an earlier one.
            RuntimeError: the weights are of another module.
        """
        if not os.path.isdir(folder) and re.fullmatch(r"[\w.-]+/[\w.-]+/[\w.-]+", str(folder)):
            from huggingface_hub import snapshot_download

            repo, component = str(folder).rsplit("/", 1)
            files = [f"{component}/{cls.config_name}", f"{component}/*.safetensors"]
            try:
                folder = Path(snapshot_download(repo, allow_patterns=files, **hub_options), component)
            except OSError as error:
                message = f"There is no folder {folder}, and {repo} can't be read from the Hub: {error}"
                raise OSError(message.split("\n")[0]) from None
        home = Path(folder).parent
        if not (home / "model_index.json").exists() and any(home.glob(".pipeline-*.new")):
            raise OSError(f"{home}: the last save of this pipeline was cut off. Save it again, then load {folder}.")
        config = read_json(Path(folder, cls.config_name))
        model = cls(module, *_arguments(Path(folder, cls.config_name), config))
        weights_of(Path(folder), variant)  # refuses what is no file of weights, by its header
        state = model.state_dict()
        infinite = tuple(name for name, tensor in state.items() if tensor.isinf().any())  # as masks of attention
        check_values(Path(folder), state, variant, infinite=infinite)
        load_model(model, _weights(folder, variant))
        return model.eval()


def _arguments(path: Path, config: dict[str, Any]) -> tuple[tuple[int, ...] | None, int | None]:
    """Return the shape of an item and the number of classes. Raises ValueError for values of another kind."""
    shape, classes = config.get("sample_shape"), config.get("num_class_embeds")
    sizes = [*(shape if isinstance(shape, list) else () if shape is None else (0,)), 1 if classes is None else classes]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ValueError(f"{path} has sample_shape={shape} and num_class_embeds={classes}; both are positive numbers.")
    return None if shape is None else tuple(shape), classes


def _weights(folder: str | os.PathLike, variant: str | None) -> Path:
    """Return the file of the weights, named as diffusers names it."""
    return Path(folder, ".".join(filter(None, ["diffusion_pytorch_model", variant, "safetensors"])))
