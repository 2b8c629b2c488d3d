"""Feature networks from other packages: Inception-v3 by torchmetrics, vision transformers by transformers."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..console.text import first_line
from ..disk.reading import check_regular, read_object
from ..utils.arguments import checked
from ..utils.pixels import to_levels
from .feature_network import FeatureNetwork


def weights_digest(network: nn.Module) -> str:
    """Return 12 hex digits of the SHA-256 of a network's weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def to_rgb(images: Tensor) -> Tensor:
    """Repeat the channel of grey images, (B, 1, H, W) -> (B, 3, H, W). Other images are returned unchanged."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


class Inception(nn.Module):
    """torchmetrics' Inception-v3: images (B, 1 or 3, H, W) in [-1, 1] -> logits (B, 1008) and features (B, 2048).

    The extractor takes 8-bit images and resizes them itself, as in the published protocol.
    """

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute unbiased logits and pooled features."""
        features, logits = self.extractor._torch_fidelity_forward(to_levels(to_rgb(images)))
        return logits, features


@checked
def inception() -> FeatureNetwork:
    """Load the Inception-v3 that the name FID stands for, as ported by torch-fidelity.

    Its weights and its resize (bilinear without antialiasing to 299 x 299) are those of the original FID, TensorFlow's
    network of 2015.

    Raises:
        ValueError: torch-fidelity is not installed, or its weights could not be downloaded.
    """
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        extractor = NoTrainInceptionV3(
            name="inception-v3-compat", features_list=["2048", "logits_unbiased"], antialias=False
        )
    except (ImportError, OSError) as error:
        raise ValueError(
            f"Inception-v3 is not available ({error}). Install torch-fidelity and torchvision, with network access "
            "once for the weights; or use features of the data's domain: digits, mnist, cifar10."
        ) from error
    return FeatureNetwork(
        name="inception-v3-compat",
        revision=weights_digest(extractor),
        network=Inception(extractor).requires_grad_(False).eval(),
        num_features=2048,
        in_channels=None,
        image_size=None,
        resize="bilinear as in TensorFlow 1, not antialiased, to 299 x 299",
        scores=True,
        standard=True,
    )


class Encoder(nn.Module):
    """A vision transformer of transformers: images (B, 1 or 3, H, W) in [-1, 1] -> features (B, d).

    Images are resized bicubically with antialiasing to side x side, then normalised as in the model's training. The
    features are the projected image embedding if the model has one (CLIP), else the pooled output (DINOv2).
    """

    def __init__(self, model: nn.Module, side: int, mean: list[float], deviation: list[float]):
        super().__init__()
        self.model, self.side = model, side
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, d)."""
        pixels = (to_rgb(images) + 1) / 2
        pixels = interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - self.mean) / self.deviation
        embed = getattr(self.model, "get_image_features", self.model)
        out = embed(pixel_values=pixels)
        return out if isinstance(out, Tensor) else out.pooler_output


@checked
def transformer(name: str) -> FeatureNetwork:
    """Load a vision transformer from the Hub or a folder, such as facebook/dinov2-base or openai/clip-vit-base-patch32.

    Weights are read as safetensors, and no code of the repository is run.

    Raises:
        ValueError: there is no such model, it takes no images, it has no preprocessor_config.json, or its files name
            code, adapters or quantised weights, or are no regular files.
    """
    from transformers import AutoModel

    try:
        options = _checked_options(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True)
        side = _image_side(options)
        network = Encoder(model, side, options["image_mean"], options["image_std"]).requires_grad_(False).eval()
        with torch.inference_mode():
            features = network(torch.zeros(1, 3, side, side))
        if not features.isfinite().all():
            raise ValueError("its weights are not finite")
        width = features.shape[1]
    except Exception as error:  # transformers raises errors of many types for a damaged model
        raise ValueError(f"features={name!r} can't be used as an image encoder: {first_line(error)}") from error
    return FeatureNetwork(
        name=Path(name).resolve().name if Path(name).is_dir() else name,
        revision=weights_digest(model),
        network=network,
        num_features=width,
        in_channels=None,
        image_size=None,
        resize=f"bicubic, antialiased, to {side} x {side}",
    )


REFUSED = ("auto_map", "quantization_config", "custom_pipelines")
"""Options that name code of a repository, or make transformers fetch kernels."""


def _checked_options(name: str) -> dict[str, Any]:
    """Return the options of a model's preprocessor, after a look at what transformers would read.

    Raises:
        ValueError: an option or a file that hfgen does not read, a file that is damaged, or none at all.
        OSError: the Hub is out of reach, or there is no such model.
    """
    from transformers.utils import cached_file

    options = read_object(cached_file(name, "preprocessor_config.json"))
    config = read_object(cached_file(name, "config.json"))
    for key in REFUSED:
        if key in config or key in options:
            raise ValueError(f"it has {key}, which hfgen does not read")
    if Path(name).is_dir():
        if (Path(name) / "adapter_config.json").exists():
            raise ValueError("it is an adapter of another model, which hfgen does not fetch")
        for file in (*Path(name).glob("*.safetensors*"), *Path(name).glob("*.json")):
            check_regular(file)
    side = _image_side(options)
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE:
        raise ValueError(f"images of {side} pixels a side can't be made, only from 1 to {LARGEST_SIDE}")
    return options


LARGEST_SIDE = 4096
"""Most pixels of a side of the images that an encoder takes."""


def _image_side(options: dict[str, Any]) -> int:
    """Return the side in pixels of the images that a preprocessor with these options makes."""
    size = options.get("crop_size") or options["size"]
    return size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
