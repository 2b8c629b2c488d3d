"""Straighten a trained rectified flow by training it again on its own couplings of noise and samples (reflow)."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from hfgen.families.reflow.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse, parser, refuse_idle, resumable


def main(argv: list[str] | None = None) -> None:
    """Parse options, draw couplings, train, measure, and leave the pipeline with its figures and card."""
    command = parser("train_reflow.py", DESCRIPTION, EXAMPLE, *GROUPS)
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
        refuse_idle(*parsed)
        teacher = pairs.teacher(pair_args.pipeline, args.output_dir)
        classes = teacher.config.num_classes
        objective = pairs.objective(teacher, pair_args.label_dropout)
        solver_args = dataclasses.replace(solver_args, scheduler=solver_args.scheduler or "euler")
        scheduler = denoised.make_scheduler(solver_args, "straight", objective.prediction_type)
        title = "Reflowed rectified flow"
        gallery = denoised.DenoisingPreview(title, "rectified flow", solver_args, sample_args, args.seed)
        denoised.check_guidance(solver_args.guidance_scale, classes is not None, pair_args.label_dropout)
        features = few_steps.features_for(measure_args.features, teacher.sample_shape)
        accelerator = common.start(args)
        data = common.load(data_args, accelerator)
        pairs.check_data(data, teacher, features, measure_args.eval_samples)
        show = artifacts.TrainingMonitor(pipeline, gallery, sample_args, args, output, data)
        loader = pairs.batches(teacher.to(accelerator.device), pair_args, args, accelerator)

    student = copy.deepcopy(teacher.denoiser)
    if args.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    config = common.keep_config(output, args, accelerator, *parsed)
    result = common.fit({"denoiser": student}, objective, loader, args, accelerator, show, config, resumable(*parsed))
    if result is not None and accelerator.is_main_process:
        reflowed = pipeline(result.networks)
        options = (measure_args.eval_samples, solver_args.guidance_scale, pair_args.pair_batch_size)
        measured = few_steps.compare(teacher, reflowed, data, features, *options)
        artifacts.finish(reflowed, gallery, data, result, args, config, measured)


if __name__ == "__main__":
    main()
