"""Train a style-based generator against a discriminator on images."""

from hfgen.families.stylegan.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train under the collapse monitor, and save the pipeline with pictures and card."""
    parsed = parse_or_exit(parser(program("stylegan"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, loss_args, style_args, health_args, sample_args, args = parsed

    import hfgen
    from hfgen.families.finish import Finished
    from hfgen.families.gan.collapse import CollapseMonitor
    from hfgen.families.gan.recipe import GANRecipe
    from hfgen.families.run import Run
    from hfgen.families.stylegan.preview import StyleGANPreview
    from hfgen.families.stylegan.recipe import StyleArchitecture

    with Run(parsed, "stylegan") as run:
        architecture = StyleArchitecture(network_args, style_args)
        recipe = GANRecipe(data_args, network_args, loss_args, health_args, args, architecture)
        classes = run.num_classes(network_args.class_conditional)
        names = run.data.label_names if classes else None
        monitor = CollapseMonitor(health_args, sample_args.eval_features, args.seed, run.data, run.output)
        facts = {"penalties": recipe.penalty_summary}
        objective = recipe.objective(recipe.networks(run.data, classes), run.data.item_shape, run.world)
        run.train(
            networks=lambda: recipe.networks(run.data, classes),
            objective=objective,
            pipeline=lambda networks: hfgen.StyleGANPipeline(
                networks["generator"], networks["discriminator"], classes, names
            ),
            preview=StyleGANPreview(recipe.title, recipe.kind, sample_args, args.seed, monitor),
            monitor=monitor,
            complete=lambda pipeline: Finished(pipeline, {**facts, "health": monitor.summary()}, monitor.entries()),
        )


if __name__ == "__main__":
    main()
