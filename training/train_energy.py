"""Train an energy of images."""

from hfgen.families.energy.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, and save the pipeline with samples and card in `output_dir`."""
    parsed = parse_or_exit(parser(program("energy"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, objective_args, chain_args, guard_args, solver_args, sample_args, args = parsed

    import hfgen
    from hfgen.families.energy.preview import EnergyPreview
    from hfgen.families.energy.recipe import EnergyRecipe
    from hfgen.families.run import Run

    with Run(parsed, "energy") as run:
        recipe = EnergyRecipe(data_args, network_args, objective_args, chain_args, guard_args, solver_args, args)
        scheduler = recipe.scheduler()
        classes = run.num_classes(network_args.class_conditional)
        names = run.data.label_names if classes else None
        objective = recipe.objective(run.data.item_shape, classes)
        monitor = recipe.monitor(objective, run.data, run.output)
        run.train(
            networks=lambda: {"energy": recipe.network(run.data.resolution, run.data.channels, classes)},
            objective=objective,
            pipeline=lambda networks: hfgen.EnergyPipeline(networks["energy"], scheduler, classes, names),
            preview=EnergyPreview(recipe.title, recipe.kind, solver_args, sample_args, args.seed),
            monitor=monitor,
            complete=lambda pipeline: recipe.finished(pipeline, monitor),
        )


if __name__ == "__main__":
    main()
