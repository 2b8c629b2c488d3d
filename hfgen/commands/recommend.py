"""`hfgen recommend`: which model, when? Answered from the measurements of an `hfgen compare` report."""

import dataclasses
import re
import sys
from collections.abc import Mapping

from ..compare.recommend import ABILITIES, NUMBERS, Wish, read, recommend
from ..compare.rules import check_rules, rules_table
from ..options import option, parse, parser

EXAMPLE = "hfgen recommend --latency 20ms --needs likelihood,latent-edit --train_budget 30m --report report.json"


@dataclasses.dataclass
class RecommendOptions:
    """Wishes"""

    latency: str | None = option(None, "longest wait for one image (95 of 100 are faster), such as 20ms or 1.5s")
    needs: str | None = option(None, f"what it must be able to do, separated by commas: {', '.join(ABILITIES)}")
    train_budget: str | None = option(None, "longest training, such as 90s, 30m or 2h")
    memory: str | None = option(None, "most memory while training, such as 512MB or 2GB")
    report: str | None = option(None, "report.json of hfgen compare; default: the one on MNIST that comes with hfgen")
    rules: bool = option(False, "check textbook rules of thumb against the report, and say which hold")


def main(argv: list[str] | None = None) -> None:
    """Recommend, or check the rules of thumb; exits with 1 where nothing fits."""
    about = "Pick family, network size, scheduler and steps from measured results, and say why."
    command = parser("hfgen recommend", about, EXAMPLE, RecommendOptions, config=False)
    words = [
        re.sub(r"^--[\w-]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word)
        for word in (sys.argv[1:] if argv is None else argv)
    ]
    (options,) = parse(command, words, RecommendOptions)
    asked = wishes(options)
    if options.rules and asked:
        raise ValueError(f"--rules checks the whole report; it takes no {asked[0].text.split()[0]}. Leave one out.")
    report = read(options.report)
    if options.report is None:
        print("No --report is given: these are the measurements on MNIST that come with hfgen.\n")
    if options.rules:
        print(rules_table(check_rules(report)))
        return
    text, fits = recommend(report, asked)
    print(text)
    if not fits:
        raise SystemExit(1)


def quantity(text: str, units: Mapping[str, float], flag: str) -> float:
    """The number of "20ms" in units where 1 is 1.

    Raises:
        ValueError: no positive number with one of the units.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]+)\s*", text)
    unit = found and next((unit for unit in units if unit.lower() == found[2].lower()), None)
    if unit is None or float(found[1]) == 0:
        raise ValueError(f"{flag} {text!r} needs a positive number and a unit: {', '.join(f'20{u}' for u in units)}.")
    return float(found[1]) * units[unit]


def wishes(options: RecommendOptions) -> list[Wish]:
    """What the options ask for."""
    asked = []
    for name, (units, of, shown) in NUMBERS.items():
        if (text := getattr(options, name)) is not None:
            flag = f"--{name.replace('_', '-')}"
            asked.append(Wish(f"{flag} {text}", of, quantity(text, units, flag), shown=shown))
    needs = [] if options.needs is None else [word.strip() for word in options.needs.split(",")]
    for need in needs:
        if need not in ABILITIES:
            raise ValueError(f"--needs {options.needs!r}: {need!r} is not known. Choose from {', '.join(ABILITIES)}.")
    return [*asked, *(Wish(f"--needs {need}", ability=need) for need in dict.fromkeys(needs))]
