"""Train a normalizing flow on images, by exact maximum likelihood."""

from hfgen.families.flow.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, measure bits per dimension, and save the pipeline with pictures and card."""
    parsed = parse_or_exit(parser(program("flow"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, objective_args, held_out_args, sample_args, args = parsed

    from hfgen.families.flow.preview import FlowPreview
    from hfgen.families.flow.recipe import FlowRecipe, after_training
    from hfgen.families.run import Run
    from hfgen.families.vae.evaluation import load_held_out

    with Run(parsed, "flow") as run:
        recipe = FlowRecipe(data_args, network_args, objective_args, args)
        classes = run.num_classes(network_args.class_conditional)
        names = run.data.label_names if classes else None
        held_out = load_held_out(data_args, held_out_args, run.data, run.accelerator)
        flow = recipe.network(run.data, classes)
        run.train(
            networks={"flow": flow},
            objective=recipe.objective(flow, classes),
            pipeline=lambda networks: recipe.pipeline(networks, classes, names),
            preview=FlowPreview(recipe.title, recipe.kind, sample_args, args.seed, held_out.images),
            complete=after_training(recipe, held_out, held_out_args, classes),
        )


if __name__ == "__main__":
    main()
