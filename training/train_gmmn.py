"""Train a generator by the maximum mean discrepancy alone."""

from hfgen.families.gmmn.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train under the collapse monitor, and save the pipeline with pictures and card."""
    parsed = parse_or_exit(parser(program("gmmn"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    _, _, _, health_args, sample_args, args = parsed

    from hfgen.families.finish import Finished
    from hfgen.families.gan.collapse import CollapseMonitor
    from hfgen.families.gmmn.recipe import ADVICE, GMMNPreview, GMMNRecipe
    from hfgen.families.run import Run

    with Run(parsed, "gmmn") as run:
        recipe = GMMNRecipe(run, parsed)
        monitor = CollapseMonitor(health_args, sample_args.eval_features, args.seed, run.data, run.output, ADVICE)
        run.train(
            networks={"generator": recipe.network()},
            objective=recipe.objective(),
            pipeline=lambda networks: recipe.pipeline(networks["generator"]),
            preview=GMMNPreview(recipe.title, recipe.kind, sample_args, args.seed, monitor),
            data=recipe.data,
            monitor=monitor,
            complete=lambda pipeline: Finished(
                pipeline, {**recipe.facts, "health": monitor.summary()}, monitor.entries()
            ),
            reserve=recipe.reserve,
        )


if __name__ == "__main__":
    main()
