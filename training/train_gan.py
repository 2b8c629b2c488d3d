"""Train a generator against a discriminator on images."""

from pathlib import Path
from typing import Any

from hfgen.families.gan.options import DESCRIPTION, EXAMPLE, GROUPS, GANTrainArgs
from hfgen.options import parse, parser, refuse_idle, resumable


def main(argv: list[str] | None = None) -> None:
    """Parse options, train while the generator stays healthy, and leave the pipeline with pictures and card."""
    command = parser("train_gan.py", DESCRIPTION, EXAMPLE, *GROUPS)
    data_args, _, _, health_args, sample_args, args = parsed = parse(command, argv, *GROUPS)

    from hfgen.families import finish as artifacts
    from hfgen.families import run as common
    from hfgen.families.gan.collapse import CollapseMonitor, guarded
    from hfgen.families.gan.preview import GANPreview
    from hfgen.families.gan.recipe import Design
    from hfgen.trainer.loop import Result, steps_in

    output = Path(args.output_dir)
    with common.refusing():
        refuse_idle(*parsed)
        design = Design(*parsed)
        accelerator = common.start(args)
        data = common.load(data_args, accelerator)
        networks = design.networks(data, accelerator.num_processes)
        objective = design.objective(networks["generator"])
        loader = common.batches(data, data_args, args, accelerator)
        steps_in(args, loader, accelerator.num_processes)
        watch = CollapseMonitor(health_args, sample_args.eval_features, args.seed, data, output)
        gallery = GANPreview(design.title, design.kind, sample_args, args.seed, watch)
        pipeline = design.pipeline_of(data.label_names)
        show = artifacts.TrainingMonitor(pipeline, gallery, sample_args, args, output, data, watch)

    config = common.keep_config(output, args, accelerator, *parsed)

    def run(options: GANTrainArgs) -> Result | None:
        fresh: dict[str, Any] = design.networks(data, accelerator.num_processes)
        return common.fit(fresh, objective, loader, options, accelerator, show, config, resumable(*parsed))

    result = guarded(run, args, watch, accelerator)
    if result is not None and accelerator.is_main_process:
        facts = {"penalties": design.paid, "health": watch.in_words()}
        artifacts.finish(
            pipeline(result.networks), gallery, data, result, args, config, facts, evaluation=watch.entries()
        )


if __name__ == "__main__":
    main()
