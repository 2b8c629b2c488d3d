"""Train one model of images and texts: both together, either alone, and each from the other."""

from hfgen.families.unidiffuser.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, learn the texts, train, and save the pipeline with samples, metrics and card in `output_dir`."""
    parsed = parse_or_exit(parser(program("unidiffuser"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, text_args, noise_args, solver_args, sample_args, args = parsed

    import hfgen
    from hfgen.families.diffusion.recipe import make_scheduler, objective
    from hfgen.families.prompts import prompts_in
    from hfgen.families.run import Run
    from hfgen.families.text_to_image.preview import ROWS
    from hfgen.families.unidiffuser import recipe
    from hfgen.families.unidiffuser.preview import TwoClockPreview
    from hfgen.families.unidiffuser.texts import latent_texts

    with Run(parsed, "unidiffuser") as run:
        recipe.check(data_args, network_args, text_args, noise_args)
        scheduler = make_scheduler(solver_args, noise_args.path, noise_args.prediction_type)
        data, main_one = run.data, run.accelerator.is_main_process and not args.dry_run
        with run.accelerator.main_process_first():
            texts = latent_texts(data.caption_texts, text_args, run.output, args.seed, main_one)
        denoiser = recipe.build(network_args, data.resolution, data.channels, text_args, args.gradient_checkpointing)
        prompts = prompts_in(text_args.prompts) or data.caption_texts[:ROWS]
        run.train(
            networks={"denoiser": denoiser, "text_autoencoder": texts.autoencoder},
            objective=hfgen.UniDiffusion(
                objective(noise_args), texts.latents, text_args.text_weight, text_args.end_share
            ),
            pipeline=lambda networks: hfgen.UniDiffuserPipeline(
                networks["denoiser"], scheduler, texts.autoencoder, texts.tokenizer
            ),
            preview=TwoClockPreview("UniDiffuser", "UniDiffuser", solver_args, sample_args, args.seed, prompts),
        )


if __name__ == "__main__":
    main()
