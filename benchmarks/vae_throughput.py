"""Training speed of a VAE: the loop of hfgen beside the trainer of pythae, with the same network, images and epochs.

    python -m venv outputs/pythae && outputs/pythae/bin/pip install torch pythae safetensors
    python benchmarks/vae_throughput.py --peer_python outputs/pythae/bin/python --dataset path/to/mnist

The network is 784-400-20 with a mirrored decoder, for MNIST that is binarised once. pythae runs in an environment of
its own (benchmarks/pythae_loop.py) with Adam at a constant 1e-3. hfgen runs the recipe training/configs/mnist_vae.yaml
in float32, in bfloat16, and in bfloat16 with twice the batch size and learning rate. Each measurement is a process of
its own, and the sides take turns. The rate is that of the median epoch. One function computes the test ELBO of all
weights.
"""

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hfgen.options import DataArgs, TrainArgs, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    peer_python: str | None = option(None, "interpreter of an environment with torch, pythae and safetensors")
    epochs: int = option(10, "passes over the training images in each round")
    batch_size: int = option(128, "images per step")
    learning_rate: float = option(2.5e-3, "peak learning rate of hfgen, which then falls to 0, for this batch size")
    rounds: int = option(2, "number of turns of each side")
    output_dir: str = option("outputs/vae_throughput", "folder for the JSON file")
    side: str | None = option(None, "measure this side alone, in the folder --work (for the processes)")
    work: str | None = option(None, "folder with the data of all sides")


SIDES = {
    "pythae": None,
    "hfgen, float32": ("no", 1),
    "hfgen, bfloat16": ("bf16", 1),
    "hfgen, bfloat16, batch x 2": ("bf16", 2),
}
"""The sides; those of hfgen with precision, and the factor of batch size and learning rate."""


def binary(data_args: DataArgs) -> Any:
    """Return the images as uint8 zeros and ones (N, 1, 28, 28), binarised once by a fixed seed."""
    import torch

    import hfgen
    from hfgen.utils.seeds import generator_of

    images = hfgen.load_images(data_args).images
    uniform = torch.rand(images.shape, generator=generator_of("benchmark", 0, "binary"))
    return (uniform < images / 255).to(torch.uint8)


def ours(options: Options, folder: Path, precision: str, times: int) -> dict[str, Any]:
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
    batch_size = times * options.batch_size
    per_epoch = -(-len(data) // batch_size)
    args = TrainArgs(
        max_train_steps=options.epochs * per_epoch,
        train_batch_size=batch_size,
        learning_rate=times * options.learning_rate,
    )
    args.logging_steps, args.checkpointing_steps, args.sample_steps = per_epoch, 0, 0
    args.mixed_precision = precision
    with tempfile.TemporaryDirectory() as output:
        args.output_dir = output
        objective = hfgen.ELBO(build_likelihood("bernoulli"), network.latent_shape)
        batches = Batches(data, batch_size, seed=0)
        result = train({"autoencoder": network}, objective, batches, args, Accelerator(mixed_precision=precision))
        rows = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    ends = [0.0, *(row["seconds"] for row in rows)]
    weights = {
        key: value.contiguous() for key, value in result.networks["autoencoder"].autoencoder.state_dict().items()
    }
    save_file(weights, folder / "weights.safetensors")
    return {"seconds": [end - begin for begin, end in itertools.pairwise(ends)]}


def theirs(options: Options, folder: Path) -> dict[str, Any]:
    """Train with pythae, and return the seconds of each epoch."""
    words = [options.peer_python, str(Path(__file__).with_name("pythae_loop.py")), str(folder / "train.safetensors")]
    words += [str(folder / "weights.safetensors"), str(folder / "report.json")]
    words += ["--epochs", str(options.epochs), "--batch_size", str(options.batch_size)]
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


def measure(options: Options, folder: Path, side: str) -> dict[str, Any]:
    """Measure one side in a process of its own: images per second of its median epoch, and its test ELBO."""
    words = [sys.executable, __file__, "--side", side, "--work", str(folder), "--epochs", str(options.epochs)]
    words += ["--batch_size", str(options.batch_size), "--peer_python", str(options.peer_python)]
    words += ["--learning_rate", str(options.learning_rate)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {side}: {done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {"images_per_second": result["images"] / statistics.median(result["seconds"]), "elbo": elbo(folder)}


def main() -> None:
    """Measure the sides in turns; print and write vae_throughput.json."""
    example = "python benchmarks/vae_throughput.py --peer_python outputs/pythae/bin/python --dataset path/to/mnist"
    command = parser("vae_throughput.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)

    from safetensors.torch import load_file, save_file

    if options.side:
        folder = Path(options.work)
        setting = SIDES[options.side]
        result = ours(options, folder, *setting) if setting else theirs(options, folder)
        print("\n" + json.dumps({**result, "images": len(load_file(folder / "train.safetensors")["images"])}))
        return
    if options.peer_python is None:
        raise SystemExit(
            "error: give --peer_python, an interpreter with pythae; the top of this file shows how to make one."
        )
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as work:
        for split in ("train", "test"):
            images = binary(dataclasses.replace(data_args, dataset_split=split))
            save_file({"images": images}, Path(work) / f"{split}.safetensors")
        for _ in range(options.rounds):
            for side in SIDES:
                rounds[side].append(measure(options, Path(work), side))
                last = rounds[side][-1]
                print(
                    f"{side:28s} {last['images_per_second']:9,.0f} images/s, test ELBO {last['elbo']:.2f}", flush=True
                )
    table = {side: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for side, runs in rounds.items()}
    base = table["pythae"]
    print(f"\n{'':28s}{'images/s':>10s}{'ratio':>8s}{'test ELBO':>12s}")
    for side, row in table.items():
        ratio = row["images_per_second"] / base["images_per_second"]
        print(f"{side:28s}{row['images_per_second']:10,.0f}{ratio:8.2f}{row['elbo']:12.2f}")
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    result = {"epochs": options.epochs, "batch_size": options.batch_size, "sides": table, "rounds": rounds}
    (folder / "vae_throughput.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nWrote {folder}/vae_throughput.json")


if __name__ == "__main__":
    main()
