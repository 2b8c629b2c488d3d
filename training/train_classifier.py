"""Train a classifier of images with noise, whose gradient guides a denoiser of the same path."""

from hfgen.families.classifier.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, and save the classifier with its accuracies and card in `output_dir`."""
    parsed = parse_or_exit(parser(program("classifier"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    _, classifier_args, args = parsed

    import hfgen
    from hfgen.data.selection import labelled_part
    from hfgen.families.classifier import recipe
    from hfgen.families.classifier.preview import ClassifierPreview
    from hfgen.families.gan.recipe import augmentations
    from hfgen.families.run import Run
    from hfgen.paths import path_from_config
    from hfgen.registry import PATHS

    with Run(parsed, "classifier") as run:
        data, facts = labelled_part(run.data), PATHS[classifier_args.path]
        scheduler = hfgen.DDIMScheduler.from_config({**facts, "prediction_type": "v_prediction"})
        run.train(
            networks={"classifier": recipe.build(data, classifier_args.model_size)},
            objective=hfgen.NoisyClassification(
                *(path_from_config(facts), classifier_args.noise, classifier_args.label_smoothing),
                augmentations(classifier_args.augment),
            ),
            pipeline=lambda networks: hfgen.NoisyClassifierPipeline(
                networks["classifier"], scheduler, data.num_classes, data.label_names
            ),
            preview=ClassifierPreview(args.seed),
            data=data,
            complete=lambda pipeline: recipe.measure(pipeline, data, classifier_args.path, classifier_args.noise),
        )


if __name__ == "__main__":
    main()
