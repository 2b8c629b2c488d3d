"""Train an autoencoder on images together with a discriminator of its reconstructions: VQ-GAN or VAE-GAN."""

from hfgen.families.vqgan.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train both players, measure, and save the autoencoder's pipeline with pictures and card."""
    parsed = parse_or_exit(parser(program("vqgan"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, critic_args, prior_args, held_out_args, sample_args, args = parsed

    from hfgen.families.run import Run
    from hfgen.families.vae import evaluation
    from hfgen.families.vae.preview import make_preview
    from hfgen.families.vqgan.recipe import CARD_OPTIONS, critics, make_inner_recipe, with_critic

    with Run(parsed, "vqgan") as run:
        recipe = make_inner_recipe(data_args, network_args, critic_args, prior_args, args)
        held_out = evaluation.load_held_out(data_args, held_out_args, run.data, run.accelerator)
        autoencoder = recipe.player(run.data)
        preview = make_preview(recipe, sample_args, args.seed, held_out.images)
        preview.card_options += CARD_OPTIONS
        run.train(
            networks={"autoencoder": autoencoder, **critics(critic_args, run.data)},
            objective=with_critic(recipe.objective(autoencoder), critic_args),
            pipeline=recipe.pipeline,
            preview=preview,
            **evaluation.after_training(recipe, run, held_out, held_out_args),
        )


if __name__ == "__main__":
    main()
