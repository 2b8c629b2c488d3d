"""Train an autoencoder on images: variational, importance-weighted, plain, denoising or vector-quantised."""

from pathlib import Path

from hfgen.families.vae.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse, parser, refuse_idle, resumable


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, fit the prior, measure, and leave the pipeline with its pictures, figures and card."""
    command = parser("train_vae.py", DESCRIPTION, EXAMPLE, *GROUPS)
    data_args, *_, held_args, sample_args, args = parsed = parse(command, argv, *GROUPS)

    from hfgen.families import finish as artifacts
    from hfgen.families import run as common
    from hfgen.families.vae import preview as decoded
    from hfgen.families.vae import recipe as autoencoders
    from hfgen.trainer.loop import steps_in

    output = Path(args.output_dir)
    with common.refusing():
        refuse_idle(*parsed)
        design = autoencoders.design(*parsed)
        accelerator = common.start(args)
        data = common.load(data_args, accelerator)
        held_out = autoencoders.held_out(data_args, held_args, data, accelerator)
        gallery = decoded.gallery(design, sample_args, args.seed, held_out.images)
        network = design.autoencoder(data.resolution, data.channels)
        player, objective = design.player(network, data), design.objective(network)
        loader = common.batches(data, data_args, args, accelerator)
        steps_in(args, loader, accelerator.num_processes)
        show = artifacts.TrainingMonitor(design.pipeline, gallery, sample_args, args, output, data)

    config = common.keep_config(output, args, accelerator, *parsed)
    result = common.fit({"autoencoder": player}, objective, loader, args, accelerator, show, config, resumable(*parsed))
    if result is not None and accelerator.is_main_process:
        trained = design.pipeline(result.networks)
        with common.refusing():
            kept = design.finished(trained, data, args.seed)
        found = autoencoders.evaluated(design, trained, kept, held_out, held_args.likelihood_samples, args.seed)
        artifacts.finish(kept, gallery, data, result, args, config, evaluation=found)


if __name__ == "__main__":
    main()
