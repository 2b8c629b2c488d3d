"""Train a masked autoencoder, which learns representations of images by predicting what is hidden of them."""

from hfgen.families.mae.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, measure, and save the pipeline with pictures, measurements and card in `output_dir`."""
    parsed = parse_or_exit(parser(program("mae"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, masked_args, probe_args, args = parsed

    import hfgen
    from hfgen.families.mae import recipe
    from hfgen.families.mae.preview import MaskedPreview
    from hfgen.families.run import Run
    from hfgen.families.vae.evaluation import load_held_out
    from hfgen.models.patches import visible_count

    options = {"mask_ratio": masked_args.mask_ratio, "normalised_targets": masked_args.normalised_targets}
    with Run(parsed, "mae") as run:
        data = run.data
        held_out = load_held_out(data_args, probe_args, data, run.accelerator)
        autoencoder = hfgen.build_masked_autoencoder(
            masked_args.model_size, data.resolution, data.channels, masked_args.patch_size, args.gradient_checkpointing
        )
        visible_count(autoencoder.grid.length, masked_args.mask_ratio)  # refuses one that hides none or all
        run.train(
            networks={"autoencoder": autoencoder},
            objective=hfgen.MaskedAutoencoding(autoencoder.config.patch_size, **options),
            pipeline=lambda networks: hfgen.MAEPipeline(networks["autoencoder"], **options),
            preview=MaskedPreview(args.seed, held_out.images),
            complete=lambda pipeline: recipe.complete(pipeline, data, held_out, probe_args),
        )


if __name__ == "__main__":
    main()
