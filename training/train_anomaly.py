"""Learn from normal images what is normal, and from others held out where "anomalous" begins."""

from pathlib import Path

from hfgen.families.anomaly.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.families.vae.options import HeldOutArgs, PriorArgs
from hfgen.options import SampleArgs, parse, parser, refuse_idle, resumable


def main(argv: list[str] | None = None) -> None:
    """Parse options, train or load an autoencoder, calibrate, and leave the pipeline with its figures and card."""
    command = parser("train_anomaly.py", DESCRIPTION, EXAMPLE, *GROUPS)
    anomaly_args, data_args, network_args, bound_args, args = parsed = parse(command, argv, *GROUPS)

    from hfgen.families import finish as artifacts
    from hfgen.families import run as common
    from hfgen.families.anomaly import preview as detected
    from hfgen.families.anomaly import recipe as normals
    from hfgen.families.vae import preview as decoded
    from hfgen.families.vae import recipe as autoencoders
    from hfgen.trainer.loop import steps_in

    output, sample_args, names = Path(args.output_dir), SampleArgs(), resumable(*parsed)
    with common.refusing():
        refuse_idle(*parsed)
        trained = normals.trained(anomaly_args, args.output_dir)
        design = autoencoders.design(data_args, network_args, bound_args, PriorArgs(), HeldOutArgs(), sample_args, args)
        normals.check(anomaly_args, trained, design)
        accelerator = common.start(args)
        images = common.load(normals.fitting(data_args, trained), accelerator)
        data, held_out = normals.split(images, anomaly_args, args.seed)
        accelerator.print(f"{len(data):,} normal images to learn from, {len(held_out):,} others to calibrate on")
        shown = detected.AnomalyPreview(anomaly_args, sample_args, args.seed, held_out)
        if trained is None:
            network = design.autoencoder(data.resolution, data.channels)
            player, objective = design.player(network, data), design.objective(network)
            steps_in(args, loader := common.batches(data, data_args, args, accelerator), accelerator.num_processes)
            pairs = decoded.ReconstructionPreview(design.title, design.kind, sample_args, args.seed, held_out[:20])
            show = artifacts.TrainingMonitor(design.pipeline, pairs, sample_args, args, output, data)

    config = common.keep_config(output, args, accelerator, *parsed)
    result = None
    if trained is None:
        result = common.fit({"autoencoder": player}, objective, loader, args, accelerator, show, config, names)
        if result is None:
            return
        trained = design.pipeline(result.networks)
    if accelerator.is_main_process:
        with common.refusing():
            found = normals.fitted(trained, design, data, held_out, anomaly_args, data_args, args.seed)
            measured = normals.measured(found)
        if result is None:
            normals.keep(found, shown, measured, config, output)
        else:
            artifacts.finish(found, shown, data, result, args, config, measured)


if __name__ == "__main__":
    main()
