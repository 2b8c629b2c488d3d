"""Straighten a trained rectified flow by training it again on its own pairs of noise and samples (reflow)."""

import copy
import dataclasses

from hfgen.families.reflow.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import DataArgs, parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, draw pairs, train, measure, and save the pipeline with measurements and card."""
    command = parser(program("reflow"), DESCRIPTION, EXAMPLE, *GROUPS)
    parsed = parse_or_exit(command, argv, *GROUPS)
    pair_args, _, solver_args, sample_args, measure_args, args = parsed

    from hfgen.families import few_steps
    from hfgen.families.diffusion.preview import DenoisingPreview
    from hfgen.families.diffusion.recipe import check_guidance, make_scheduler
    from hfgen.families.reflow import recipe
    from hfgen.families.run import Run
    from hfgen.families.trained_data import check_classes, take_data_of

    with Run(parsed, "reflow") as run:
        teacher = recipe.load_teacher(pair_args.pipeline, args.output_dir)
        classes = teacher.config.num_classes
        objective = recipe.objective(teacher, pair_args.label_dropout)
        solver_args = dataclasses.replace(solver_args, scheduler=solver_args.scheduler or "euler")
        scheduler = make_scheduler(solver_args, "straight", objective.prediction_type)
        check_guidance(solver_args.guidance_scale, classes is not None, pair_args.label_dropout)
        features = few_steps.features_for(measure_args.features, teacher.sample_shape)
        take_data_of(run, teacher, parsed.given_of(DataArgs))
        check_classes(run.data, teacher, needed=False)
        recipe.check_data(run.data, teacher, features, measure_args.num_samples)
        pairs = recipe.batches(teacher.to(run.accelerator.device), pair_args, args, run.accelerator)
        student = copy.deepcopy(teacher.denoiser)
        if args.gradient_checkpointing:
            student.enable_gradient_checkpointing()
        run.train(
            networks={"denoiser": student},
            objective=objective,
            pipeline=lambda networks: teacher.with_denoiser(networks["denoiser"], scheduler),
            preview=DenoisingPreview("Reflowed rectified flow", "rectified flow", solver_args, sample_args, args.seed),
            data=pairs,
            complete=lambda reflowed: few_steps.compare(
                *(teacher, reflowed, run.data, features, measure_args.num_samples),
                *(solver_args.guidance_scale, pair_args.pair_batch_size),
            ),
        )


if __name__ == "__main__":
    main()
