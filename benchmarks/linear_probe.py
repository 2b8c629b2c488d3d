"""Accuracy of linear probes: which representations of images know their classes, after the same seconds of training.

    python benchmarks/linear_probe.py path/to/mnist --output_dir outputs/linear_probe

Each model is trained without classes by its front door for the same seconds. A linear classifier is then fitted to its
features of training images, see `hfgen.linear_probe`, and measured on test images: of the pixels themselves, of a VAE's
latents (the mean of q(z | x)), of masked autoencoders with either target and of one that was not trained, and of the
middle layer of a denoiser at several times. Finished rows are not measured again.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import argument, option, parse, parser

SHARED = ("--report_to", "none", "--sample_steps", "0", "--checkpointing_steps", "0", "--lr_warmup_steps", "100")
MODELS = {
    "mae": ("mae", ["--model_size", "xs", "--learning_rate", "2e-3"]),
    "mae_normalised": ("mae", ["--model_size", "xs", "--learning_rate", "2e-3", "--normalised_targets"]),
    "vae": ("vae", ["--model", "conv", "--model_size", "s", "--likelihood", "gaussian", "--likelihood_sigma", "0.2"]),
    "denoiser": ("diffusion", ["--model_size", "xs"]),
}
"""Name -> family and options of a model."""


@dataclasses.dataclass
class Options:
    """Benchmark"""

    dataset: str = argument("data set with classes: a folder of MNIST's parquet files, or 'digits'")
    train_split: str = option("train", "split to train on")
    test_split: str = option("test", "split to measure")
    seconds: float = option(120.0, "seconds of training of each model")
    max_train_steps: int = option(0, "steps of training instead; 0: by seconds")
    num_train: int = option(10_000, "training images that probes are fitted to, at most")
    num_test: int = option(10_000, "test images, at most")
    times: str = option("0.01,0.1,0.3,0.5", "times of the denoiser's features, separated by commas")
    seed: int = option(0, "of the trainings, and of the noise in the denoiser's images")
    output_dir: str = option("outputs/linear_probe", "folder for the models and the JSON file")


def trained(options: Options, name: str) -> Any:
    """Return a trained pipeline; train it if its folder has none."""
    import importlib

    import hfgen

    (family, words), folder = MODELS[name], Path(options.output_dir) / name
    if not (folder / "model_index.json").is_file():
        length = ["--max_train_seconds", str(options.seconds)]
        if options.max_train_steps:
            length = ["--max_train_steps", str(options.max_train_steps)]
        data = ["--dataset", options.dataset, "--dataset_split", options.train_split, "--seed", str(options.seed)]
        held_out = [] if family == "diffusion" else ["--held_out_split", options.test_split, "--num_likelihood", "100"]
        few = ["--likelihood_samples", "2"] if family == "vae" else []
        door = importlib.import_module(f"hfgen.training.train_{family}")
        door.main([*data, *held_out, *few, *words, *SHARED, *length, "--output_dir", str(folder)])
    pipeline = hfgen.HFGenPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def untrained(shape: tuple[int, int, int]) -> Any:
    """Return a masked autoencoder as a training begins."""
    import hfgen
    from hfgen.utils.seeds import seed_initialisation

    seed_initialisation(0)
    channels, height, width = shape
    pipeline = hfgen.MAEPipeline(hfgen.build_masked_autoencoder("xs", (height, width), channels))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def rows(options: Options, shape: tuple[int, int, int]) -> dict[str, Callable[[Any], Any]]:
    """Return functions from images to features, by the name of their row."""
    import hfgen

    found = {
        "pixels": lambda images: images,
        "VAE, mean of the latent": lambda images: trained(options, "vae").encode(images),
        "masked autoencoder": lambda images: trained(options, "mae").encode(images),
        "masked autoencoder, normalised targets": lambda images: trained(options, "mae_normalised").encode(images),
        "masked autoencoder, untrained": lambda images: untrained(shape).encode(images),
    }
    for time in map(float, options.times.split(",")):

        def features(images: Any, time: float = time) -> Any:
            return hfgen.hidden_features(trained(options, "denoiser"), images, time=time, seed=options.seed)

        found[f"denoiser, middle, t = {time:g}"] = features
    return found


def main(argv: list[str] | None = None) -> None:
    """Train, probe, and print the table."""
    command = parser("linear_probe.py", __doc__.splitlines()[0], "linear_probe.py path/to/mnist", Options, config=False)
    (options,) = parse(command, argv, Options)

    import hfgen
    from hfgen.data.summary import sample
    from hfgen.options import DataArgs
    from hfgen.utils.pixels import from_levels

    measured = Measured(Path(options.output_dir) / "probes.json", dataclasses.asdict(options))
    train, test = (
        sample(hfgen.load_images(DataArgs(dataset=options.dataset, dataset_split=split)), count)
        for split, count in ((options.train_split, options.num_train), (options.test_split, options.num_test))
    )
    images = from_levels(train[0]), from_levels(test[0])

    def probe(features: Callable[[Any], Any]) -> dict[str, float]:
        z, test_z = (features(x).flatten(1).cpu() for x in images)
        result = hfgen.linear_probe(z, train[1], test_z, test[1])
        return {"numbers": z.shape[1], "accuracy": round(result.accuracy, 4), "strength": result.strength}

    print("| representation | numbers | accuracy | C |\n|---|---|---|---|")
    for name, features in rows(options, tuple(images[0].shape[1:])).items():
        found = measured.get(name, lambda features=features: probe(features))
        print(f"| {name} | {found['numbers']} | {found['accuracy']:.2%} | {found['strength']:g} |", flush=True)


if __name__ == "__main__":
    main()
