"""Train a model that draws images from texts, on images with captions."""

from hfgen.families.text_to_image.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, and save the pipeline with samples, metrics and card in `output_dir`."""
    parsed = parse_or_exit(parser(program("text_to_image"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, text_args, noise_args, _, solver_args, sample_args, args = parsed

    from hfgen.families.diffusion.recipe import objective, on_base, scheduler_for
    from hfgen.families.prompts import prompts_in
    from hfgen.families.run import Run
    from hfgen.families.text_to_image import recipe
    from hfgen.families.text_to_image.preview import ROWS, TextPreview

    with Run(parsed, "text_to_image") as run:
        place = run, network_args, noise_args, parsed.given
        network_args, noise_args = on_base(*place, kind="TextToImagePipeline")
        recipe.check(data_args, network_args, text_args, noise_args, solver_args)
        scheduler = scheduler_for(run, solver_args, noise_args)
        data, texts = run.data, recipe.texts_of(run, text_args, network_args.model_size)
        denoiser = recipe.denoiser(run, network_args, noise_args, texts)
        prompts = prompts_in(text_args.prompts) or data.caption_texts[:ROWS]
        run.train(
            networks=texts.networks(denoiser),
            objective=objective(noise_args, condition=texts.condition),
            pipeline=lambda networks: texts.pipeline(networks, scheduler, noise_args.label_dropout > 0),
            preview=TextPreview("Text to image", "text-to-image", solver_args, sample_args, args.seed, prompts),
        )


if __name__ == "__main__":
    main()
