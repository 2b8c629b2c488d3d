"""Train a diffusion or rectified-flow model on images."""

import dataclasses
from pathlib import Path
from typing import Any

from hfgen.families.diffusion.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse, parser, refuse_idle, resumable
from hfgen.registry import PATHS


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, and leave the pipeline with its samples, figures and card in `output_dir`."""
    command = parser("train_diffusion.py", DESCRIPTION, EXAMPLE, *GROUPS)
    data_args, network_args, noise_args, solver_args, sample_args, args = parsed = parse(command, argv, *GROUPS)

    import hfgen
    from hfgen.families import finish as artifacts
    from hfgen.families import run as common
    from hfgen.families.diffusion import preview as denoised
    from hfgen.paths import path_from_config
    from hfgen.trainer.loop import steps_in

    def objective(num_classes: int | None = None) -> hfgen.Denoising:
        options = dataclasses.asdict(noise_args)
        path = path_from_config(PATHS[options.pop("path")])
        return hfgen.Denoising(path, num_classes=num_classes, **options)

    def pipeline(networks: dict[str, Any]) -> hfgen.DenoisingPipeline:
        return hfgen.DenoisingPipeline(networks["denoiser"], scheduler, classes, classes and data.label_names)

    output, names = Path(args.output_dir), resumable(*parsed)
    with common.refusing():
        refuse_idle(*parsed)
        objective()  # impossible pairs and sizes are refused before any data are read
        denoised.check_size(network_args.model, network_args.model_size, data_args.resolution)
        scheduler = denoised.make_scheduler(solver_args, noise_args.path, noise_args.prediction_type)
        kind = "rectified flow" if noise_args.path == "straight" else "diffusion"
        gallery = denoised.DenoisingPreview(kind.capitalize(), kind, solver_args, sample_args, args.seed)
        denoised.check_guidance(solver_args.guidance_scale, network_args.class_conditional, noise_args.label_dropout)
        accelerator = common.start(args)
        data = common.load(data_args, accelerator)
        classes = common.classes_of(data, network_args.class_conditional)
        shape = network_args.model, network_args.model_size, data.resolution, data.channels, classes
        network = hfgen.build_denoiser(*shape, args.gradient_checkpointing, null_class=noise_args.label_dropout > 0)
        loader = common.batches(data, data_args, args, accelerator)
        steps_in(args, loader, accelerator.num_processes)
        show = artifacts.TrainingMonitor(pipeline, gallery, sample_args, args, output, data)

    config = common.keep_config(output, args, accelerator, *parsed)
    result = common.fit({"denoiser": network}, objective(classes), loader, args, accelerator, show, config, names)
    if result is not None and accelerator.is_main_process:
        artifacts.finish(pipeline(result.networks), gallery, data, result, args, config)


if __name__ == "__main__":
    main()
