"""A class of MNIST learnt from a few images by a model that has never seen it: adapters of several ranks, with and
without prior preservation, beside training of all weights, in a table of quality and size.

    python benchmarks/lora_table.py path/to/mnist --output_dir outputs/lora_table

The base is trained by the recipe `mnist` on all digits but one. Each cell then learns that digit for the same seconds,
from the same images. The feature network of MNIST says which digit a sample is, and measures Frechet distances to the
test images of the new class and of the old ones. "off" is the base with the adapter turned off. Finished cells are not
measured again.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import argument, option, parse, parser

ATTENTION = ("--learning_rate", "5e-3")
CONVOLUTIONS = ("--learning_rate", "2e-3", "--lora_targets", "attention,convolutions")
CELLS = {
    "rank 2": ["--lora_rank", "2", *ATTENTION],
    "rank 8": ["--lora_rank", "8", *ATTENTION],
    "rank 32": ["--lora_rank", "32", *ATTENTION],
    "rank 8, prior": ["--lora_rank", "8", *ATTENTION, "--prior_weight", "1"],
    "rank 2, convolutions": ["--lora_rank", "2", *CONVOLUTIONS],
    "rank 8, convolutions": ["--lora_rank", "8", *CONVOLUTIONS],
    "rank 8, convolutions, prior": ["--lora_rank", "8", *CONVOLUTIONS, "--prior_weight", "1"],
    "rank 32, convolutions, prior": ["--lora_rank", "32", *CONVOLUTIONS, "--prior_weight", "1"],
    "all weights, prior": ["--learning_rate", "1e-3", "--prior_weight", "1"],
}
"""Options of the cells."""


@dataclasses.dataclass
class Options:
    """Benchmark"""

    mnist: str = argument("folder of MNIST's parquet files")
    held_out: int = option(9, "the digit that the base never sees")
    images: int = option(50, "images of it to learn from")
    seconds: float = option(60.0, "seconds of training of each cell")
    train_batch_size: int = option(32, "of the cells")
    cells: str = option(";".join(CELLS), "cells, separated by semicolons")
    seeds: str = option("0", "seeds of the cells, separated by commas")
    base_steps: int = option(1500, "steps of the base")
    num_samples: int = option(500, "samples of the new class, and of the old ones together")
    output_dir: str = option("outputs/lora_table", "folder for data, models and the JSON file")


def write_data(options: Options, folder: Path) -> None:
    """Write the training images of all other digits, and the first ones of the held-out digit, as parquet files."""
    from datasets import Dataset, Value

    files = sorted(map(str, Path(options.mnist).glob("train*.parquet")))
    rows = Dataset.from_parquet(files, cache_dir=str(folder / "cache")).cast_column("label", Value("int64"))
    labels = rows["label"]
    old = [row for row, label in enumerate(labels) if label != options.held_out]
    new = [row for row, label in enumerate(labels) if label == options.held_out][: options.images]
    for name, picked in (("old", old), ("new", new)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows.select(picked).to_parquet(str(folder / name / "train-00000-of-00001.parquet"))


def train(*words: object) -> None:
    """Run the front door of denoisers."""
    from hfgen.training import train_diffusion

    quiet = ["--report_to", "none", "--sample_steps", "0", "--checkpointing_steps", "0"]
    train_diffusion.main([*map(str, words), *quiet])


def numbers(pipeline: Any, new: str, judge: Any, real: dict[str, Any], count: int) -> dict[str, float]:
    """Return agreement and Frechet distance of samples of the new class and of the old ones."""
    import torch

    from hfgen.metrics.distances import frechet_distance
    from hfgen.utils.pixels import from_levels, to_levels
    from hfgen.utils.seeds import sample_generators

    names, found = list(pipeline.config.label_names), {}
    for kind, wanted in (("new", [new]), ("old", [name for name in names if name != new])):
        if not set(wanted) <= set(names):
            continue
        labels, images = [names.index(wanted[i % len(wanted)]) for i in range(count)], []
        for first in range(0, count, 100):
            part = labels[first : first + 100]
            seeds = sample_generators(0, range(first, first + len(part)))
            options = {"num_inference_steps": 10, "output_type": "latent"}
            images.append(from_levels(to_levels(pipeline(class_labels=part, generator=seeds, **options).images)))
        logits, features = judge.logits_and_features(torch.cat(images))
        digits = torch.tensor([int(names[label]) for label in labels])
        found[f"{kind} agreement"] = round(float((logits.argmax(1) == digits).double().mean()), 4)
        found[f"{kind} Frechet"] = round(float(frechet_distance(real[kind], features)), 2)
    return found


def cell(options: Options, name: str, seed: int, folder: Path, judged: tuple[Any, dict[str, Any]]) -> dict:
    """Train a cell and measure it."""
    import torch

    import hfgen

    base, new = folder / "base", str(options.held_out)
    output = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
    data = ["--dataset", folder / "new", "--label_column", "none", "--new_class", new]
    learn = ["--train_batch_size", options.train_batch_size, "--seed", seed]
    time = ["--max_train_seconds", options.seconds, "--lr_warmup_steps", "20", "--optimizer", "adamw"]
    time += ["--mixed_precision", "bf16"]
    if not (output / "metrics.json").is_file():
        train(*data, "--init_from", base, *CELLS[name], *learn, *time, "--output_dir", output)
    adapter = output / "pytorch_lora_weights.safetensors"
    pipeline = hfgen.HFGenPipeline.from_pretrained(str(base if adapter.is_file() else output))
    pipeline.set_progress_bar_config(disable=True)
    if adapter.is_file():
        pipeline.load_lora_weights(str(output))
    weights = adapter if adapter.is_file() else output / "denoiser" / "diffusion_pytorch_model.safetensors"
    with torch.no_grad():
        found = numbers(pipeline, new, *judged, options.num_samples)
    return {"KiB": round(os.path.getsize(weights) / 1024, 1), **found}


def main() -> None:
    """Train the base and the cells, and print the table."""
    example = "python benchmarks/lora_table.py path/to/mnist"
    command = parser("lora_table.py", __doc__.splitlines()[0], example, Options, config=False)
    (options,) = parse(command, None, Options)
    folder = Path(options.output_dir)

    import hfgen
    from hfgen.metrics.features import choose_features
    from hfgen.options import DataArgs
    from hfgen.utils.pixels import from_levels

    if not (folder / "new").is_dir():
        write_data(options, folder)
    if not (folder / "base" / "model_index.json").is_file():
        steps = ["--max_train_steps", options.base_steps, "--output_dir", folder / "base"]
        train("--config", "mnist", "--dataset", folder / "old", "--class_conditional", *steps)
    test = hfgen.load_images(DataArgs(dataset=options.mnist, dataset_split="test"))
    judge = next(each for each in choose_features("auto", 1, (28, 28)) if each.scores)
    is_new = test.labels == options.held_out
    real = {"new": judge(from_levels(test.images[is_new])), "old": judge(from_levels(test.images[~is_new]))}
    settings = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("cells", "seeds")}
    measured = Measured(folder / "lora_table.json", settings)

    def base_numbers() -> dict[str, float]:
        base = hfgen.HFGenPipeline.from_pretrained(str(folder / "base"))
        base.set_progress_bar_config(disable=True)
        return numbers(base, str(options.held_out), judge, real, options.num_samples)

    print(f"{'off':34} {measured.get('off', base_numbers)}", flush=True)
    for seed in map(int, options.seeds.split(",")):
        for name in options.cells.split(";"):

            def measure(name: str = name, seed: int = seed) -> dict[str, float]:
                return cell(options, name, seed, folder, (judge, real))

            print(f"{f'{name}, seed {seed}':34} {measured.get(f'{name}/{seed}', measure)}", flush=True)


if __name__ == "__main__":
    main()
