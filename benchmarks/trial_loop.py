"""A training in which one thing after the other can be changed, for benchmarks/recipe_trials.py.

The parts are hfgen's own; options that hfgen does not have are written out here.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hfgen.options import DataArgs, TrainArgs


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a trial trains. The defaults are the recipe of training/configs/mnist.yaml before these trials.

    Attributes:
        name: of the trial.
        data: data set or folder; held-out images are its split `test`, or the folder `test` beside `train`.
        seconds: undisturbed training time.
        seed: of everything random.
        size, widths, patch: of the network: model size; widths of a patch U-Net; side of the patches of a transformer.
        model: `patch_unet`, `unet`, `dit` or `uvit`.
        skips: whether a `uvit` has long skips.
        batch: images a step.
        rate: peak learning rate.
        optimizer: `adamw`, `muon` or `schedulefree`.
        ratio, momentum, decay: of Muon.
        schedule: `cosine`; `stable`, constant but for a linear decay to 0 over the last `cooldown`; `constant`.
        warmup: share of the steps with linear warm-up.
        times, mean, std: `time_sampling` and its parameters; `stratified` is `logit_normal` of low discrepancy.
        prediction, weighting, bias: `prediction_type`, `weighting` and `sigmoid_bias`; the weighting `velocity` makes
            the squared error of a prediction of x_0 that of the velocity, with t of at least 0.05.
        contrast: weight of the distance to the velocity of another image (contrastive flow matching, Stoica et al.
            2025, https://arxiv.org/abs/2506.05350).
        transport: whether noise and images of a batch are matched by optimal transport (Tong et al. 2024,
            https://arxiv.org/abs/2302.00482).
        dequantise: whether uniform noise of one level is added to images.
        averages: (max_decay, power) of each moving average.
        samples: how many are drawn and measured.
    """

    name: str
    data: str
    seconds: float = 120.0
    seed: int = 0
    model: str = "patch_unet"
    skips: bool = True
    size: str = "xs"
    widths: tuple[int, ...] = ()
    patch: int | None = None
    batch: int = 64
    rate: float = 2e-3
    optimizer: str = "adamw"
    ratio: float = 5.0
    momentum: float = 0.95
    decay: float = 0.01
    schedule: str = "cosine"
    cooldown: float = 0.3
    warmup: float = 0.07
    times: str = "low_discrepancy"
    mean: float = 0.0
    std: float = 1.0
    prediction: str = "flow_prediction"
    weighting: str = "simple"
    bias: float = 0.0
    contrast: float = 0.0
    transport: bool = False
    dequantise: bool = False
    averages: tuple[tuple[float, float], ...] = ((0.999, 0.75),)
    samples: int = 2000

    @property
    def kind(self) -> str:
        """Of its step: trials of one kind take the same time for a step."""
        keys = ("data", "model", "skips", "size", "widths", "patch", "batch", "optimizer", "contrast", "transport")
        return json.dumps([getattr(self, key) for key in keys])


class Progress(NamedTuple):
    """What a training has come to: its moving averages, and the loss of the last step."""

    averages: list[Any]
    loss: Any


def load(trial: Trial, split: str) -> Any:
    """Load the images of a split."""
    import hfgen

    folder = Path(trial.data)
    if (folder / split).is_dir():
        return hfgen.load_images(DataArgs(dataset=str(folder / split), label_column="none"))
    return hfgen.load_images(DataArgs(dataset=trial.data, dataset_split=split, random_flip="cifar" in trial.data))


def network_of(trial: Trial, data: Any) -> Any:
    """Build the network of a trial."""
    import hfgen
    from hfgen.utils.seeds import seed_initialisation

    seed_initialisation(trial.seed)
    network = hfgen.build_denoiser(trial.model, trial.size, data.resolution, data.channels, data.num_classes)
    changes = {}
    if trial.widths:
        changes["block_out_channels"] = trial.widths
    if trial.patch:
        changes["patch_size"] = trial.patch
    if not trial.skips:
        changes["long_skips"] = False
    options = {name: value for name, value in network.config.items() if name[0] != "_"}
    return type(network)(**{**options, **changes}).train() if changes else network.train()


def objective_of(trial: Trial, classes: int | None) -> Any:
    """Make the objective of a trial."""
    import torch

    import hfgen
    from hfgen.paths import StraightPath

    velocity = trial.weighting == "velocity"
    objective = hfgen.Denoising(
        StraightPath(),
        trial.prediction,
        "low_discrepancy" if trial.times == "stratified" else trial.times,
        trial.mean,
        trial.std,
        "simple" if velocity else trial.weighting,
        sigmoid_bias=trial.bias,
        num_classes=classes,
    )
    if velocity:
        objective.weight = lambda t: t.clamp(min=0.05) ** -2
    if trial.times == "stratified":
        uniform = objective.times
        objective.times = lambda step, count: torch.sigmoid(
            trial.mean + trial.std * torch.special.ndtri(uniform(step, count).clamp(1e-6, 1 - 1e-6))
        )
    return objective


def changed(trial: Trial, batch: dict[str, Any], step: Any) -> dict[str, Any]:
    """Return a batch with what a trial adds to its images or couples with them."""
    import torch

    x = batch["x"]
    if trial.dequantise:
        x = x + (step.uniform("dequantisation", x) - 0.5) / 127.5
    batch = {**batch, "x": x}
    if trial.transport:
        from scipy.optimize import linear_sum_assignment

        noise = step.randn("noise", x)
        order = linear_sum_assignment(torch.cdist(x.flatten(1), noise.flatten(1)).square().numpy())[1]
        batch["noise"] = noise[torch.as_tensor(order)]
    return batch


def loss_of(trial: Trial, objective: Any, network: Any, batch: dict[str, Any], step: Any) -> Any:
    """Compute the loss of a trial on a batch."""
    import torch

    if not trial.contrast:
        return objective.loss("denoiser", {"denoiser": network}, batch, step).value
    kept = {}
    noise = step.randn("noise", batch["x"])

    def note(*args: Any, **kwargs: Any) -> Any:
        kept["output"] = network(*args, **kwargs)
        return kept["output"]

    value = objective.loss("denoiser", {"denoiser": note}, {**batch, "noise": noise}, step).value
    other = torch.randperm(len(noise), generator=step.generator("contrast"))
    target = (noise - batch["x"])[other]
    return value - trial.contrast * (kept["output"].sample.float() - target).square().mean()


def optimizer_of(trial: Trial, network: Any) -> tuple[Any, TrainArgs]:
    """Make the optimiser of a trial, with the options of a run."""
    from hfgen.trainer.optimizers import OPTIMIZERS

    if trial.optimizer == "schedulefree":
        import schedulefree

        return schedulefree.AdamWScheduleFree(network.parameters(), lr=trial.rate, betas=(0.9, 0.99)), TrainArgs()
    args = TrainArgs(optimizer=trial.optimizer)
    if trial.optimizer == "muon":
        args = TrainArgs(optimizer="muon", muon_ratio=trial.ratio, muon_momentum=trial.momentum)
        args.muon_weight_decay = trial.decay
    row = OPTIMIZERS[trial.optimizer]
    optimizer = row.make(network, trial.rate)
    for group in optimizer.param_groups:
        group.update(row.settings(args))
    return optimizer, args


def share_of(trial: Trial, step: int, total: int) -> float:
    """Return the learning rate of a step as a share of the peak."""
    warmup = max(1, round(trial.warmup * total))
    if step < warmup:
        return (step + 1) / warmup
    if trial.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    if trial.schedule == "stable":
        return min(1.0, (total - step) / max(1, round(trial.cooldown * total)))
    return 1.0


def steps_of(trial: Trial, data: Any, total: int) -> Iterator[Progress]:
    """Train; yield what a trial has come to after each step."""
    import torch

    from hfgen.data.batches import Batches
    from hfgen.objectives.base import Step
    from hfgen.trainer.ema import EMA

    network, objective = network_of(trial, data), objective_of(trial, data.num_classes)
    optimizer, _ = optimizer_of(trial, network)
    averages = [EMA(network, decay, power=power) for decay, power in trial.averages]
    if trial.optimizer == "schedulefree":
        optimizer.train()
    stream = iter(Batches(data, trial.batch, trial.seed).iterate(0))
    for number in range(total):
        for group in optimizer.param_groups:
            group["lr"] = trial.rate * share_of(trial, number, total)
        step = Step(number, trial.seed)
        batch = changed(trial, next(stream), step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(trial, objective, network, batch, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for average in averages:
            average.update(network)
        if number == total - 1 and trial.optimizer == "schedulefree":
            optimizer.eval()
            averages[0].module.load_state_dict(network.state_dict())
        yield Progress(averages, loss.detach())


def step_seconds(trial: Trial, data: Any, file: Path) -> float:
    """Return the seconds of a step of this kind, measured once."""
    known = json.loads(file.read_text()) if file.is_file() else {}
    if trial.kind not in known:
        one = dataclasses.replace(trial, averages=trial.averages[:1])
        stream = steps_of(one, data, 10**6)
        for _ in range(3):
            next(stream)
        began = time.perf_counter()
        next(stream)
        count = max(3, round(2.5 / (time.perf_counter() - began)))
        known[trial.kind] = min(_timed(lambda: next(stream), count) for _ in range(3))
        file.write_text(json.dumps(known, indent=1))
    return known[trial.kind]


def _timed(call: Callable[[], Any], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count
