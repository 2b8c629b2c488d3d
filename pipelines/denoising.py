"""Sampling and likelihoods with any denoiser and any scheduler: diffusion, score models and rectified flow."""

from diffusers import ModelMixin, SchedulerMixin

from hfgen.utils.arguments import checked

from .base import HFGenPipeline
from .denoiser import DenoiserMixin


class DenoisingPipeline(DenoiserMixin, HFGenPipeline):
    """From noise to images along a path, with classifier-free guidance for class-conditional models, see `guided`; and
    from images to noise, see `InversionMixin`. Low-rank adapters change the network, see `AdapterMixin`.

    Args:
        denoiser: a network called as diffusers' `UNet2DModel`: `UNet2DModel` itself, `DiTModel`, `PatchUNet2DModel`.
            One with `two_times` is a flow map.
        scheduler: any of hfgen's or diffusers'; see `use_scheduler`.
        num_classes: number of classes, None for an unconditional model. The null label is the embedding after the last
            class. A denoiser without that embedding was trained without label dropout.
        label_names: the classes' names, to be used in place of numbers.
        variance_head: a `VarianceHeadModel` for a scheduler whose `variance_type` is `npr`, `sn` or `ocm`; `hfgen
            calibrate` trains it. None: there is none.
    """

    @checked
    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        num_classes: int | None = None,
        label_names: list[str] | None = None,
        variance_head: ModelMixin | None = None,
    ):
        super().__init__()
        self._register(denoiser, scheduler, num_classes, label_names, variance_head)
