"""Train a model that draws images from texts, on images with captions."""

from hfgen.families.text_to_image.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, and save the pipeline with samples, metrics and card in `output_dir`."""
    parsed = parse_or_exit(parser(program("text_to_image"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, text_args, noise_args, solver_args, sample_args, args = parsed

    import hfgen
    from hfgen.families.diffusion.recipe import make_scheduler, objective
    from hfgen.families.prompts import prompts_in
    from hfgen.families.run import Run
    from hfgen.families.text_to_image import recipe
    from hfgen.families.text_to_image.preview import ROWS, TextPreview

    with Run(parsed, "text_to_image") as run:
        recipe.check(data_args, network_args, text_args, noise_args, solver_args)
        kinds = noise_args.prediction_type, noise_args.variance
        scheduler = make_scheduler(solver_args, noise_args.path, *kinds)
        data, texts = run.data, recipe.texts_of(run, text_args, network_args.model_size)
        denoiser = hfgen.build_denoiser(
            network_args.model,
            network_args.model_size,
            data.resolution,
            data.channels,
            gradient_checkpointing=args.gradient_checkpointing,
            learned_variance=noise_args.variance != "fixed",
            text_channels=texts.channels,
        )
        prompts = prompts_in(text_args.prompts) or data.caption_texts[:ROWS]
        run.train(
            networks=texts.networks(denoiser),
            objective=objective(noise_args, condition=texts.condition),
            pipeline=lambda networks: texts.pipeline(networks, scheduler, noise_args.label_dropout > 0),
            preview=TextPreview("Text to image", "text-to-image", solver_args, sample_args, args.seed, prompts),
        )


if __name__ == "__main__":
    main()
