"""Train a normalizing flow on images, or on a VAE's latents as their prior, by exact maximum likelihood."""

from hfgen.families.flow.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, measure bits per dimension, and save the pipeline with pictures and card."""
    parsed = parse_or_exit(parser(program("flow"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)

    from hfgen.families.flow.prior import PriorRecipe
    from hfgen.families.flow.recipe import ImageRecipe
    from hfgen.families.run import Run

    with Run(parsed, "flow") as run:
        _, network_args, _, _, sample_args, _ = parsed
        recipe = (ImageRecipe if network_args.pipeline is None else PriorRecipe)(run, parsed)
        flow = recipe.network()
        run.train(
            networks={"flow": flow},
            objective=recipe.objective(flow),
            pipeline=lambda networks: recipe.pipeline(networks["flow"]),
            preview=recipe.preview(sample_args),
            data=recipe.data,
            complete=recipe.complete,
            reserve=recipe.reserve,
        )


if __name__ == "__main__":
    main()
