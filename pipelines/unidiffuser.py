"""Images and texts by one model with two clocks: both, either, and each from the other."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfgen.models.text_tokens import tokens_of
from hfgen.paths import path_from_config
from hfgen.schedulers.configuration import network_facts
from hfgen.utils.arguments import checked

from .base import HFGenPipeline
from .images import default_output, image_batch
from .inputs import Generators, check_count, check_number, noise_of, sample_shape_of
from .outputs import require_finite
from .sampling import SamplingMixin

TOKENS = ("input_ids", "attention_mask")
"""Arguments of a text encoder."""

Mode = Literal["joint", "image", "text", "text_to_image", "image_to_text"]


class Drawn(NamedTuple):
    """What a mode draws, and what it is given.

    Attributes:
        image, text: whether it draws them.
        given: name of the argument that it needs; None: it is given nothing.
    """

    image: bool
    text: bool
    given: str | None


MODES = {
    "joint": Drawn(True, True, None),
    "image": Drawn(True, False, None),
    "text": Drawn(False, True, None),
    "text_to_image": Drawn(True, False, "prompt"),
    "image_to_text": Drawn(False, True, "images"),
}


class UniDiffuserOutput(BaseOutput):
    """The output of `UniDiffuserPipeline`.

    Args:
        images: as those of `PipelineOutput`; None: the mode draws none.
        texts: B texts; None: the mode draws none.
    """

    images: Any = None
    texts: list[str] | None = None


class UniDiffuserPipeline(SamplingMixin, HFGenPipeline):
    """One transformer with a clock for images and a clock for texts (Bao et al. 2023,
    https://arxiv.org/abs/2303.06555). Its modes are choices of the two times:

        joint           both fall together from 1 to 0
        image, text     one falls; the other is 1, where its input is noise alone and tells nothing
        text_to_image   that of the image falls, and that of the text is 0
        image_to_text   that of the text falls, and that of the image is 0

    Classifier-free guidance of both conditionals needs no null text: it leads away from the marginal.

    Args:
        denoiser: a `UniDiffuserModel`.
        scheduler: any of hfgen's or diffusers'; see `use_scheduler`.
        text_autoencoder: a `TextAutoencoderModel`, whose latents the denoiser models.
        tokenizer: of `transformers`.

    Raises:
        ValueError: the denoiser's latents are not those of the text autoencoder.
    """

    model_cpu_offload_seq = "text_autoencoder->denoiser->text_autoencoder"

    @checked
    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        text_autoencoder: ModelMixin,
        tokenizer: PreTrainedTokenizerBase,
    ):
        super().__init__()
        if denoiser.text_shape != text_autoencoder.latent_shape:
            raise ValueError(
                f"The denoiser models latents {denoiser.text_shape}, and those of the text_autoencoder are "
                f"{text_autoencoder.latent_shape}. Give the one that it was trained with."
            )
        self.register_modules(
            denoiser=denoiser, scheduler=scheduler, text_autoencoder=text_autoencoder, tokenizer=tokenizer
        )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape (C, H, W) of an image."""
        return sample_shape_of(self.denoiser)

    @property
    def text_shape(self) -> tuple[int, int]:
        """Return the shape (K, d) of the latents of a text."""
        return self.denoiser.text_shape

    @checked
    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Return the latents (B, K, d) of B texts, which are cut to the tokens that the text autoencoder reads."""
        tokens = tokens_of(self.tokenizer, prompts, self.text_autoencoder.config.max_length)
        latents = self.text_autoencoder.encode(*(tokens[name].to(self._execution_device) for name in TOKENS))
        return require_finite(latents.float(), "latents of texts", self.components)

    @checked
    @torch.no_grad()
    def decode_text(self, latents: Tensor) -> list[str]:
        """Return the likeliest texts of latents (B, K, d)."""
        numbers = self.text_autoencoder.decode(latents.to(self._execution_device, self.text_autoencoder.dtype))
        ids = require_finite(numbers, "logits of texts", self.components, latents).argmax(-1).cpu()
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids.tolist()]

    @checked
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        images: Any = None,
        mode: Mode | None = None,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        output_type: str | None = None,
        return_dict: bool = True,
        scheduler: SchedulerMixin | str | None = None,
    ) -> UniDiffuserOutput | tuple:
        """Draw images, texts, or both.

        Args:
            prompt: a text, or one for each image: of `text_to_image` alone.
            images: see `image_batch`: of `image_to_text` alone.
            mode: `joint`, `image`, `text`, `text_to_image` or `image_to_text`. None: from what is given, else `joint`.
            batch_size: number of samples; default 1, or as many as are given. A single prompt or image is repeated.
            num_inference_steps: steps of the scheduler; None: its own default.
            guidance_scale: 1 is no guidance, above 1 sharpens towards what is given.
            generator: one, or one for each sample; with a list, a sample is the same alone and in any batch.
            output_type: of images, see `DenoisingPipeline`.
            return_dict: return a `UniDiffuserOutput`, else a tuple of its fields.
            scheduler: of this call alone, by name or as an object.

        Raises:
            ValueError: arguments that do not go together, or that do not fit the model.
        """
        mode = self._mode(mode, prompt, images)
        check_number("guidance_scale", guidance_scale, 0)
        if guidance_scale != 1 and MODES[mode].given is None:
            raise ValueError(f"{guidance_scale=}: mode={mode!r} is given nothing to lead to. Use guidance_scale=1.")
        given, count = self._given(mode, prompt, images, batch_size)
        shapes, device = (self.sample_shape, self.text_shape), self._execution_device
        noise = [noise_of((count, *shape), None, generator, device) for shape in shapes]
        predict = self._predictor(mode, given, noise, scheduler)
        drawn = [number for number, draws in enumerate(MODES[mode][:2]) if draws]
        start = torch.cat([noise[number].flatten(1) for number in drawn], 1)  # one item, whatever its parts are
        options = {"guidance_scale": guidance_scale, "generator": generator, "scheduler": scheduler}
        state, _ = self._sample(predict, start, num_inference_steps, **options)
        parts = dict(zip(drawn, _parts(state, [shapes[number] for number in drawn]), strict=True))
        self.maybe_free_model_hooks()
        output = UniDiffuserOutput(
            images=self._images(parts[0], output_type) if 0 in parts else None,
            texts=self.decode_text(parts[1]) if 1 in parts else None,
        )
        return output if return_dict else output.to_tuple()

    def _images(self, x: Tensor, output_type: str | None) -> Any:
        """Return images (B, C, H, W) as a call returns them."""
        if output_type is None:
            output_type = default_output(self.sample_shape)
        return x if output_type == "latent" else self.to_images(x.clamp(-1, 1), output_type)

    def _mode(self, mode: str | None, prompt: Any, images: Any) -> str:
        """Return the mode of a call, which has what it needs and nothing else."""
        given = [name for name, value in (("prompt", prompt), ("images", images)) if value is not None]
        if mode is None:
            mode = {"prompt": "text_to_image", "images": "image_to_text"}.get(given[0] if given else "", "joint")
        if mode not in MODES:
            raise ValueError(f"{mode=} is not known. Choose one of: {', '.join(MODES)}.")
        needed = [] if MODES[mode].given is None else [MODES[mode].given]
        if given != needed:
            raise ValueError(
                f"mode={mode!r} needs {needed[0] if needed else 'neither prompt nor images'}, and "
                f"{' and '.join(given) or 'nothing'} was given. Correct one of them."
            )
        return mode

    def _given(self, mode: str, prompt: Any, images: Any, count: int | None) -> tuple[Tensor | None, int]:
        """Return what a mode is given, (B, ...), and B."""
        if count is not None:
            check_count("batch_size", count)
        if MODES[mode].given is None:
            return None, count or 1
        if MODES[mode].given == "images":
            value = image_batch(images, self.sample_shape).to(self._execution_device)
        else:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            if not prompts or not all(isinstance(text, str) for text in prompts):
                raise ValueError(f"{prompt=} must be a text, or a list of one or more texts.")
            value = self.encode_text(prompts)
        if len(value) == 1 and count is not None:
            value = value.expand(count, *value.shape[1:])
        if count not in (None, len(value)):
            raise ValueError(f"batch_size={count}, and {len(value)} were given: give one, or one for each sample.")
        return value, len(value)

    def _predictor(
        self, mode: str, given: Tensor | None, noise: Sequence[Tensor], scheduler: Any
    ) -> Callable[[Tensor, Tensor, float], Tensor]:
        """Return a function from the state (B, P) of what is drawn, a time step and a guidance scale to the output.

        Args:
            mode, given: of the call.
            noise: (B, C, H, W) and (B, K, d); a kind that is neither drawn nor given is this noise at time 1.
            scheduler: of the call.
        """
        facts = network_facts(self.scheduler.config)
        path, shapes = path_from_config(facts), (self.sample_shape, self.text_shape)
        first, last = (path.snap(torch.tensor(time, dtype=torch.float64)) for time in (0.0, 1.0))
        drawn, dtype = MODES[mode], self.denoiser.dtype

        def fixed(value: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            return value * float(path.input_scale(time)), path.timestep(time)

        hidden = [fixed(eps * float(path(last).sigma), last) for eps in noise]
        other = None if given is None else fixed(given, first)

        def evaluate(x: Tensor, t: Tensor, beside: tuple[Tensor, Tensor] | None) -> Tensor:
            if beside is None:
                image, text = _parts(x, shapes)
                inputs = image, t, text, t
            else:
                own = x.unflatten(1, shapes[0] if drawn.image else shapes[1]), t
                inputs = (*own, *beside) if drawn.image else (*beside, *own)
            made = self.denoiser(*(_for_network(value, x.device, dtype) for value in inputs))
            wanted = [value for value, draws in ((made.sample, drawn.image), (made.text, drawn.text)) if draws]
            return torch.cat([value.flatten(1) for value in wanted], 1).to(x.dtype)

        def predict(x: Tensor, t: Tensor, scale: float) -> Tensor:
            if drawn.image and drawn.text:
                return evaluate(x, t, None)
            marginal = hidden[1 if drawn.image else 0]
            if other is None:
                return evaluate(x, t, marginal)
            conditional = evaluate(x, t, other)
            return conditional if scale == 1 else torch.lerp(evaluate(x, t, marginal), conditional, scale)

        return predict


def _parts(state: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return the parts (B, *shape) of a state (B, P)."""
    pieces = state.split([math.prod(shape) for shape in shapes], 1)
    return [piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _for_network(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return items in the network's dtype, and time steps in float32, on the device."""
    value = torch.as_tensor(value, device=device)
    return value.to(dtype) if value.ndim > 1 else value.float()
