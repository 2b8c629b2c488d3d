"""Any torch module as a model of diffusers, so that pipelines can hold it and save its weights."""

from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from safetensors.torch import load_model
from torch import nn


class TorchModel(ModelMixin, ConfigMixin):
    """A `torch.nn.Module` of the user's own, called as it is, with what pipelines ask of a network.

    Its saved folder holds the weights and the shape, not the code. `load` puts the weights back into a module that the
    caller makes:

        network = TorchModel.load(Net(), "outputs/mine/denoiser")
        pipeline = HFGenPipeline.from_pretrained("outputs/mine", denoiser=network)

    Args:
        module: the network.
        sample_shape: shape of an item without the batch dimension, such as (2,) or (C, H, W).
    """

    config_name = "config.json"

    def __init__(self, module: nn.Module, sample_shape: tuple[int, ...] | None = None):
        super().__init__()
        self.register_to_config(sample_shape=sample_shape)
        self.module = module

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """Return the shape of an item; None if it is not known."""
        shape = self.config.sample_shape
        return None if shape is None else tuple(shape)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)

    @classmethod
    def load(cls, module: nn.Module, folder: str | Path) -> "TorchModel":
        """Return a model of `module` with the weights and the shape that `save_pretrained` wrote into a folder.

        Raises:
            OSError: the folder holds no configuration or no weights.
            RuntimeError: the weights are of another module.
        """
        model = cls(module, cls.load_config(folder).get("sample_shape"))
        load_model(model, Path(folder, "diffusion_pytorch_model.safetensors"))
        return model.eval()
