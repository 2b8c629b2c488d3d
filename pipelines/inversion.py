"""Images as the noise that they come from, and the way between two of them, for pipelines that denoise."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from hfgen.paths import path_from_config
from hfgen.schedulers.configuration import network_facts
from hfgen.schedulers.ddim import DDIMInverseScheduler, DDIMScheduler
from hfgen.schedulers.ode_likelihood import Velocity
from hfgen.schedulers.rectified_flow import RectifiedFlowScheduler
from hfgen.schedulers.table import scales
from hfgen.utils.arguments import checked
from hfgen.utils.seeds import sample_generators

from .images import image_batch
from .inputs import check_count, check_latents, noise_of
from .latents import RoundTripMixin, check_ends, interpolate_latents
from .outputs import require_finite
from .sampling import check_noiseless, clone_of, denoise, set_timesteps

INVERTED = 64
"""Samples that are inverted or decoded together."""

STAGES = 4
"""Evaluations of the network in a step of the Runge-Kutta rule."""

FIRST_STEPS = 2
"""Repetitions of the implicit step from clean data to the least noise that a network knows."""

InversionMethod = Literal["ode", "ddim"]
PredictAt = Callable[..., Tensor]
"""(x_t (B, *item), time step ()) -> the network's output (B, *item). A flow map may be told the end of the step."""


class InversionMixin(RoundTripMixin):
    """Inversion for a pipeline with `scheduler`, `sample_shape`, and the `item_shape`, `to_items`, `to_samples`,
    `_kwargs` and `_predict` of denoisers.

    The probability-flow ODE joins each sample with one noise, whatever scheduler the pipeline has. Two methods follow
    it:

    - `ode`: the classical Runge-Kutta rule, and back the default of `RectifiedFlowScheduler`. Every deterministic
      scheduler leads from this noise to the sample, the nearer the more steps it takes.
    - `ddim`: the steps of `DDIMInverseScheduler`, and back those of `DDIMScheduler`. Another scheduler, or another
      number of steps, leads from this noise to another sample. It needs a prediction that says eps in clean data.

    `scheduler`, of a call, leads from noise to samples in place of that of the method: by name or as an object, as in
    the pipeline's call, which draws the same samples from the same noise. It belongs to this call alone, whatever other
    threads do to the pipeline's. One that draws noise in its steps is refused: no noise leads back to a sample then.
    """

    @checked
    def invert(
        self,
        images: Any,
        class_labels: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        method: InversionMethod = "ode",
        scheduler: SchedulerMixin | str | None = None,
    ) -> Tensor:
        """Return the noise (B, *item) of samples: `pipeline(latents=noise)` draws them again, under the same classes
        and guidance. Under another class it draws what is like them in that class.

        Args:
            images: see `image_batch`; floats may have any range, and items need not be images.
            class_labels: a class, or one for each sample, by number or name. None: the null label.
            num_inference_steps: evaluations of the network; `ode` takes a multiple of 4 of them, at least 4.
            guidance_scale: 1 is no guidance. The more guidance, the less exact is the way back.
            method: `ode` or `ddim`, see the class.
            scheduler: the one that is to draw the samples again, see the class. The noise of `ode` is that of all, so
                it is checked and changes nothing else.

        Raises:
            ValueError: samples, labels, guidance or scheduler that do not fit the model, a scheduler that draws noise,
                or a number or method out of range.
        """
        x = image_batch(images, self.sample_shape, limit=math.inf)
        return self._invert(x, class_labels, num_inference_steps, guidance_scale, method, scheduler)

    @torch.no_grad()
    def _invert(
        self, x: Tensor, class_labels: Any, num_inference_steps: int, guidance_scale: float, method: str, scheduler: Any
    ) -> Tensor:
        """Return what `invert` does, for samples (B, *item) that were checked."""
        _, kwargs = self._kwargs(len(x), class_labels, guidance_scale)
        facts, _ = self._way_of(scheduler)
        x = self.to_items(x)
        ways = {"ode": partial(noise_by_ode, facts), "ddim": partial(noise_by_ddim, facts)}
        return self._along(x, kwargs, num_inference_steps, guidance_scale, ways, method, "noise")

    @checked
    def encode(self, images: Any, class_labels: Any = None) -> Tensor:
        """Return `invert` with its defaults."""
        return self.invert(images, class_labels)

    @checked
    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        class_labels: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        method: InversionMethod = "ode",
        scheduler: SchedulerMixin | str | None = None,
    ) -> Tensor:
        """Return the samples (B, *item) of noise: images in [-1, 1], up to errors of the network.

        It goes the way of `invert` back. No random numbers are drawn, whatever scheduler the pipeline has.

        Args:
            latents: (B, *item), what `invert` returned, or standard normal noise.
            class_labels, num_inference_steps, guidance_scale, method: as those of `invert`.
            scheduler: see the class.

        Raises:
            ValueError: as `invert`.
        """
        check_latents(latents, self.item_shape)
        _, kwargs = self._kwargs(len(latents), class_labels, guidance_scale)
        return self._samples_from(latents, kwargs, num_inference_steps, guidance_scale, method, scheduler)

    @checked
    def reconstruct(
        self,
        images: Any,
        class_labels: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        method: InversionMethod = "ode",
        scheduler: SchedulerMixin | str | None = None,
    ) -> Tensor:
        """Return decode(invert(images)), (B, *item); arguments and errors are those of `invert`."""
        options = class_labels, num_inference_steps, guidance_scale, method, scheduler
        return self.decode(self.invert(images, *options), *options)

    @checked
    def interpolate(
        self,
        first: Any,
        second: Any,
        steps: int = 9,
        kind: Literal["linear", "spherical"] = "spherical",
        class_labels: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        method: InversionMethod = "ode",
        scheduler: SchedulerMixin | str | None = None,
    ) -> Tensor:
        """Return samples on the way between two batches through the noise: (steps, B, *item).

        Both ends are included, as the decoder sees them.

        Args:
            first, second: images, see `image_batch`; or seeds, see `between`.
            steps: samples on the way, at least 2.
            kind: see `interpolate_latents`.
            class_labels: a class, or one for each of the B samples, the same on the whole way.
            num_inference_steps, guidance_scale, method, scheduler: as those of `invert` and `decode`.

        Raises:
            ValueError: as `invert`; or the batches differ in size, fewer than two steps, or an unknown kind.
        """
        options = class_labels, num_inference_steps, guidance_scale, method, scheduler
        ends = [
            x if is_seed(x) else image_batch(x, self.sample_shape, name, math.inf)
            for name, x in (("first", first), ("second", second))
        ]
        if is_seed(first) == is_seed(second) or self.item_shape == self.sample_shape:
            check_ends(*(self._noise_at(end) for end in ends), steps)
        noises = [end if is_seed(end) else self._invert(end, *options) for end in ends]
        return self.between(*noises, steps, kind, *options)

    @checked
    @torch.no_grad()
    def between(
        self,
        first: Tensor | int | Sequence[int],
        second: Tensor | int | Sequence[int],
        steps: int = 9,
        kind: Literal["linear", "spherical"] = "spherical",
        class_labels: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        method: InversionMethod = "ode",
        scheduler: SchedulerMixin | str | None = None,
    ) -> Tensor:
        """Return what `interpolate` does, between noises or seeds: (steps, B, *item).

        Args:
            first, second: noise (B, *item); or seeds, a number or a list. `between(3, 8)` joins the samples that
                `generator=torch.Generator().manual_seed(3)` and `(8)` draw.
            steps, kind, class_labels, num_inference_steps, guidance_scale, method, scheduler: as those of
                `interpolate`.

        Raises:
            ValueError: as `interpolate`.
        """
        first, second = (self._noise_at(end) for end in (first, second))
        check_latents(first, self.item_shape, "first")
        check_latents(second, self.item_shape, "second")
        check_ends(first, second, steps)
        _, kwargs = self._kwargs(len(first), class_labels, guidance_scale)
        kwargs = {name: value.repeat(steps, *[1] * (value.ndim - 1)) for name, value in kwargs.items()}
        way = interpolate_latents(first, second.to(first), steps, kind)
        samples = self._samples_from(way.flatten(0, 1), kwargs, num_inference_steps, guidance_scale, method, scheduler)
        return samples.unflatten(0, way.shape[:2])

    def _noise_at(self, end: Any) -> Any:
        """Return the noise (B, *item) of seeds, and anything else as it is."""
        if not is_seed(end):
            return end
        seeds = [end] if isinstance(end, Integral) else end
        generators = [sample_generators(int(seed), [0])[0] for seed in seeds]
        return noise_of((len(generators), *self.item_shape), None, generators, self._execution_device)

    def _way_of(self, scheduler: Any) -> tuple[dict[str, Any], Any]:
        """Return the facts of the network, and a copy of the scheduler of a call; None for that of the method.

        Raises:
            ValueError: an unknown scheduler, one of another model, or one that draws noise.
        """
        if scheduler is None:
            return network_facts(self.scheduler.config), None
        chosen = self._scheduler_of(scheduler)
        check_noiseless(chosen)
        return network_facts(chosen.config), chosen

    def _samples_from(
        self, noise: Tensor, kwargs: dict[str, Tensor], steps: int, scale: float, method: str, scheduler: Any
    ) -> Tensor:
        facts, chosen = self._way_of(scheduler)
        ways: dict[str, Any] = {
            "ode": partial(self._sample_by_own, RectifiedFlowScheduler, facts),
            "ddim": partial(self._sample_by_own, DDIMScheduler, {**facts, "clip_sample": False}),
        }
        if chosen is not None:
            ways = dict.fromkeys(ways, partial(self._sample_by, chosen))
        return self.to_samples(self._along(noise, kwargs, steps, scale, ways, method, "samples"))

    def _along(
        self,
        x: Tensor,
        kwargs: dict[str, Tensor],
        steps: int,
        scale: float,
        ways: dict[str, Callable[[PredictAt, Tensor, int], Tensor]],
        method: str,
        what: str,
    ) -> Tensor:
        """Return x (B, *item) at the other end of the way of this method, in float32, under one progress bar."""
        check_count("num_inference_steps", steps)
        if method not in ways:
            raise ValueError(f"{method=} is not known. Choose {' or '.join(ways)}.")
        x, channels, values = x.to(self._execution_device, self._real), self.item_shape[0], []
        parts = torch.arange(len(x), device=x.device).split(INVERTED)
        with self.progress_bar(total=steps * len(parts)) as bar:
            for rows in parts:
                part = {name: value[rows] for name, value in kwargs.items()}

                def predict(x_t: Tensor, t: Tensor, *end: Tensor, part: dict[str, Tensor] = part) -> Tensor:
                    bar.update()
                    return self._predict(x_t, t, part, scale, *end)[:, :channels]

                values.append(ways[method](predict, x[rows], steps))
        self.maybe_free_model_hooks()
        return require_finite(torch.cat(values).float(), what, self.components, x)

    def _sample_by_own(
        self, cls: type, config: dict[str, Any], predict: PredictAt, noise: Tensor, steps: int
    ) -> Tensor:
        scheduler = cls.from_config(config)
        scheduler.set_timesteps(steps)
        return denoise(lambda x, t, scale: predict(x, t), scheduler, noise, components=self.components)[0]

    def _sample_by(self, chosen: Any, predict: PredictAt, noise: Tensor, steps: int) -> Tensor:
        """Return what the pipeline's call draws with this scheduler, which is copied for each part of the batch."""
        scheduler = clone_of(chosen)
        set_timesteps(scheduler, steps)
        options = {"components": self.components, "two_times": getattr(self, "two_times", False)}
        return denoise(lambda x, t, scale, *end: predict(x, t, *end), scheduler, noise.float(), **options)[0]


def noise_by_ode(facts: dict[str, Any], predict: PredictAt, x: Tensor, steps: int) -> Tensor:
    """Follow the ODE from data (B, *item) to where samplers begin, and scale it to unit noise."""
    velocity = Velocity(predict, path_from_config(facts), facts["prediction_type"])
    y = first_step(velocity, x)
    for now, end in pairwise(velocity.nodes(velocity.low, max(1, steps // STAGES))):
        if now < velocity.high:
            y = runge_kutta_step(velocity, y, now, end)
    start = scales(velocity.path, velocity.times[1])
    return y * (start.alpha + start.sigma) / math.hypot(start.alpha, start.sigma)


def noise_by_ddim(facts: dict[str, Any], predict: PredictAt, x: Tensor, steps: int) -> Tensor:
    """Follow the steps of `DDIMInverseScheduler` from data (B, *item) to unit noise.

    Raises:
        ValueError: the prediction does not say eps in clean data.
    """
    scheduler = DDIMInverseScheduler.from_config(facts)
    scheduler.set_timesteps(steps)
    if scheduler.end_time > 0:
        raise ValueError(
            f"method='ddim' begins at clean data, whose noise prediction_type={scheduler.config.prediction_type!r} "
            "does not say. Use method='ode'."
        )
    for t in scheduler.timesteps:
        x = scheduler.step(predict(scheduler.scale_model_input(x, t), t), t, x, return_dict=False)[0]
    return x / scheduler.init_noise_sigma


def is_seed(end: Any) -> bool:
    """Return whether an end of an interpolation is a seed, or a list of them."""
    seeds = end if isinstance(end, list | tuple) else [end]
    return bool(seeds) and all(isinstance(seed, Integral) and not isinstance(seed, bool) for seed in seeds)


def first_step(velocity: Velocity, x: Tensor) -> Tensor:
    """Return y (B, *item) at the least noise that the network knows, s = `velocity.low`, for clean data x.

    The step is implicit, y = x + s D(y, s), as clean data are outside of what the network was trained on.
    """
    y = x
    for _ in range(FIRST_STEPS):
        y = x + velocity.low * velocity(y, velocity.low)
    return y


def runge_kutta_step(velocity: Callable[[Tensor, float], Tensor], y: Tensor, now: float, end: float) -> Tensor:
    """Return y (B, *item) at s = end from y at s = now, by the classical rule of order 4 for dy/ds = velocity(y, s)."""
    h, slope, change = end - now, torch.zeros_like(y), torch.zeros_like(y)
    for fraction, weight in ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)):
        slope = velocity(y + fraction * h * slope, now + fraction * h)
        change = change + weight * slope
    return y + h * change
