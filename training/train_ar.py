"""Train an autoregressive model on pixels (transformer, FVSBN, MADE, NADE, RNADE) or on the codes of a VQ-VAE."""

from hfgen.families.ar.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import DataArgs, parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, measure likelihoods, and save the pipeline with pictures and card."""
    command = parser(program("ar"), DESCRIPTION, EXAMPLE, *GROUPS)
    parsed = parse_or_exit(command, argv, *GROUPS)
    _, network_args, pixel_args, held_out_args, sample_args, _ = parsed

    from hfgen.families.ar.recipe import make_recipe
    from hfgen.families.run import Run

    with Run(parsed, "ar") as run:
        given = parsed.given_of(DataArgs)
        recipe = make_recipe(run, (network_args, pixel_args, held_out_args), given)
        model = recipe.network()
        run.train(
            networks={"model": model},
            objective=recipe.objective(model),
            pipeline=lambda networks: recipe.pipeline(networks["model"]),
            preview=recipe.preview(sample_args),
            data=recipe.data,
            complete=recipe.complete,
            reserve=recipe.reserve,
        )


if __name__ == "__main__":
    main()
