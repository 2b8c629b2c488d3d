"""Learn from normal images what is normal, and from others held out where "anomalous" begins."""

from pathlib import Path

from hfgen.training.anomaly_args import AnomalyArgs, LearningArgs, NetworkArgs
from hfgen.training.autoencoder_args import BoundArgs, HeldOutArgs, PriorArgs

from hfgen.args import DataArgs, SampleArgs, parse, parser

EXAMPLE = "hfgen anomaly fit --dataset folder_of_normal_images --resolution 32 --output_dir outputs/anomaly"
GROUPS = (AnomalyArgs, DataArgs, NetworkArgs, BoundArgs, LearningArgs)


def main(argv: list[str] | None = None) -> None:
    """Parse options, train an autoencoder or take a trained one, calibrate, and leave the pipeline with its pictures,
    figures and card."""
    command = parser("anomaly.py", __doc__, EXAMPLE, *GROUPS)
    anomaly_args, data_args, network_args, bound_args, args = parsed = parse(command, argv, *GROUPS)

    from hfgen.trainer import steps_in
    from hfgen.training import artifacts, autoencoders, common, decoded, detected, normals

    output, sample_args = Path(args.output_dir), SampleArgs()
    with common.refusing():
        trained = normals.trained(anomaly_args, network_args, bound_args, args)
        others = PriorArgs(), HeldOutArgs(), sample_args
        design = autoencoders.design(data_args, network_args, bound_args, *others, args)
        normals.check(anomaly_args, trained, design)
        accelerator = common.start(args)
        everything = common.load(normals.fitting(data_args, trained), accelerator)
        data, held_out = normals.split(everything, anomaly_args, args.seed)
        accelerator.print(f"{len(data):,} normal images to learn from, {len(held_out):,} others to calibrate on")
        shown = detected.Detected(anomaly_args, sample_args, args.seed, held_out)
        if trained is None:
            network = design.autoencoder(data.resolution, data.channels)
            player, objective = design.player(network, data), design.objective(network)
            loader = common.batches(data, data_args, args, accelerator)
            steps_in(args, loader, accelerator.num_processes)
            pairs = decoded.Reconstructed(design.title, design.kind, sample_args, args.seed, held_out[:20])
            show = artifacts.Previewer(design.pipeline, pairs, sample_args, args, output, data)

    config = common.keep_config(output, args, accelerator, *parsed)
    result = None
    if trained is None:
        result = common.fit({"autoencoder": player}, objective, loader, args, accelerator, show, config)
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
