"""Train a diffusion or rectified-flow model on images."""

from hfgen.families.diffusion.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, and save the pipeline with samples, metrics and card in `output_dir`."""
    parsed = parse_or_exit(parser(program("diffusion"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    data_args, network_args, noise_args, likelihood_args, align_args, _, solver_args, sample_args, args = parsed

    import hfgen
    from hfgen.families.diffusion import recipe
    from hfgen.families.diffusion.alignment import aligned
    from hfgen.families.diffusion.preview import DenoisingPreview
    from hfgen.families.run import Run

    with Run(parsed, "diffusion") as run:
        network_args, noise_args = recipe.on_base(run, network_args, noise_args, parsed.given)
        recipe.check(data_args, network_args, noise_args, solver_args)
        recipe.check_likelihood(likelihood_args, noise_args, args)
        scheduler = recipe.scheduler_for(run, solver_args, noise_args)
        kind = "rectified flow" if noise_args.path == "straight" else "diffusion"
        data, classes = run.data, run.num_classes(network_args.class_conditional)
        recipe.check_labels(data, classes, noise_args)
        if run.adaptation is None:
            denoiser = hfgen.build_denoiser(
                network_args.model,
                network_args.model_size,
                data.resolution,
                data.channels,
                classes,
                args.gradient_checkpointing,
                null_class=noise_args.label_dropout > 0,
                learned_variance=noise_args.variance != "fixed",
            )
        else:
            denoiser = run.adaptation.new_network(classes, args.gradient_checkpointing)
        names = data.label_names if classes else None
        network, objective = aligned(
            run, align_args, denoiser, recipe.chosen_objective(likelihood_args, noise_args, classes)
        )
        run.train(
            networks={"denoiser": network},
            objective=objective,
            pipeline=lambda networks: hfgen.DenoisingPipeline(
                getattr(networks["denoiser"], "denoiser", networks["denoiser"]), scheduler, classes, names
            ),
            preview=DenoisingPreview(kind.capitalize(), kind, solver_args, sample_args, args.seed),
        )


if __name__ == "__main__":
    main()
