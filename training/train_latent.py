"""Train a diffusion or rectified-flow model on the latents of an autoencoder, or both from scratch."""

from hfgen.families.latent.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train the autoencoder if there is none, encode, train, and save the pipeline with card."""
    parsed = parse_or_exit(parser(program("latent"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)

    from hfgen.families.latent.recipe import LatentRecipe
    from hfgen.families.run import Run

    with Run(parsed, "latent") as run:
        *_, sample_args, _ = parsed
        recipe = LatentRecipe(run, parsed)
        run.train(
            networks={"denoiser": recipe.network()},
            objective=recipe.objective(),
            pipeline=lambda networks: recipe.pipeline(networks["denoiser"]),
            preview=recipe.preview(sample_args),
            data=recipe.data,
            reserve=recipe.reserve,
        )


if __name__ == "__main__":
    main()
