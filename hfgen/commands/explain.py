"""`hfgen explain`: small models of several families on points in the plane, and an animation of what they do."""

import dataclasses
from pathlib import Path

from ..options import option, parse, parser

EXAMPLE = "hfgen explain --data moons --families diffusion,rectified_flow,vae,gan --output explain.gif"
TEXT = (
    "Above: the haze is where points should be at this time; dots are drawn points, lines the ways of some. Families "
    "that draw in one pass have no time: their points are moved straight from the latent to the sample. Below: dark "
    "arrows are what was learned, grey ones what is exact for these data, where points come at this time. 'On the "
    "data' counts samples that are no less likely than the least likely hundredth of the data, 'covers' the data with "
    "a sample near."
)


@dataclasses.dataclass
class ExplainOptions:
    """Explanation"""

    data: str = option("eight_gaussians", "eight_gaussians, moons or checkerboard")
    families: str = option("all", "separated by commas: diffusion, rectified_flow, vae, gan; or all")
    steps: int = option(2000, "optimiser steps of each family")
    seed: int = option(0, "of data, networks and noise")
    output: str = option("explain.gif", "where to save the animation: .gif, or .html with a slider")


def main(argv: list[str] | None = None) -> None:
    """Train, draw and save."""
    about = (
        "Train small models of several families on points in the plane and animate how each goes from noise to data."
    )
    (options,) = parse(parser("hfgen explain", about, EXAMPLE, ExplainOptions, config=False), argv, ExplainOptions)
    output = Path(options.output)
    if output.suffix not in (".gif", ".html"):
        raise ValueError(f"--output {options.output!r} must end in .gif or .html.")
    if options.steps < 1:
        raise ValueError(f"--steps {options.steps} must be at least 1.")

    from ..explain.families import FAMILIES, DemoSetup, quality
    from ..explain.problems import problem

    asked = [word.strip() for word in options.families.split(",")]
    names = list(FAMILIES) if asked == ["all"] else list(dict.fromkeys(asked))
    if unknown := [name for name in names if name not in FAMILIES]:
        raise ValueError(
            f"--families {options.families!r}: no {', '.join(unknown)}. Choose from {', '.join(FAMILIES)}."
        )
    school = DemoSetup(problem(options.data), options.steps, options.seed)

    import torch

    from ..explain.drawing import frames, save_gif, save_html

    lessons = []
    for name in names:
        torch.manual_seed(options.seed)  # of the networks: each family starts the same, whoever else is shown
        lessons.append(FAMILIES[name](school))
    facts = [quality(lesson, school) for lesson in lessons]
    for lesson, fact in zip(lessons, facts, strict=True):
        how = f"{lesson.title:15} trained {lesson.seconds:4.0f} s, draws in {lesson.way}:"
        print(f"{how} {fact['inside']:.0%} of samples on the data, {fact['coverage']:.0%} of the data covered")
    output.parent.mkdir(parents=True, exist_ok=True)
    pictures = list(frames(lessons, facts, options.data))
    if output.suffix == ".gif":
        save_gif(pictures, output)
    else:
        save_html(pictures, output, f"From noise to {options.data.replace('_', ' ')}", TEXT)
    print(f"{len(pictures)} frames in {output}")
