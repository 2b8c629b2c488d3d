"""Bits per dimension of normalizing flows after equal time on one core, with Glow of normflows as a peer.

    python benchmarks/flow_likelihood.py --dataset path/to/mnist --minutes 4

Sides, each trained for as long, in one thread, on the same images, whose noise is uniform in the bins of the levels:

- transformer: the recipe training/configs/mnist_flow.yaml.
- glow, glow_mixture: the same options with --model glow, its affine maps or mixtures of logistic distributions, and a
  learning rate of 0.001.
- normflows: its Glow as its example trains it; normflows_tuned: with what somebody sets who knows the loop; in float32.
  See benchmarks/peer_glow.py.

Bits per dimension are those of held-out images, with one draw of the noise, the same for all sides. As many samples are
compared with these images by the Frechet distances of each feature network; those with numbers that are not finite are
counted and left out. Prints a table and writes flow_likelihood.json. Finished sides are not trained
again: an interrupted run goes on, also with other --sides.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import DataArgs, option, parse, parser

OURS = {
    "transformer": (),
    "glow": ("--model", "glow", "--learning_rate", "0.001"),
    "glow_mixture": ("--model", "glow", "--learning_rate", "0.001", "--elementwise", "logistic_mixture"),
}
"""Options of hfgen's sides, besides the recipe mnist_flow."""

PEERS: dict[str, dict[str, Any]] = {"normflows": {}, "normflows_tuned": {"tuned": True}}
"""What differs from the defaults of `GlowSettings`."""


@dataclasses.dataclass
class Options:
    """Benchmark"""

    minutes: float = option(4.0, "training time of each side")
    sides: str = option("transformer,glow,glow_mixture,normflows,normflows_tuned", "sides, separated by commas")
    num_images: int = option(2000, "held-out images, and samples")
    features: str = option("auto", "feature networks, separated by commas")
    seed: int = option(0, "of the training")
    output_dir: str = option("outputs/flow_likelihood", "folder for the JSON file")


def train_ours(name: str, options: Options, data: Any) -> tuple[Any, float, int]:
    """Train a side of hfgen; return the averaged network, the seconds and the number of images."""
    from race_sides import our_training

    from hfgen.families.flow.options import GROUPS
    from hfgen.families.flow.recipe import FlowRecipe

    command = parser("hfgen train flow", "", "", *GROUPS)
    words = ["--config", "mnist_flow", *OURS[name], "--sample_steps", "0", "--checkpointing_steps", "0"]
    words += ["--max_train_steps", "100000", "--max_train_seconds", str(60 * options.minutes)]
    data_args, network_args, objective_args, _, _, args = parse(command, [*words, "--seed", str(options.seed)], *GROUPS)
    recipe = FlowRecipe(data_args, network_args, objective_args, args)
    network = recipe.network(data, None)
    result = our_training(network, recipe.objective(network, None), data, args)
    return result.networks["flow"].eval(), result.seconds, result.items_seen


def train_peer(name: str, options: Options, data: Any) -> tuple[Any, float, int]:
    """Train a side of normflows; return what `peer_glow.train` does."""
    import peer_glow

    return peer_glow.train(peer_glow.GlowSettings(**PEERS[name]), data, 60 * options.minutes, options.seed)


def density_of(network: Any) -> Callable[[Any], Any]:
    """Return the function from images (B, C, H, W) to their log-densities (B,)."""
    from hfgen.distributions.densities import flow_log_prob

    return network.log_prob if hasattr(network, "log_prob") else lambda x: flow_log_prob(network(x))


def samples_of(network: Any, count: int) -> Any:
    """Return samples (count, C, H, W) in batches of 250."""
    import torch

    def draw(index: int) -> Any:
        if hasattr(network, "sample"):
            return network.sample(250, seed=index)
        shape = (250, *network.sample_shape)
        with torch.no_grad():
            return network.inverse(torch.randn(shape, generator=torch.Generator().manual_seed(index)))

    return torch.cat([draw(index) for index in range(-(-count // 250))])[:count]


def measure(network: Any, options: Options, test: Any, networks: list[Any]) -> dict[str, Any]:
    """Measure bits per dimension with their standard error, and the Frechet distances of samples."""
    import torch

    from hfgen.distributions.densities import dequantised, level_bits
    from hfgen.evaluation.reference import reference_rows
    from hfgen.metrics.distances import frechet_distance
    from hfgen.utils.pixels import from_levels
    from hfgen.utils.seeds import generator_of

    x = from_levels(test.images[reference_rows(test, options.num_images)])
    noise, density = torch.rand(x.shape, generator=generator_of("dequantisation", 0)), density_of(network)
    with torch.no_grad():
        log_prob = torch.cat([density(part) for part in dequantised(x, noise).split(100)]).double()
    bits = level_bits(log_prob, x[0].numel())
    start = time.perf_counter()
    samples = samples_of(network, options.num_images)
    speed = len(samples) / (time.perf_counter() - start)
    finite = samples.flatten(1).isfinite().all(1)
    images = ((samples[finite].clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1  # as 8-bit images
    distances = {}
    for each in networks:
        real, fake = (torch.cat([each(part) for part in whole.split(250)]) for whole in (x, images))
        distances[each.label] = frechet_distance(real, fake)
    facts = {"bits_per_dim": float(bits.mean()), "standard_error": float(bits.std() / len(bits) ** 0.5)}
    return {**facts, "not_finite": int((~finite).sum()), "samples_per_second": speed, "distances": distances}


def side(name: str, options: Options, data: Any, judge: tuple[Any, list[Any]]) -> dict[str, Any]:
    """Train and measure a side."""
    train = train_ours if name in OURS else train_peer
    network, seconds, images = train(name, options, data)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    facts = {"seconds": seconds, "images": images, "parameters": parameters}
    return {**facts, **measure(network, options, *judge)}


def report(table: dict[str, dict[str, Any]]) -> None:
    """Print a row for each side, and by how much hfgen's sides are below the best one of the peer."""
    labels = list(next(iter(table.values()))["distances"])
    columns = ["side", "parameters", "seconds", "images", "bits per dimension", *labels, "not finite", "samples/s"]
    print("| " + " | ".join(columns) + " |")
    for name, row in table.items():
        distances = " | ".join(f"{row['distances'][label]:.1f}" for label in labels)
        bits = f"{row['bits_per_dim']:.3f} ± {row['standard_error']:.3f}"
        facts = f"{row['parameters']:,} | {row['seconds']:.0f} | {row['images']:,} | {bits} | {distances}"
        print(f"| {name} | {facts} | {row['not_finite']} | {row['samples_per_second']:.0f} |")
    peers = [row["bits_per_dim"] for name, row in table.items() if name in PEERS]
    for name in (name for name in table if name in OURS and peers):
        print(f"{name}: {min(peers) - table[name]['bits_per_dim']:+.3f} bits below the best of normflows")


def check(options: Options) -> None:
    """Refuse what would fail after minutes.

    Raises:
        ValueError: an unknown side, or a peer that is not installed.
    """
    names = options.sides.split(",")
    if unknown := [name for name in names if name not in (*OURS, *PEERS)]:
        raise ValueError(f"--sides {', '.join(unknown)} not known. Choose from {', '.join((*OURS, *PEERS))}.")
    if any(name in PEERS for name in names):
        import peer_glow

        peer_glow.PeerGlow(peer_glow.GlowSettings(blocks=1, hidden=1), (1, 4, 4))


def main() -> None:
    """Train and measure all sides; print and write the table."""
    example = "python benchmarks/flow_likelihood.py --dataset path/to/mnist --minutes 4"
    command = parser("flow_likelihood.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)
    check(options)

    import hfgen
    from hfgen.metrics.features import choose_features

    data = hfgen.load_images(data_args)
    test = hfgen.load_images(dataclasses.replace(data_args, dataset_split="test"))
    judge = test, choose_features(options.features, test.channels, test.size)
    settings = {key: getattr(options, key) for key in ("minutes", "num_images", "seed")}
    results, table = Measured(Path(options.output_dir) / "flow_likelihood.json", settings), {}
    for name in options.sides.split(","):
        table[name] = results.get(name, lambda name=name: side(name, options, data, judge))
        print(name, json.dumps(table[name]), flush=True)
    report(table)
    print(f"Wrote {results.file}")


if __name__ == "__main__":
    main()
