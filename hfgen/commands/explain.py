"""`hfgen explain`: small models of several families on points in the plane, and an animation of what they do."""

import dataclasses
from pathlib import Path

from ..disk.files import check_writable
from ..options import Options, option, parse, parser
from ..utils.ranges import COUNT, SEED

EXAMPLE = "hfgen explain --dataset moons --families diffusion,rectified_flow,vae,gan --output explain.gif"
TEXT = (
    "Above: the shade is the density that points should have at this time. Dots are sampled points, lines the "
    "trajectories of some. Families that draw in one pass have no time: their points move straight from the latent to "
    "the sample, over the density of the data. Under an energy's chain is the density of its temperature. Below: dark "
    "arrows are the learned field, grey arrows the exact one, both where points come at this time. 'On the data' is "
    "the share of samples whose density is above the first percentile of the data; coverage is the share of the data "
    "with a sample nearby."
)


@dataclasses.dataclass
class ExplainOptions(Options):
    """Explanation"""

    dataset: str = option("eight_gaussians", "eight_gaussians, moons or checkerboard", former=("data",))
    families: str = option(
        "all", "separated by commas: diffusion, rectified_flow, flow_map, vae, gan, flow, ar, energy; or all"
    )
    max_train_steps: int = option(2000, "optimiser steps of each family", range=COUNT, former=("steps",))
    seed: int = option(0, "seed of data, networks and noise", range=SEED)
    output: str = option("explain.gif", "file for the animation: .gif, or .html with a slider", path=True)


def main(argv: list[str] | None = None) -> None:
    """Train the families, print their quality, and save the animation.

    Raises:
        ValueError: a wrong option.
    """
    description = "Train small models of several families on points in the plane, and animate them from noise to data."
    command = parser("hfgen explain", description, EXAMPLE, ExplainOptions, config=False)
    (options,) = parse(command, argv, ExplainOptions)
    output = Path(options.output)
    if output.suffix not in (".gif", ".html"):
        raise ValueError(f"--output {options.output!r} must end in .gif or .html.")
    check_writable(output)

    from ..explain.drawing import frames, save_gif, save_html
    from ..explain.families import FAMILIES, DemoSetup, quality
    from ..explain.problems import problem
    from ..utils.seeds import seed_initialisation

    words = [word.strip() for word in options.families.split(",")]
    names = list(FAMILIES) if words == ["all"] else list(dict.fromkeys(words))
    if unknown := [name for name in names if name not in FAMILIES]:
        raise ValueError(
            f"--families {options.families!r}: no {', '.join(unknown)}. Choose from {', '.join(FAMILIES)}."
        )
    setup = DemoSetup(problem(options.dataset), options.max_train_steps, options.seed)
    demos = []
    for name in names:
        seed_initialisation(options.seed)  # a family's initial networks do not depend on the other families
        demos.append(FAMILIES[name](setup))
    qualities = [quality(demo, setup) for demo in demos]
    for demo, values in zip(demos, qualities, strict=True):
        line = f"{demo.title:15} trained {demo.seconds:4.0f} s, draws in {demo.method}:"
        print(f"{line} {values['inside']:.0%} of samples on the data, {values['coverage']:.0%} of the data covered")
    pictures = list(frames(demos, qualities, options.dataset))
    if output.suffix == ".gif":
        save_gif(pictures, output)
    else:
        save_html(pictures, output, f"From noise to {options.dataset.replace('_', ' ')}", TEXT)
    print(f"{len(pictures)} frames in {output}")
