"""Train a flow map, which draws images in one, two or a few steps, from a trained rectified flow or anew."""

from hfgen.families.flow_map.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import DataArgs, parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, measure, and save the pipeline with measurements and card."""
    command = parser(program("flow_map"), DESCRIPTION, EXAMPLE, *GROUPS)
    parsed = parse_or_exit(command, argv, *GROUPS)
    map_args, _, network_args, solver_args, sample_args, measure_args, args = parsed

    import hfgen
    from hfgen.families import few_steps
    from hfgen.families.diffusion.preview import DenoisingPreview
    from hfgen.families.diffusion.recipe import check_guidance, make_scheduler
    from hfgen.families.flow_map import recipe
    from hfgen.families.latent_data import learnt_items
    from hfgen.families.reflow.recipe import check_data
    from hfgen.families.run import Run
    from hfgen.families.trained_data import check_classes, take_data_of

    with Run(parsed, "flow_map") as run:
        recipe.check(map_args, network_args)
        scheduler = make_scheduler(solver_args, "straight", "flow_prediction")
        flow = recipe.load_flow(map_args, args.output_dir)
        if flow is not None:
            take_data_of(run, flow, parsed.given_of(DataArgs))
            check_classes(run.data, flow)
        start = recipe.start_of(flow, map_args, network_args, args, run)
        objective, items = learnt_items(run, flow, recipe.objective(map_args, start))
        check_guidance(solver_args.guidance_scale, start.classes is not None, objective.label_dropout)
        features = few_steps.features_for(measure_args.features, start.judged.sample_shape)
        check_data(run.data, start.judged, features, measure_args.num_samples)

        def pipeline_of(networks: dict) -> hfgen.DenoisingPipeline:
            return start.pipeline(networks, scheduler)

        gap = recipe.gap_of(map_args, start, pipeline_of, args.output_dir)
        run.train(
            networks=start.networks,
            objective=objective,
            pipeline=pipeline_of,
            preview=DenoisingPreview("Flow map", "flow map", solver_args, sample_args, args.seed),
            data=items,
            callbacks=[gap],
            complete=lambda pipeline: recipe.measure(
                *(start, pipeline, gap, map_args, run.data, features, measure_args.num_samples, args.train_batch_size)
            ),
        )


if __name__ == "__main__":
    main()
