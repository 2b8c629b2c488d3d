"""Straighten a trained rectified flow by training it again on its own couplings of noise and samples (reflow)."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from hfgen.options import DataArgs, SampleArgs, SolverArgs, TrainArgs, option, parse, parser

EXAMPLE = (
    "accelerate launch training/train_reflow.py --pipeline outputs/quickstart --num_pairs 10000 --max_train_steps 500"
)


@dataclasses.dataclass
class PairArgs:
    """Couplings"""

    pipeline: str | None = option(None, "folder of the trained pipeline, whose weights training starts from")
    num_pairs: int = option(20000, "couplings of noise and sample to train on")
    pair_steps: int = option(10, "network evaluations a coupling")
    pair_batch_size: int = option(128, "couplings drawn at a time, and kept in a file")
    pair_guidance_scale: float = option(1.0, "classifier-free guidance of the couplings; 1: none")
    pair_seed: int = option(0, "coupling i has noise from seed + i")
    pair_dir: str | None = option(None, "where couplings are kept; default: pairs/ in output_dir")
    label_dropout: float = option(0.1, "share of couplings trained on without their class, for guidance")


@dataclasses.dataclass
class MeasureArgs:
    """Before and after"""

    features: str | None = option(
        None, "feature network of Frechet distances, or 'none'; default: what fits the images"
    )
    eval_samples: int = option(5000, "samples, and images of the data, that a Frechet distance compares")


GROUPS = (PairArgs, DataArgs, SolverArgs, SampleArgs, MeasureArgs, TrainArgs)


def main(argv: list[str] | None = None) -> None:
    """Parse options, draw couplings, train, measure, and leave the pipeline with its figures and card."""
    command = parser("train_reflow.py", __doc__, EXAMPLE, *GROUPS)
    pair_args, data_args, solver_args, sample_args, measure_args, args = parsed = parse(command, argv, *GROUPS)

    import hfgen
    from hfgen.families import finish as artifacts
    from hfgen.families import run as common
    from hfgen.families.diffusion import preview as denoised
    from hfgen.families.reflow import few_steps
    from hfgen.families.reflow import recipe as pairs

    def pipeline(networks: dict[str, Any]) -> hfgen.DenoisingPipeline:
        return hfgen.DenoisingPipeline(networks["denoiser"], scheduler, classes, teacher.config.label_names)

    output = Path(args.output_dir)
    with common.refusing():
        teacher = pairs.teacher(pair_args.pipeline, args.output_dir)
        classes = teacher.config.num_classes
        objective = pairs.objective(teacher, pair_args.label_dropout)
        solver_args = dataclasses.replace(solver_args, scheduler=solver_args.scheduler or "euler")
        scheduler = denoised.make_scheduler(solver_args, "straight", objective.prediction_type)
        title = "Reflowed rectified flow"
        gallery = denoised.DenoisingPreview(title, "rectified flow", solver_args, sample_args, args.seed)
        denoised.check_guidance(solver_args.guidance_scale, classes is not None, pair_args.label_dropout)
        features = few_steps.features_for(measure_args.features, teacher.image_shape)
        accelerator = common.start(args)
        data = common.load(data_args, accelerator)
        pairs.check_data(data, teacher, features, measure_args.eval_samples)
        show = artifacts.TrainingMonitor(pipeline, gallery, sample_args, args, output, data)
        loader = pairs.batches(teacher.to(accelerator.device), pair_args, args, accelerator)

    student = copy.deepcopy(teacher.denoiser)
    if args.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    config = common.keep_config(output, args, accelerator, *parsed)
    result = common.fit({"denoiser": student}, objective, loader, args, accelerator, show, config)
    if result is not None and accelerator.is_main_process:
        reflowed = pipeline(result.networks)
        options = (measure_args.eval_samples, solver_args.guidance_scale, pair_args.pair_batch_size)
        measured = few_steps.compare(teacher, reflowed, data, features, *options)
        artifacts.finish(reflowed, gallery, data, result, args, config, measured)


if __name__ == "__main__":
    main()
