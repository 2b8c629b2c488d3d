"""Try the built-in feature networks on ladders of known damage to held-out real images.

    python benchmarks/damage_ladder.py --dataset path/to/mnist

Frechet distances are to training images, divided by the floor: the distance of the held-out images as they are. A good
measure rises with every step of every ladder. The last two ladders are also measured by coverage and by the share of
samples that are nearer to the rest of the training images than held-out ones are (`hfgen evaluate --metrics
precision_recall,memorisation`). In the ladder "memorised", a share of the samples are images of that rest. Each is
distinct and real, so no distance of distributions can see it. Prints a Markdown table, and writes damage_ladder.json
and a picture.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfgen.commands.feature_training import split
from hfgen.metrics.damage import LADDERS, Ladder, RealImages
from hfgen.metrics.distances import frechet_distance, geometric_mean
from hfgen.metrics.feature_network import FeatureNetwork
from hfgen.metrics.features import choose_features
from hfgen.metrics.neighbours import memorisation, prdc
from hfgen.options import Options as Group
from hfgen.options import option, parse, parser
from hfgen.utils.seeds import generator_of


@dataclasses.dataclass
class Options(Group):
    """Benchmark"""

    dataset: str = option("digits", "digits, or a folder of MNIST or CIFAR-10 with splits train and test", path=True)
    num_samples: int = option(2000, "the most held-out images to damage")
    num_reference: int = option(5000, "the most training images to compare with, at most two thirds of all")
    features: str = option("auto", "feature networks; auto: both for the images' shape", path=True)
    output_dir: str = option("outputs/damage_ladder", "folder for the JSON file and the picture", path=True)


EXAMPLE = "python benchmarks/damage_ladder.py --dataset path/to/mnist"

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of memorised images in the last ladder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Images uint8 (N, C, H, W): `reference` and `memory` from the training split, `held_out` with labels."""

    reference: Tensor
    memory: Tensor
    held_out: RealImages


def load(options: Options) -> Data:
    """Load the images, in an order that does not depend on the options."""
    (train, _), (images, labels) = split(options.dataset)
    order, own = (
        torch.randperm(len(part), generator=generator_of("benchmark", "damage", name))
        for name, part in (("train", train), ("held out", images))
    )
    count = min(options.num_reference, 2 * len(train) // 3)
    rest = order[count : count + max(options.num_samples, options.num_reference)]
    return Data(train[order[:count]], train[rest], RealImages(images[own], labels[own]))


def memorised(data: Data, count: int, share: float) -> Tensor:
    """Return held-out images, of which a share is replaced by images of `data.memory`."""
    number = round(share * count)
    return torch.cat([data.memory[:number], data.held_out.images[number:count]])


def climb(data: Data, networks: list[FeatureNetwork], count: int) -> dict[str, Any]:
    """Return the floors {label: distance}, and for each ladder {label or measure: values}: distances over it."""
    clean = data.held_out.images[:count]
    real = [network.describe(data.reference).features for network in networks]
    memory = [network.describe(data.memory).features for network in networks]
    whole = [network.describe(clean).features for network in networks]
    floors = [frechet_distance(*pair) for pair in zip(real, whole, strict=True)]
    ladders = (*LADDERS, Ladder("memorised", "share of training images", SHARES, lambda *_: clean))
    result: dict[str, Any] = {}
    for ladder in ladders:
        last = ladder.name == "memorised"
        rungs = [memorised(data, count, s) for s in SHARES] if last else ladder.rungs(data.held_out, count)
        lines: dict[str, list[float]] = {network.label: [] for network in networks}
        for rung in rungs:
            for number, network in enumerate(networks):
                fake = network.describe(rung).features
                lines[network.label].append(frechet_distance(real[number], fake) / floors[number])
                if ladder.name in ("copies", "memorised"):
                    lines.setdefault(f"coverage, {network.name}", []).append(
                        prdc(real[number][:count], fake[: len(real[number])])["coverage"]
                    )
                    nearer = memorisation(fake, memory[number], whole[number])["nearer"]
                    lines.setdefault(f"nearer to training images, {network.name}", []).append(nearer)
        lines["geometric mean"] = [geometric_mean(v) for v in zip(*(lines[n.label] for n in networks), strict=True)]
        result[ladder.name] = lines
    return {"floors": dict(zip((n.label for n in networks), floors, strict=True)), "ladders": result}


def rises(values: list[float]) -> bool:
    """Return whether distances over the floor rise with every step, the first one from the floor."""
    return all(low < high for low, high in zip([1.0, *values], values, strict=False))


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table, a line for each ladder and measure."""
    lines = ["| damage | measure | " + " | ".join("12345") + " | rises |", "|---|---" + "|---" * 6 + "|"]
    for name, measures in result["ladders"].items():
        for measure, values in measures.items():
            distance = measure in result["floors"] or measure == "geometric mean"
            cells = " | ".join(f"{value:.3g}" for value in values)
            lines.append(f"| {name} | {measure} | {cells} | {('yes' if rises(values) else 'no') if distance else ''} |")
    return "\n".join(lines)


def picture(data: Data, result: dict[str, Any], path: Path) -> None:
    """Draw the distances over the strengths, a panel for each ladder, below an image at each strength."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(12, 7.6), layout="constrained")
    panels = figure.subfigures(2, 3)
    for panel, ladder in zip(panels.flat, LADDERS, strict=True):
        pictures, axes = panel.subplots(2, 1, height_ratios=(1, 2.6))
        pictures.imshow(_strip(data, ladder), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        pictures.axis("off")
        pictures.set_title(f"{ladder.name} ({ladder.unit})", fontsize=10)
        for label, colour in zip((*result["floors"], "geometric mean"), ("C0", "C1", "black"), strict=False):
            values = [1.0, *result["ladders"][ladder.name][label]]
            axes.plot(values, "o-", ms=4, color=colour, label=label)
        axes.set_yscale("log")
        axes.set_xticks(range(6), ["none", *(f"{strength:g}" for strength in ladder.strengths)])
        axes.grid(alpha=0.3)
        axes.set_ylabel("distance / floor", fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _strip(data: Data, ladder: Ladder) -> Any:
    """Return images side by side (H, W) or (H, W, 3): one as it is and at each strength, or what is left of a set."""
    few = RealImages(data.held_out.images[:200], data.held_out.labels[:200])
    rungs = [few.images, *ladder.rungs(few, len(few.images))]
    sets = ladder.name in ("dropped classes", "copies")
    tiles = [_montage(rung) if sets else rung[0].repeat_interleave(2, 1).repeat_interleave(2, 2) for rung in rungs]
    strip = torch.cat([torch.nn.functional.pad(tile, (1, 1, 1, 1), value=255) for tile in tiles], 2)
    return strip.permute(1, 2, 0).squeeze(-1).numpy()


def _montage(images: Tensor) -> Tensor:
    """Return four images at random places of (N, C, H, W) as one (C, 2 H, 2 W)."""
    rows = torch.randint(len(images), (4,), generator=generator_of("benchmark", "damage", "montage"))
    first, second, third, fourth = images[rows]
    return torch.cat([torch.cat([first, second], 2), torch.cat([third, fourth], 2)], 1)


def main() -> None:
    """Measure all ladders; print and write the table and the picture."""
    command = parser("damage_ladder.py", __doc__.splitlines()[0], EXAMPLE, Options, config=False)
    (options,) = parse(command, None, Options)
    data = load(options)
    networks = choose_features(options.features, data.reference.shape[1], tuple(data.reference.shape[2:]))
    count, output = min(options.num_samples, len(data.held_out.images)), Path(options.output_dir)
    result = {"samples": count, "reference": len(data.reference), **climb(data, networks, count)}
    picture(data, result, output / "damage_ladder.png")
    (output / "damage_ladder.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{count:,} held-out images against {len(data.reference):,} training images; floors {result['floors']}\n")
    print(f"{table(result)}\n\nWrote {output}/damage_ladder.json and damage_ladder.png")


if __name__ == "__main__":
    main()
