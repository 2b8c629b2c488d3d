"""Training speed of a VAE: the loop of hfgen beside the trainer of pythae, with the same network, images and epochs.

    python -m venv outputs/pythae && outputs/pythae/bin/pip install torch pythae safetensors
    python benchmarks/vae_throughput.py --peer_python outputs/pythae/bin/python --dataset path/to/mnist

The network is 784-400-20 with a mirrored decoder, for MNIST that is binarised once. pythae runs in an environment of
its own (benchmarks/pythae_loop.py) with Adam at a constant learning rate: with its defaults (batches of 64, 1e-4), and
with batches of 128 and 256 and the rate of RATES whose test ELBO is best in a run of the same length, which is printed
for each. hfgen runs the recipe training/configs/mnist_vae.yaml with the same batches; its learning rate grows with
them. All sides but pythae's defaults run in float32 and in bfloat16, and each ratio is that to tuned pythae with the
same batch and precision. Each measurement is a process of its own, and the sides take turns. The rate is that of the
median epoch. One function computes the test ELBO of all weights. An interrupted run goes on where it stopped.
"""

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from measured import Measured

from hfgen.options import DataArgs, TrainArgs, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    peer_python: str | None = option(None, "interpreter of an environment with torch, pythae and safetensors")
    epochs: int = option(10, "passes over the training images in each round")
    learning_rate: float = option(2.5e-3, "peak learning rate of hfgen for batches of 128, which then falls to 0")
    rounds: int = option(2, "number of turns of each side")
    output_dir: str = option("outputs/vae_throughput", "folder for the JSON file")
    side: str | None = option(None, "measure this side alone, in the folder --work (for the processes)")
    work: str | None = option(None, "folder with the data of all sides")


BATCHES, PRECISIONS = (128, 256), ("float32", "bf16")

RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
"""Learning rates of Adam that are tried for pythae."""


class Side(NamedTuple):
    """A program with its precision, batch size and learning rate."""

    program: str
    precision: str
    batch_size: int
    rate: float

    @property
    def name(self) -> str:
        """Return all of it as a text."""
        return f"{self.program}, {self.precision}, batches of {self.batch_size}, rate {self.rate:g}"

    @property
    def group(self) -> tuple[str, int]:
        """Return what the sides of a ratio have in common."""
        return self.precision, self.batch_size


PEER_DEFAULTS = Side("pythae", "float32", 64, 1e-4)


def binary(data_args: DataArgs) -> Any:
    """Return the images as uint8 zeros and ones (N, 1, 28, 28), binarised once by a fixed seed."""
    import torch

    import hfgen
    from hfgen.utils.seeds import generator_of

    images = hfgen.load_images(data_args).images
    uniform = torch.rand(images.shape, generator=generator_of("benchmark", 0, "binary"))
    return (uniform < images / 255).to(torch.uint8)


def ours(options: Options, folder: Path, side: Side) -> dict[str, Any]:
    """Train with our loop, save the weights, and return the seconds of each epoch."""
    from accelerate import Accelerator
    from safetensors.torch import load_file, save_file

    import hfgen
    from hfgen.data.batches import Batches
    from hfgen.distributions.likelihoods import build_likelihood
    from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior
    from hfgen.trainer.loop import train
    from hfgen.utils.seeds import seed_initialisation

    data = hfgen.load_images(DataArgs(dataset="digits", max_train_samples=2))
    data.images, data.labels = 255 * load_file(folder / "train.safetensors")["images"], None
    seed_initialisation(0)
    network = AutoencoderWithPrior(hfgen.MLPAutoencoderModel())
    per_epoch, precision = -(-len(data) // side.batch_size), {"float32": "no"}.get(side.precision, side.precision)
    args = TrainArgs(
        max_train_steps=options.epochs * per_epoch,
        train_batch_size=side.batch_size,
        learning_rate=side.rate,
    )
    args.logging_steps, args.checkpointing_steps, args.sample_steps = per_epoch, 0, 0
    args.mixed_precision = precision
    with tempfile.TemporaryDirectory() as output:
        args.output_dir = output
        objective = hfgen.ELBO(build_likelihood("bernoulli"), network.latent_shape)
        batches = Batches(data, side.batch_size, seed=0)
        result = train({"autoencoder": network}, objective, batches, args, Accelerator(mixed_precision=precision))
        rows = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    ends = [0.0, *(row["seconds"] for row in rows)]
    weights = {
        key: value.contiguous() for key, value in result.networks["autoencoder"].autoencoder.state_dict().items()
    }
    save_file(weights, folder / "weights.safetensors")
    return {"seconds": [end - begin for begin, end in itertools.pairwise(ends)]}


def theirs(options: Options, folder: Path, side: Side) -> dict[str, Any]:
    """Train with pythae, and return the seconds of each epoch."""
    words = [options.peer_python, str(Path(__file__).with_name("pythae_loop.py")), str(folder / "train.safetensors")]
    words += [str(folder / "weights.safetensors"), str(folder / "report.json")]
    words += ["--epochs", str(options.epochs), "--batch_size", str(side.batch_size)]
    words += ["--learning_rate", str(side.rate), *(["--bf16"] if side.precision == "bf16" else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: pythae: {done.stderr[-2000:]}")
    return json.loads((folder / "report.json").read_text())


def elbo(folder: Path) -> float:
    """Compute the test ELBO in nats of the weights in the folder, with one sample per image and the exact KL."""
    import torch
    from safetensors.torch import load_file

    import hfgen
    from hfgen.distributions.bounds import kl_to_standard_normal
    from hfgen.distributions.likelihoods import build_likelihood
    from hfgen.utils.seeds import generator_of

    network = hfgen.MLPAutoencoderModel()
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    x = 2 * load_file(folder / "test.safetensors")["images"].float() - 1
    with torch.no_grad():
        posterior = network.encode(x).latent_dist
        decoded = network.decode(posterior.sample(generator_of("benchmark", 0, "latents"))).sample
        kl = kl_to_standard_normal(posterior.mean, posterior.logvar).flatten(1).sum(1)
        return float((build_likelihood("bernoulli").log_prob(decoded, x) - kl).mean())


def measure(options: Options, folder: Path, side: Side) -> dict[str, Any]:
    """Measure one side in a process of its own: images per second of its median epoch, and its test ELBO."""
    words = [sys.executable, __file__, "--side", json.dumps(side), "--work", str(folder)]
    words += ["--epochs", str(options.epochs), "--peer_python", str(options.peer_python)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {side.name}: {done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {"images_per_second": result["images"] / statistics.median(result["seconds"]), "elbo": elbo(folder)}


def measured(options: Options, folder: Path, side: Side, number: int, results: Measured) -> dict[str, Any]:
    """Return the measurement of a side in round `number`, made now if it is missing, and print it."""
    result = results.get(f"{side.name}, round {number}", lambda: measure(options, folder, side))
    print(f"{side.name:52s} {result['images_per_second']:9,.0f} images/s, test ELBO {result['elbo']:.2f}", flush=True)
    return result


def sides(options: Options, folder: Path, results: Measured) -> list[Side]:
    """Return all sides, those of pythae with the best rate of RATES for their precision and batch."""
    chosen = [PEER_DEFAULTS]
    for precision, batch_size in itertools.product(PRECISIONS, BATCHES):
        trials = [Side("pythae", precision, batch_size, rate) for rate in RATES]
        bounds = {side: measured(options, folder, side, 0, results)["elbo"] for side in trials}
        ours = Side("hfgen", precision, batch_size, options.learning_rate * batch_size / 128)
        chosen += [max(bounds, key=bounds.__getitem__), ours]
    return chosen


def main() -> None:
    """Measure the sides in turns; print and write vae_throughput.json."""
    example = "python benchmarks/vae_throughput.py --peer_python outputs/pythae/bin/python --dataset path/to/mnist"
    command = parser("vae_throughput.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)

    from safetensors.torch import load_file, save_file

    if options.side:
        folder, side = Path(options.work), Side(*json.loads(options.side))
        result = (theirs if side.program == "pythae" else ours)(options, folder, side)
        print("\n" + json.dumps({**result, "images": len(load_file(folder / "train.safetensors")["images"])}))
        return
    if options.peer_python is None:
        raise SystemExit(
            "error: give --peer_python, an interpreter with pythae; the top of this file shows how to make one."
        )
    settings = {"epochs": options.epochs, "learning_rate": options.learning_rate}
    results = Measured(Path(options.output_dir) / "vae_throughput.json", settings)
    rounds: dict[Side, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as work:
        for split in ("train", "test"):
            images = binary(dataclasses.replace(data_args, dataset_split=split))
            save_file({"images": images}, Path(work) / f"{split}.safetensors")
        chosen = sides(options, Path(work), results)
        for number in range(1, options.rounds + 1):
            for side in chosen:
                rounds.setdefault(side, []).append(measured(options, Path(work), side, number, results))
    report({side: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for side, runs in rounds.items()})
    print(f"\nWrote {results.file}")


def report(table: dict[Side, dict[str, float]]) -> None:
    """Print the rates with their ratios to pythae in the same precision and with the same batch."""
    base = {side.group: row["images_per_second"] for side, row in table.items() if side.program == "pythae"}
    print(f"\n{'':52s}{'images/s':>10s}{'ratio':>8s}{'test ELBO':>12s}")
    for side, row in table.items():
        ratio = row["images_per_second"] / base[side.group]
        print(f"{side.name:52s}{row['images_per_second']:10,.0f}{ratio:8.2f}{row['elbo']:12.2f}")


if __name__ == "__main__":
    main()
