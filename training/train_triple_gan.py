"""Train a classifier and a conditional generator against one discriminator, from few labels."""

from hfgen.families.triple_gan.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train under the collapse monitor, and save generator and classifier with pictures and card."""
    parsed = parse_or_exit(parser(program("triple_gan"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    _, _, _, health_args, _, sample_args, args = parsed

    from hfgen.families.gan.collapse import CollapseMonitor
    from hfgen.families.run import Run
    from hfgen.families.triple_gan.recipe import TripleGANRecipe, TriplePreview

    with Run(parsed, "triple_gan") as run:
        recipe = TripleGANRecipe(run, parsed)
        monitor = CollapseMonitor(health_args, sample_args.eval_features, args.seed, run.data, run.output)
        run.train(
            networks=recipe.networks,
            objective=recipe.objective(recipe.networks()),
            pipeline=recipe.pipeline,
            preview=TriplePreview(recipe.title, recipe.kind, sample_args, args.seed, monitor),
            data=recipe.data,
            monitor=monitor,
            complete=lambda pipeline: recipe.complete(pipeline, monitor),
        )


if __name__ == "__main__":
    main()
