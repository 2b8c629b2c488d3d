"""Train an autoregressive model on images: a transformer, FVSBN, MADE, NADE or RNADE."""

from hfgen.families.ar.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, measure likelihoods, and save the pipeline with pictures and card."""
    parsed = parse_or_exit(parser(program("ar"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, pixel_args, held_out_args, sample_args, args = parsed

    from hfgen.families.ar.preview import ARPreview
    from hfgen.families.ar.recipe import PixelRecipe, after_training
    from hfgen.families.run import Run
    from hfgen.families.vae.evaluation import load_held_out

    with Run(parsed, "ar") as run:
        recipe = PixelRecipe(data_args, network_args, pixel_args, args)
        classes = run.num_classes(network_args.class_conditional)
        names = run.data.label_names if classes else None
        held_out = load_held_out(data_args, held_out_args, run.data, run.accelerator)
        run.train(
            networks={"model": recipe.network(run.data, classes)},
            objective=recipe.objective(classes),
            pipeline=lambda networks: recipe.pipeline(networks, classes, names),
            preview=ARPreview(recipe.title, recipe.kind, sample_args, args.seed, held_out.images),
            complete=after_training(run, held_out, held_out_args, classes is not None, pixel_args.label_dropout),
        )


if __name__ == "__main__":
    main()
