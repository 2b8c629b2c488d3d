"""Distil a trained denoiser into a generator of one step: its own network, or a small one of a GAN."""

from hfgen.families.distill.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import DataArgs, parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train generator and score network, measure, and save the pipeline with card."""
    command = parser(program("distill"), DESCRIPTION, EXAMPLE, *GROUPS)
    parsed = parse_or_exit(command, argv, *GROUPS)
    distill_args, _, sample_args, measure_args, args = parsed

    from hfgen.families import few_steps
    from hfgen.families.distill import recipe
    from hfgen.families.distill.one_step import OneStepPreview, compare
    from hfgen.families.latent_data import learnt_items
    from hfgen.families.reflow.recipe import check_data
    from hfgen.families.run import Run
    from hfgen.families.trained_data import check_classes, take_data_of
    from hfgen.families.trained_pipeline import shown_name

    with Run(parsed, "distill") as run:
        recipe.check(distill_args)
        teacher = recipe.load_teacher(distill_args, args.output_dir)
        lesson = recipe.lesson(teacher, distill_args, args)
        features = few_steps.features_for(measure_args.features, teacher.sample_shape)
        take_data_of(run, teacher, parsed.given_of(DataArgs))
        check_data(run.data, teacher, features, measure_args.num_samples)
        check_classes(run.data, teacher)
        objective, items = learnt_items(run, teacher, lesson.objective)
        about = {"teacher": shown_name(distill_args.pipeline), "student": lesson.student}
        run.train(
            networks=lesson.networks,
            objective=objective,
            data=items,
            pipeline=lambda networks: recipe.pipeline(teacher, lesson, networks),
            preview=OneStepPreview("One-step generator", "distilled", sample_args, args.seed),
            complete=lambda student: compare(
                *(teacher, student, about, distill_args.teacher_guidance_scale, run.data, features),
                *(measure_args.num_samples, args.train_batch_size),
            ),
        )


if __name__ == "__main__":
    main()
