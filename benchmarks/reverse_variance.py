"""Frechet distances and variational bounds of a denoiser under each variance of the reverse steps.

    python benchmarks/reverse_variance.py outputs/mnist_vp --dataset path/to/mnist --steps 10,25,50,100

Rows: DDPM's fixed_small and fixed_large; analytic and residual, measured as `hfgen calibrate` measures them; npr, sn
and ocm, heads that are trained as it trains them; ddim (eta = 0) without noise, and with the analytic variance. All
samples are drawn from the same noise, bounds are of the same test images with the same noise, and Frechet distances are
those of the feature networks that fit the images, against as many test images. Prints a table after each row and writes
reverse_variance.json; finished rows are not measured again.
"""

import copy
import dataclasses
import time
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import DataArgs, argument, option, parse, parser

HEADS = ("npr", "sn", "ocm")


@dataclasses.dataclass
class Options:
    """Benchmark"""

    pipeline: str = argument("folder of a diffusion model on a path with noise")
    kinds: str = option(
        "fixed_small,fixed_large,analytic,residual,npr,sn,ocm,ddim,analytic_ddim", "rows, separated by commas"
    )
    steps: str = option("10,25,50,100", "numbers of steps, separated by commas")
    sampled_steps: str = option("10,25", "those at which samples are drawn")
    num_samples: int = option(1000, "samples of a Frechet distance, and test images")
    bound_images: int = option(64, "test images of a bound")
    num_images: int = option(5000, "training images that variances are measured on")
    head_steps: int = option(600, "steps of a head's training")
    seed: int = option(0, "of noise and heads")
    output_dir: str = option("outputs/reverse_variance", "folder for the JSON file")


def calibrated(pipeline: Any, kind: str, data: Any, options: Options) -> Any:
    """Return a copy of the pipeline that draws with this kind of variance."""
    from hfgen.commands.calibrate import CalibrateOptions, measure, train_head

    result = copy.deepcopy(pipeline)
    if kind.startswith("fixed") or kind == "ddim":
        options_of = {} if kind == "ddim" else {"variance_type": kind}
        result.use_scheduler("ddim" if kind == "ddim" else "ddpm", **options_of)
        return result
    name = "analytic" if kind == "analytic_ddim" else kind
    settings = CalibrateOptions(options.pipeline, name, seed=options.seed)
    if kind in HEADS:
        train_head(result, data, dataclasses.replace(settings, max_train_steps=options.head_steps))
    else:
        measure(result, data, dataclasses.replace(settings, num_images=options.num_images))
    if kind == "analytic_ddim":
        result.use_scheduler("ddim", optimal_variance=True)
    else:
        result.use_scheduler("ddpm")
    return result


def row_of(pipeline: Any, kind: str, train: Any, test: Any, networks: list, options: Options) -> dict[str, Any]:
    """Measure a kind of variance."""
    from hfgen.console.progress import quiet
    from hfgen.families.few_steps import samples_of
    from hfgen.metrics.distances import frechet_distance
    from hfgen.utils.pixels import from_levels
    from hfgen.utils.seeds import generator_of

    start = time.process_time()
    ready = calibrated(pipeline, kind, train, options)
    row: dict[str, Any] = {"seconds of calibration": round(time.process_time() - start, 1)}
    real, labels = test.images[: options.num_samples], test.labels[: options.num_samples]
    labels = labels.tolist() if pipeline.config.num_classes is not None else None
    with quiet(ready):
        for steps in map(int, options.sampled_steps.split(",")):
            drawn = list(samples_of(ready, len(real), labels, 100, num_inference_steps=steps))
            for network in networks:
                truth = network.extract(from_levels(part) for part in real.split(250))
                distance = frechet_distance(truth, network.extract(drawn))
                row[f"{network.metric_name()}, {steps} steps"] = round(distance, 3)
        if "ddim" in kind:
            return row
        images = from_levels(test.images[: options.bound_images])
        classes = None if labels is None else labels[: options.bound_images]
        for steps in map(int, options.steps.split(",")):
            noise = generator_of("benchmark", options.seed, "bound", steps)
            bits = ready.variational_bound(images, classes, steps, noise)
            row[f"bits/dim, {steps} steps"] = round(float(bits.mean()), 4)
    return row


def main() -> None:
    """Measure each kind of variance, and print the table."""
    example = "python benchmarks/reverse_variance.py outputs/mnist_vp --dataset path/to/mnist"
    command = parser("reverse_variance.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    parsed = parse(command, None, Options, DataArgs)
    options, data_args = parsed

    import hfgen
    from hfgen.metrics.features import choose_features

    pipeline = hfgen.HFGenPipeline.from_pretrained(options.pipeline)
    train = hfgen.load_images(data_args)
    test = hfgen.load_images(dataclasses.replace(data_args, dataset_split="test"))
    networks = choose_features("auto", pipeline.sample_shape[0], pipeline.sample_shape[1:])
    settings = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("kinds", "output_dir")}
    measured = Measured(Path(options.output_dir, "reverse_variance.json"), settings)
    for kind in options.kinds.split(","):

        def measure(kind: str = kind) -> dict[str, Any]:
            return row_of(pipeline, kind, train, test, networks, options)

        print(kind, measured.get(kind, measure), flush=True)


if __name__ == "__main__":
    main()
