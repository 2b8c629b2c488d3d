"""The CLIP score: how well images fit their texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..console.text import first_line
from ..utils.arguments import checked
from .encoders import transformer
from .measures import Measurement, mean_measurement

OPTIONS = {"trust_remote_code": False}
"""Options of a tokenizer that is loaded: no code of a repository is run."""

BATCH = 100
"""Images and texts in one pass of the model."""


class ClipScore:
    """The CLIP score of images and texts (Hessel et al. 2021, https://arxiv.org/abs/2104.08718), by a CLIP model of
    transformers: 100 max(cos(e_image, e_text), 0), of the embeddings of both. (The paper has 2.5 in place of 100.)

    Args:
        name: folder or Hub id of the model. No code of it is run, and weights are safetensors.

    Raises:
        ValueError: it can't be loaded, or embeds no texts.
    """

    @checked
    def __init__(self, name: str):
        from transformers import AutoTokenizer

        self.encoder = transformer(name)
        self._model = self.encoder.network.model
        if not hasattr(self._model, "get_text_features"):
            raise ValueError(f"{name} holds a {type(self._model).__name__}, which embeds no texts. Give a CLIP model.")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, **OPTIONS)
        except Exception as error:  # of many types for a damaged file
            raise ValueError(f"{name} has no tokenizer that can be read: {first_line(error)}") from error

    @checked
    @torch.inference_mode()
    def scores(self, images: Tensor, texts: str | Sequence[str]) -> Tensor:
        """Return the score of each image with its text, (N,) float64 from 0 to 100.

        Args:
            images (N, 1 or 3, H, W): in [-1, 1].
            texts: N of them, or one for one image; a longer one than the model reads is cut.

        Raises:
            ValueError: other numbers of images and texts, none, or images that are not finite.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if len(images) != len(texts) or not texts:
            raise ValueError(
                f"{len(images)} images and {len(texts)} texts: give a text for each of one or more images."
            )
        parts = []
        for first in range(0, len(texts), BATCH):
            chosen = slice(first, first + BATCH)
            pair = self.encoder(images[chosen]), self._embedded(texts[chosen])
            pair = [torch.nn.functional.normalize(each.double().cpu(), dim=1) for each in pair]
            parts.append(100 * (pair[0] * pair[1]).sum(1).clamp(min=0))
        return torch.cat(parts)

    @checked
    def measure(self, images: Tensor, texts: str | Sequence[str]) -> Measurement:
        """Return the mean score with its interval, under a name that holds the model's; see `scores`."""
        return mean_measurement(self.encoder.metric_name("CLIP score"), self.scores(images, texts), "higher")

    def _embedded(self, texts: list[str]) -> Tensor:
        """Return the embeddings (B, d) of texts."""
        longest = self._model.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        tokens = {name: value.to(self._model.device) for name, value in self._tokenizer(texts, **options).items()}
        output = self._model.get_text_features(**tokens)
        return output if isinstance(output, Tensor) else output.pooler_output
