"""Train a diffusion or rectified-flow model on images."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from hfgen.options import DataArgs, SampleArgs, SolverArgs, TrainArgs, option, parse, parser
from hfgen.registry import PATHS

EXAMPLE = (
    "accelerate launch training/train_diffusion.py --config training/configs/quickstart.yaml --max_train_steps 500"
)


@dataclasses.dataclass
class DenoiserArgs:
    """Network"""

    model: Literal["patch_unet", "unet", "dit"] = option("patch_unet", "architecture of the denoiser")
    model_size: Literal["xs", "s", "m", "l"] = option("s", "about 0.7, 2.7, 10 or 36 million parameters")
    class_conditional: bool = option(False, "tell the network the class, and learn classifier-free guidance")


@dataclasses.dataclass
class NoiseArgs:
    """Path and objective"""

    path: Literal[tuple(PATHS)] = option("straight", "from data to noise; straight: rectified flow, vp: DDPM")
    prediction_type: Literal["flow_prediction", "epsilon", "v_prediction", "sample", "score"] = option(
        "flow_prediction", "what the network predicts"
    )
    time_sampling: Literal["low_discrepancy", "uniform", "logit_normal"] = option(
        "low_discrepancy", "times to train on"
    )
    logit_mean: float = option(0.0, "of logit_normal; positive leans to noise")
    logit_std: float = option(1.0, "of logit_normal")
    weighting: Literal["simple", "min_snr", "sigmoid"] = option("simple", "weight of the loss over time")
    snr_gamma: float = option(5.0, "of min_snr")
    sigmoid_bias: float = option(0.0, "of sigmoid")
    label_dropout: float = option(0.1, "share of images trained on without their class, for guidance")


GROUPS = (DataArgs, DenoiserArgs, NoiseArgs, SolverArgs, SampleArgs, TrainArgs)


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, and leave the pipeline with its samples, figures and card in `output_dir`."""
    command = parser("train_diffusion.py", __doc__, EXAMPLE, *GROUPS)
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

    output = Path(args.output_dir)
    with common.refusing():
        objective()  # impossible pairs and sizes are refused before any data are read
        denoised.check_size(network_args.model, network_args.model_size, data_args.resolution)
        scheduler = denoised.make_scheduler(solver_args, noise_args.path, noise_args.prediction_type)
        kind = "rectified flow" if noise_args.path == "straight" else "diffusion"
        gallery = denoised.DenoisingPreview(kind.capitalize(), kind, solver_args, sample_args, args.seed)
        denoised.check_guidance(solver_args.guidance_scale, network_args.class_conditional, noise_args.label_dropout)
        accelerator = common.start(args)
        data = common.load(data_args, accelerator)
        classes = common.classes_of(data, network_args.class_conditional)
        network = hfgen.build_denoiser(
            network_args.model,
            network_args.model_size,
            data.resolution,
            data.channels,
            classes,
            args.gradient_checkpointing,
            null_class=noise_args.label_dropout > 0,
        )
        loader = common.batches(data, data_args, args, accelerator)
        steps_in(args, loader, accelerator.num_processes)
        show = artifacts.TrainingMonitor(pipeline, gallery, sample_args, args, output, data)

    config = common.keep_config(output, args, accelerator, *parsed)
    result = common.fit({"denoiser": network}, objective(classes), loader, args, accelerator, show, config)
    if result is not None and accelerator.is_main_process:
        artifacts.finish(pipeline(result.networks), gallery, data, result, args, config)


if __name__ == "__main__":
    main()
