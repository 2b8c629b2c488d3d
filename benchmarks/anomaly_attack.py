"""Attacks on an anomaly detector: how many anomalies it finds, and how many false alarms it raises, before and after.

    python benchmarks/anomaly_attack.py --dataset path/to/mnist --foreign path/to/cifar10

The attacker knows the detector and moves each pixel by at most `--strengths` levels of 255, by projected gradient steps
on the score (Madry et al. 2018, https://arxiv.org/abs/1706.06083): images of the other data set, the anomalies, towards
low scores, and normal images towards high ones. Defences:

- `none`: the detector of `hfgen anomaly fit`;
- `smoothing`: the mean score of `--copies` noisy copies of an image, as in randomised smoothing (Cohen et al. 2019,
  https://arxiv.org/abs/1902.02918);
- `noise`: the autoencoder has learnt to reconstruct images from noisy ones;
- `adversarial`: from images that three such steps against its reconstruction have changed.

Each defence has its own threshold, from the same held-out images without an attack. The attacker differentiates through
the defence, and knows the noise of its copies: a defence that only hides gradients does not help.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anomaly
import torch
from torch import Tensor

import hfgen
from hfgen.options import DataArgs, option, parse, parser
from hfgen.utils.pixels import from_levels
from hfgen.utils.ranges import COUNT
from hfgen.utils.seeds import generator_of

STEPS_OF_TRAINING = 3
"""Steps of the attacks in adversarial training."""


@dataclasses.dataclass
class Options(anomaly.Options):
    """Benchmark"""

    defences: str = option("none,smoothing,noise,adversarial", "defences to measure")
    strengths: str = option("2,8,32,64", "most that a pixel moves by, in levels of 255")
    trained_strength: float = option(16.0, "the same in adversarial training")
    attack_steps: int = option(20, "gradient steps of an attack", range=COUNT)
    copies: int = option(8, "noisy copies for smoothing", range=COUNT)
    noise: float = option(0.1, "standard deviation of the noise of copies and of training, pixels in [-1, 1]")
    count: int = option(500, "images of each kind that are attacked", range=COUNT)


def attacked(score: Callable[[Tensor], Tensor], x: Tensor, strength: float, steps: int, sign: float) -> Tensor:
    """Return images within `strength` of x (B, C, H, W), and in [-1, 1], with a higher `sign` * score than x."""
    start = 2 * torch.rand(x.shape, generator=generator_of("attack")) - 1
    moved, best, highest = x + strength * start, x.clone(), sign * score(x).detach()
    for _ in range(steps):
        moved = moved.clamp(-1, 1).detach().requires_grad_()
        value = sign * score(moved)
        (slope,) = torch.autograd.grad(value.sum(), moved)
        better = value.detach() > highest
        best[better], highest[better] = moved.detach()[better], value.detach()[better]
        moved = torch.clamp(moved + 2.5 * strength / steps * slope.sign(), x - strength, x + strength)
    return best


class DisturbedELBO(hfgen.ELBO):
    """The ELBO of clean images, with an encoder that sees disturbed ones.

    Args:
        disturb: (images (B, C, H, W), their reconstruction error as a function, step) -> the images for the encoder.
    """

    def __init__(self, *arguments: Any, disturb: Callable[..., Tensor]):
        super().__init__(*arguments)
        self.disturb = disturb

    def terms(self, autoencoder: Any, items: Tensor, step: Any) -> Any:
        """Compute the terms as `ELBO.terms`, for a mean that is decoded without a sample while images are disturbed."""
        x = items

        class Seen(torch.nn.Module):
            """The autoencoder, called with other images."""

            def forward(_, given: Tensor, noise: Tensor, prior_samples: Tensor | None = None) -> Any:
                def error(y: Tensor) -> Tensor:
                    means = self.likelihood.mean(autoencoder(y, torch.zeros_like(noise)).decoded.squeeze(1))
                    return (means - x).square().flatten(1).sum(1)

                return autoencoder(self.disturb(given, error, step), noise, prior_samples)

        return super().terms(Seen(), items, step)


def trainers(options: Options) -> dict[str, Any]:
    """Return what makes the objective of each way to train, by its name; None is the ELBO."""

    def noisy(x: Tensor, error: Any, step: Any) -> Tensor:
        return x + options.noise * step.randn("disturbance", x)

    def hostile(x: Tensor, error: Any, step: Any) -> Tensor:
        return attacked(error, x, 2 * options.trained_strength / 255, STEPS_OF_TRAINING, 1.0)

    def kind(disturb: Any) -> Any:
        return lambda *arguments: DisturbedELBO(*arguments, disturb=disturb)

    return {"none": None, "noise": kind(noisy), "adversarial": kind(hostile)}


def plan(options: Options) -> list[tuple[Any, list[str]]]:
    """Return what makes the objective of each training, and its defences: smoothing needs no training of its own.

    Raises ValueError for a defence that is not known.
    """
    wanted, kinds = options.defences.split(","), trainers(options)
    if unknown := [name for name in wanted if name not in (*kinds, "smoothing")]:
        raise ValueError(f"--defences {unknown[0]} is not known. There are: smoothing, {', '.join(kinds)}.")
    served = {name: (name, "smoothing") if name == "none" else (name,) for name in kinds}
    plans = [(kind, [each for each in served[name] if each in wanted]) for name, kind in kinds.items()]
    return [(kind, defences) for kind, defences in plans if defences]


def scores_of(detector: Any, options: Options, smooth: bool) -> Callable[[Tensor], Tensor]:
    """Return the differentiable score of a detector (B, C, H, W) -> (B,), perhaps the mean over noisy copies."""
    from hfgen.pipelines.anomaly import SCORES, Scorer

    scorer = Scorer(detector.autoencoder, detector.prior, detector.likelihood, detector.config.num_samples)
    noise = options.noise * torch.randn(options.copies, *detector.sample_shape, generator=generator_of("copies"))

    def score(x: Tensor) -> Tensor:
        seen = (x[:, None] + noise).flatten(0, 1) if smooth else x
        values = SCORES[detector.config.score](scorer, scorer.encoding(seen))
        return values.view(len(x), -1).mean(1)

    return score


def rates(score: Any, images: dict[str, Tensor], held_out: Tensor, options: Options) -> dict[str, list[float]]:
    """Return the shares of images above the threshold, by strength: of anomalies, and of normal images."""
    from hfgen.models.calibration import CalibrationModel

    calibration = CalibrationModel(len(held_out))
    with torch.no_grad():
        calibration.scores.copy_(torch.cat([score(part) for part in held_out.split(250)]).sort().values)
    threshold, found = calibration.threshold(options.rate), {}
    for name, sign in (("anomalies", -1.0), ("normal", 1.0)):
        found[name] = []
        for levels in (0.0, *map(float, options.strengths.split(","))):
            shares = []
            for part in images[name].split(250):
                moved = attacked(score, part, 2 * levels / 255, options.attack_steps, sign) if levels else part
                shares.append((score(moved).detach() > threshold).float())
            found[name].append(float(torch.cat(shares).mean()))
    return found


def main(argv: list[str] | None = None) -> None:
    """Train, attack and print a Markdown table."""
    example = "python benchmarks/anomaly_attack.py --dataset path/to/mnist --foreign path/to/cifar10"
    title = __doc__.splitlines()[0]
    (options,) = parse(parser("anomaly_attack.py", title, example, Options, config=False), argv, Options)
    from hfgen import load_images
    from hfgen.families.anomaly.fit import fit

    train, test = (load_images(DataArgs(dataset=options.dataset, dataset_split=name)) for name in ("train", "test"))
    shape = {"resolution": train.size[0], "channels": train.channels}
    other = load_images(DataArgs(dataset=options.foreign, dataset_split="test", **shape))
    order = torch.randperm(len(train.images), generator=generator_of("held out", options.seed))
    held_out = from_levels(train.images[order[: options.num_calibration]])
    normal = train.images[order[options.num_calibration :]]
    images = {
        name: from_levels(data.images[: options.count]) for name, data in (("anomalies", other), ("normal", test))
    }
    strengths, results = ["0", *options.strengths.split(",")], {}
    print(
        f"| defence | score | found among anomalies, levels {', '.join(strengths)} | false alarms |\n|---|---|---|---|"
    )
    for kind, defences in plan(options):
        vae = anomaly.train_vae(normal, options, kind)
        for score in options.scores.split(","):
            detector = fit(vae, from_levels(normal), held_out, score, options.rate, seed=options.seed)
            detector.autoencoder.requires_grad_(False).eval()
            for defence in defences:
                found = rates(scores_of(detector, options, defence == "smoothing"), images, held_out, options)
                cells = [", ".join(f"{value:.1%}" for value in found[each]) for each in ("anomalies", "normal")]
                print(f"| {defence} | {score} | {cells[0]} | {cells[1]} |", flush=True)
                results[f"{defence}, {score}"] = found
    if options.output:
        Path(options.output).write_text(
            json.dumps({"options": dataclasses.asdict(options), **results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
