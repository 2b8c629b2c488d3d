"""Samples that show what a text says, with any denoiser, any scheduler, and any text encoder."""

import logging
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfgen.models.attention import use_image_layers
from hfgen.models.conditions import CaptionCondition
from hfgen.models.text_tokens import encoded, lengths_of
from hfgen.utils.arguments import checked

from .adapters import AdapterMixin
from .base import HFGenPipeline, PipelineOutput
from .drawing import DrawingMixin
from .guides import Guide, ProjectedGuidance
from .inputs import Generators, check_count

EMPTY = ""
"""The text of "no text": what guidance leads away from, where there are no negative prompts."""

logger = logging.getLogger(__name__)


class TextToImagePipeline(AdapterMixin, DrawingMixin, HFGenPipeline):
    """From noise to images that show what a text says, with classifier-free guidance by the empty text or by negative
    prompts, see `guided`. Low-rank adapters change the denoiser, see `AdapterMixin`.

    Args:
        denoiser: a network with texts: `PatchUNet2DModel`, `DiTModel` or `UViTModel` with `text_channels`, or
            `UNet2DConditionModel` of diffusers.
        scheduler: any of hfgen's or diffusers'; see `use_scheduler`.
        text_encoder, tokenizer: of `transformers`.
        max_length: tokens that every text is padded or cut to.
        null_text: whether the denoiser was trained on the empty text, too; if not, it can't be guided.
    """

    model_cpu_offload_seq = "text_encoder->denoiser"
    _lora_loadable_modules = ("denoiser",)

    @checked
    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 77,
        null_text: bool = True,
    ):
        super().__init__()
        check_count("max_length", max_length)
        self.register_modules(
            denoiser=use_image_layers(denoiser), scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(max_length=max_length, null_text=null_text)

    @property
    def condition(self) -> CaptionCondition:
        """Return the condition on texts, whose null values are those of the empty text."""
        return CaptionCondition({}, self.encode_prompt([EMPTY]))

    @checked
    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return what the denoiser is told of B texts: "encoder_hidden_states" and "encoder_attention_mask".

        Texts are cut to `max_length` tokens; it is said.
        """
        limit = self.config.max_length
        for prompt, length in zip(prompts, lengths_of(self.tokenizer, prompts), strict=True):
            if length > limit:
                logger.warning("%r has %d tokens, and the model reads %d of them.", prompt, length, limit)
        states = encoded(self.tokenizer, self.text_encoder, prompts, limit)
        return {name: value.to(self._execution_device) for name, value in states.items()}

    @checked
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        batch_size: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        return_trajectory: bool = False,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        scheduler: SchedulerMixin | str | None = None,
        guidance: Guide | Sequence[Guide] | None = None,
        guidance_method: str | ProjectedGuidance = "cfg",
        guidance_rescale: float = 0.0,
    ) -> PipelineOutput | tuple:
        """Draw images: `num_images_per_prompt` of the first prompt, then of the second one, and so on.

        Args:
            prompt: a text, or several. None: the empty text, which stands for any.
            negative_prompt: what guidance leads away from, a text for all or for each prompt; None: the empty text.
            num_images_per_prompt: images of each prompt.
            batch_size: number of images. None: as the prompts say. For one prompt, or none, it may be given in place of
                `num_images_per_prompt`.
            num_inference_steps, guidance_scale, guidance_interval, generator, latents, output_type, return_dict,
            return_trajectory, callback_on_step_end, callback_on_step_end_tensor_inputs, timesteps, sigmas, scheduler,
            guidance, guidance_method, guidance_rescale: as those of `DenoisingPipeline`.

        Raises:
            ValueError: prompts, guidance, scheduler, time steps or noise that do not fit the model.
        """
        prompts, each = self._prompts(prompt, num_images_per_prompt, batch_size)
        self._check_rivals(guidance)
        negatives = self._negatives(negative_prompt, len(prompts), guidance_scale)
        self._check_guidance(guidance_scale, prompt, negative_prompt)
        return self._draw(
            len(prompts) * each,
            self._told(prompts, each),
            lambda scale: self._check_guidance(scale, prompt, negative_prompt),
            *(num_inference_steps, callback_on_step_end, callback_on_step_end_tensor_inputs),
            *(output_type, return_dict),
            scheduler=scheduler,
            guidance=(guidance, guidance_method, guidance_rescale),
            condition=CaptionCondition({}, self._told(negatives, each)),
            latents=latents,
            generator=generator,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            return_trajectory=return_trajectory,
            timesteps=timesteps,
            sigmas=sigmas,
        )

    def _told(self, prompts: Sequence[str], each: int) -> dict[str, Tensor]:
        """Return what `encode_prompt` does, for `each` images of a text. A text that is there twice is encoded once."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
        states = self.encode_prompt(list(numbers))
        rows = [numbers[prompt] for prompt in prompts for _ in range(each)]
        return {name: value[torch.tensor(rows, device=value.device)] for name, value in states.items()}

    def _prompts(self, prompt: str | Sequence[str] | None, each: int, batch_size: int | None) -> tuple[list[str], int]:
        """Return the prompts, and the number of images of each."""
        check_count("num_images_per_prompt", each)
        prompts = _texts("prompt", EMPTY if prompt is None else prompt)
        if batch_size is not None:
            check_count("batch_size", batch_size)
            if len(prompts) == each == 1:
                each = batch_size
            if len(prompts) * each != batch_size:
                raise ValueError(
                    f"{batch_size=}, and {len(prompts)} prompts with num_images_per_prompt={each} make "
                    f"{len(prompts) * each} images. Leave batch_size out."
                )
        if prompt is None and not self.config.null_text:
            raise ValueError("This model needs a prompt: it was trained without the empty text.")
        return prompts, each

    def _negatives(self, negative: str | Sequence[str] | None, count: int, scale: float) -> list[str]:
        """Return the negative prompt of each of `count` prompts."""
        negatives = _texts("negative_prompt", EMPTY if negative is None else negative)
        if negative is not None and scale == 1.0:
            raise ValueError("negative_prompt does nothing at guidance_scale=1. Give a guidance_scale above 1.")
        if len(negatives) not in (1, count):
            raise ValueError(f"{len(negatives)} negative prompts do not go with {count} prompts: give one, or {count}.")
        return negatives if len(negatives) == count else negatives * count

    def _check_guidance(self, scale: float, prompt: Any, negative: Any) -> None:
        """Raise ValueError for guidance without a text or of a model without a null text, and for one not finite."""
        if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
            raise ValueError(f"guidance_scale={scale} must be a finite number; 1 is no guidance.")
        if scale != 1.0 and prompt is None and negative is None:
            raise ValueError(f"guidance_scale={scale} can't be used: a prompt is needed. Use guidance_scale=1.")
        if scale != 1.0 and not self.config.null_text:
            why = "the model was trained without the empty text"
            raise ValueError(f"guidance_scale={scale} can't be used: {why}. Use guidance_scale=1.")

    def _check_rivals(self, guidance: Guide | Sequence[Guide] | None) -> None:
        """Raise ValueError for a worse model that reads other states than this one's encoder makes."""
        own = self.text_encoder.state_dict()
        for guide in guidance if isinstance(guidance, Sequence) else [guidance]:
            encoder = getattr(getattr(guide, "bad", None), "text_encoder", self.text_encoder)
            if encoder is self.text_encoder:
                continue
            others = encoder.state_dict()
            same = own.keys() == others.keys() and all(torch.equal(own[key], others[key].to(own[key])) for key in own)
            if not same:
                raise ValueError(
                    "The worse model has a text encoder with other weights, whose states this pipeline does not have. "
                    "Give a model with the same encoder, trained with --text_encoder."
                )


def _texts(name: str, value: Any) -> list[str]:
    """Return texts as a list. Raises ValueError for anything else, and for none."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else [None]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}={value!r} must be a text, or a list of one or more texts.")
    return texts
