"""Train an autoencoder on images: variational, importance-weighted, plain, denoising or vector-quantised."""

from hfgen.families.vae.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, fit the prior, measure, and save the pipeline with pictures, measurements and card."""
    parsed = parse_or_exit(parser(program("vae"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, objective_args, prior_args, held_out_args, sample_args, args = parsed

    from hfgen.families.run import Run
    from hfgen.families.vae import evaluation
    from hfgen.families.vae.choice import choose
    from hfgen.families.vae.preview import make_preview
    from hfgen.families.vae.recipe import make_recipe

    with Run(parsed, "vae") as run:
        make_recipe(data_args, network_args, objective_args, prior_args, args)  # refuses before data are read
        network_args = choose(run, network_args, objective_args)
        recipe = make_recipe(data_args, network_args, objective_args, prior_args, args)
        held_out = evaluation.load_held_out(data_args, held_out_args, run.data, run.accelerator)
        autoencoder = recipe.player(run.data)
        run.train(
            networks={"autoencoder": autoencoder},
            objective=recipe.objective(autoencoder),
            pipeline=recipe.pipeline,
            preview=make_preview(recipe, sample_args, args.seed, held_out.images),
            **evaluation.after_training(recipe, run, held_out, held_out_args),
        )


if __name__ == "__main__":
    main()
