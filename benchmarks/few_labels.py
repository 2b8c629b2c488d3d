"""Accuracy of classifiers from few labels: a Triple-GAN against supervised training on the same labelled images.

    python benchmarks/few_labels.py path/to/mnist --output_dir outputs/few_labels

For each seed, which also chooses the labelled images, three classifiers of the same network are trained by their front
doors and measured on all test images: on the labelled images alone, on the same with random shifts, and in the game of
a Triple-GAN, which shifts images, too. Finished trainings are not repeated.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import argument, option, parse, parser

SHARED = ("--report_to", "none", "--sample_steps", "0", "--checkpointing_steps", "0", "--train_batch_size", "64")
ROWS = {
    "supervised": ("classifier", ["--no_noise", "--model_size", "xs"]),
    "supervised, shifts": ("classifier", ["--no_noise", "--model_size", "xs", "--augment", "translation"]),
    "Triple-GAN": (
        "triple_gan",
        [
            *("--model_size", "xs", "--health_steps", "0", "--num_likelihood", "100", "--mixed_precision", "bf16"),
            *("--r1", "0.1", "--entropy", "0.1", "--pseudo_after", "300"),
        ],
    ),
}
"""Name -> family and options."""


@dataclasses.dataclass
class Options:
    """Benchmark"""

    dataset: str = argument("data set with classes and a test split, such as a folder of MNIST's parquet files")
    train_split: str = option("train", "split to train on")
    test_split: str = option("test", "split to measure")
    num_labels: int = option(100, "labels that are kept")
    num_seeds: int = option(3, "seeds, from 0 on")
    supervised_steps: int = option(500, "steps of supervised training")
    game_steps: int = option(1000, "steps of the Triple-GAN")
    output_dir: str = option("outputs/few_labels", "folder for the models and the JSON file")


def trained(options: Options, name: str, seed: int) -> Any:
    """Return a trained pipeline; train it if its folder has none."""
    import hfgen

    (family, words), folder = ROWS[name], Path(options.output_dir) / f"{name.replace(', ', '_')}_{seed}"
    if not (folder / "model_index.json").is_file():
        steps = options.supervised_steps if family == "classifier" else options.game_steps
        data = ["--dataset", options.dataset, "--dataset_split", options.train_split]
        data += ["--num_labels", str(options.num_labels), "--label_seed", str(seed), "--seed", str(seed)]
        data += [] if family == "classifier" else ["--held_out_split", options.test_split]
        door = importlib.import_module(f"hfgen.training.train_{family}")
        door.main([*data, *words, *SHARED, "--max_train_steps", str(steps), "--output_dir", str(folder)])
    pipeline = hfgen.HFGenPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def accuracy(pipeline: Any, images: Any, labels: Any) -> float:
    """Return the share of images (N, C, H, W) whose most probable class is their label."""
    import torch

    classify = pipeline.classify if hasattr(pipeline, "classify") else lambda x: pipeline(x).probabilities
    guesses = torch.cat([classify(part).argmax(1).cpu() for part in images.split(500)])
    return float((guesses == labels).double().mean())


def main(argv: list[str] | None = None) -> None:
    """Train, measure, and print the table."""
    command = parser("few_labels.py", __doc__.splitlines()[0], "few_labels.py path/to/mnist", Options, config=False)
    (options,) = parse(command, argv, Options)

    import hfgen
    from hfgen.options import DataArgs
    from hfgen.utils.pixels import from_levels

    measured = Measured(Path(options.output_dir) / "accuracies.json", dataclasses.asdict(options))
    test = hfgen.load_images(DataArgs(dataset=options.dataset, dataset_split=options.test_split))
    images = from_levels(test.images)
    seeds = range(options.num_seeds)
    print(f"| training | {' | '.join(f'seed {seed}' for seed in seeds)} |\n|---|{'---|' * len(seeds)}")
    for name in ROWS:

        def measure(seed: int, name: str = name) -> float:
            return accuracy(trained(options, name, seed), images, test.labels)

        found = [measured.get(f"{name} {seed}", lambda seed=seed: measure(seed)) for seed in seeds]
        print(f"| {name} | {' | '.join(f'{value:.2%}' for value in found)} |", flush=True)


if __name__ == "__main__":
    main()
