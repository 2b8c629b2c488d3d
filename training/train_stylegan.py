"""Train a style-based generator against a discriminator on images."""

from hfgen.families.stylegan.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train with noise, style mixing and path lengths, and save the pipeline with pictures and card."""
    parsed = parse_or_exit(parser(program("stylegan"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)

    import hfgen
    from hfgen.families.run import Run
    from hfgen.families.stylegan.recipe import StyleGANRecipe

    with Run(parsed, "stylegan") as run:
        recipe = StyleGANRecipe(run, parsed)
        run.train(
            networks=recipe.networks,
            objective=recipe.objective(),
            pipeline=lambda trained: hfgen.StyleGANPipeline(
                trained["generator"], trained["discriminator"], recipe.classes, recipe.label_names
            ),
            preview=recipe.preview(),
            monitor=recipe.monitor,
            complete=recipe.finished,
        )


if __name__ == "__main__":
    main()
