"""Train a model of sequences whose channels are tones, under a prompt that names their frequencies."""

from hfgen.options import parse_or_exit, parser, program

from .options import DESCRIPTION, EXAMPLE, GROUPS


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, measure, and leave the pipeline with its samples, figures and card in `output_dir`."""
    parsed = parse_or_exit(parser(program("tones"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    tone_args, rehearsal_args, solver_args, args = parsed

    import hfgen
    from hfgen.families.diffusion.recipe import make_scheduler
    from hfgen.families.run import Run
    from hfgen.paths import StraightPath

    from .condition import PromptCondition
    from .data import NUM_CHANNELS, tones
    from .metrics import evaluate
    from .network import ToneModel
    from .objective import Rehearsal
    from .pipeline import TonePipeline
    from .preview import TonePreview

    with Run(parsed, "tones") as run:
        length, tokens = tone_args.length, tone_args.num_frequencies
        data = tones(tone_args.num_sequences, length, tokens, tone_args.noise_level)
        denoising = hfgen.Denoising(
            StraightPath(), condition=PromptCondition(tokens), label_dropout=rehearsal_args.prompt_dropout
        )
        shapes = {"x": data.item_shape, "prompt": (NUM_CHANNELS,)}
        scheduler = make_scheduler(solver_args, "straight", denoising.prediction_type)
        call = {"num_inference_steps": solver_args.num_inference_steps, "guidance_scale": solver_args.guidance_scale}
        run.train(
            networks={"denoiser": ToneModel(length, NUM_CHANNELS, tokens, tone_args.hidden_size)},
            objective=Rehearsal(denoising, rehearsal_args.replay_size, shapes, rehearsal_args.replay_share),
            pipeline=lambda networks: TonePipeline(networks["denoiser"], scheduler),
            preview=TonePreview(solver_args, tokens, args.seed),
            data=data,
            complete=lambda pipeline: hfgen.Finished(pipeline, evaluation=evaluate(pipeline, 8, args.seed, **call)),
        )


if __name__ == "__main__":
    main()
