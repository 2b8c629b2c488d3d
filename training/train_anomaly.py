"""Fit an anomaly detector to normal images, and its threshold to held-out normal images."""

from hfgen.families.anomaly.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import DataArgs, SampleArgs, parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train or load an autoencoder, calibrate, and save the detector with pictures and card."""
    command = parser(program("anomaly"), DESCRIPTION, EXAMPLE, *GROUPS)
    parsed = parse_or_exit(command, argv, *GROUPS)
    anomaly_args, data_args, network_args, objective_args, args = parsed

    from hfgen.families.anomaly import recipe
    from hfgen.families.anomaly.preview import AnomalyPreview
    from hfgen.families.run import Run
    from hfgen.families.trained_data import take_data_of
    from hfgen.families.vae.options import PriorArgs
    from hfgen.families.vae.preview import ReconstructionPreview
    from hfgen.families.vae.recipe import make_recipe

    with Run(parsed, "anomaly") as run:
        pipeline = recipe.load_scored(anomaly_args, args.output_dir)
        inner = make_recipe(data_args, network_args, objective_args, PriorArgs(), args)
        recipe.check(anomaly_args, pipeline, inner)
        if pipeline is None:
            recipe.check_data_options(data_args)
        else:
            given = parsed.given_of(DataArgs)
            take_data_of(run, pipeline, given, lambda options: recipe.data_options(options, pipeline))
        data, held_out = recipe.split(run.data, anomaly_args, args.seed)
        run.accelerator.print(f"{len(data):,} normal images to train on, {len(held_out):,} to calibrate on")
        preview = AnomalyPreview(anomaly_args, SampleArgs(), args.seed, held_out)

        def complete(trained):
            return recipe.complete(trained, inner, data, held_out, anomaly_args, run.data_args, args.seed)

        if pipeline is None:
            autoencoder = inner.player(data)
            reconstructions = ReconstructionPreview(inner.title, inner.kind, SampleArgs(), args.seed, held_out[:20])
            run.train(
                networks={"autoencoder": autoencoder},
                objective=inner.objective(autoencoder),
                pipeline=inner.pipeline,
                preview=preview,
                grids=reconstructions,
                data=data,
                complete=complete,
            )
        elif run.accelerator.is_main_process:
            run.finish(complete(pipeline), preview, data)


if __name__ == "__main__":
    main()
