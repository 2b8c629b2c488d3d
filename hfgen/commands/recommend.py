"""`hfgen recommend`: choose a model from the measurements of an `hfgen compare` report."""

import dataclasses
import re
import sys

from ..compare.recommend import ABILITIES, QUANTITIES, Requirement, load_report, recommend
from ..compare.rules import check_rules, rules_table
from ..options import Options, option, parse, parser

EXAMPLE = (
    "hfgen recommend --latency 20ms --needs likelihood,latent-edit --train_budget 30m "
    "--report outputs/compare/report.json"
)


@dataclasses.dataclass
class RecommendOptions(Options):
    """Requirements"""

    latency: str | None = option(
        None, "longest time for one image (95th percentile), such as 20ms or 1.5s", range=QUANTITIES["latency"].amounts
    )
    needs: str | None = option(None, f"required abilities, separated by commas: {', '.join(ABILITIES)}")
    train_budget: str | None = option(
        None, "longest training, such as 90s, 30m or 2h", range=QUANTITIES["train_budget"].amounts
    )
    memory: str | None = option(
        None, "most memory in training, such as 512MB or 2GB", range=QUANTITIES["memory"].amounts
    )
    report: str | None = option(
        None, "report.json of hfgen compare; default: the one on MNIST that comes with hfgen", path=True
    )
    rules: bool = option(False, "check textbook rules of thumb against the report, and print which hold")


def main(argv: list[str] | None = None) -> None:
    """Print a recommendation, or the check of rules of thumb. Dashes in flags count as underscores.

    Raises:
        SystemExit: with status 1, after printing, if no setting meets every requirement.
        ValueError: a wrong option or file.
    """
    description = "Choose family, network size, scheduler and steps from measured results, and explain the choice."
    command = parser("hfgen recommend", description, EXAMPLE, RecommendOptions, config=False)
    words = [
        re.sub(r"^--[\w-]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word)
        for word in (sys.argv[1:] if argv is None else argv)
    ]
    (options,) = parse(command, words, RecommendOptions)
    requirements = parse_requirements(options)
    if options.rules and requirements:
        raise ValueError(
            f"--rules checks the whole report; it takes no {requirements[0].text.split()[0]}. Leave one out."
        )
    report = load_report(options.report)
    if options.report is None:
        print("Without --report, these are the measurements on MNIST that come with hfgen.\n")
    if options.rules:
        print(rules_table(check_rules(report)))
        return
    text, match = recommend(report, requirements)
    print(text)
    if not match:
        raise SystemExit(1)


def parse_requirements(options: RecommendOptions) -> list[Requirement]:
    """Return the requirements in the options: limits first, then abilities.

    Raises:
        ValueError: an unknown ability.
    """
    result = []
    for name, quantity in QUANTITIES.items():
        if (text := getattr(options, name)) is not None:
            flag = f"--{name.replace('_', '-')}"
            result.append(Requirement(f"{flag} {text}", quantity, quantity.amounts.parse(text)))
    needs = [] if options.needs is None else [word.strip() for word in options.needs.split(",")]
    for need in needs:
        if need not in ABILITIES:
            raise ValueError(f"--needs {options.needs!r}: {need!r} is not known. Choose from {', '.join(ABILITIES)}.")
    return [*result, *(Requirement(f"--needs {need}", ability=need) for need in dict.fromkeys(needs))]
