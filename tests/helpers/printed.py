"""The list of commands that documents and help print, with their count: `python -m tests.helpers.printed`.

tests/test_printed.py runs them all but those of `NOT_RUN`, and besides what trainings, evaluations and cards print.
"""

import contextlib
import io
import shlex
from pathlib import Path

from hfgen import cli
from hfgen.registry import FAMILIES
from tests.helpers.documents import blocks_of, commands_of, inline_commands
from tests.helpers.toys import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    "git clone": "needs the network",
    "make": "makes environments, or is this run of the tests",
    "bash .ci/run": "is this run of the tests",
    ".venv-test/bin/python -m pip": "installs packages",
    "pip install": "installs packages",
    "hf auth login": "asks for a token",
    "hfgen provenance threes/000000.png --certificate": "needs a certificate; "
    "tests/utils/test_content_credentials.py makes one, and signs",
    "hfgen demo": "answers until it is stopped; tests/demo asks its page, and writes its Spaces",
    "hfgen serve": "answers until it is stopped; tests/web/test_curl.py starts one, and asks what docs/serving.md asks",
    "python benchmarks/": "takes minutes to hours; tests/test_benchmarks.py runs their parts",
    "python examples/": "takes a minute; tests/test_examples.py runs it, with smaller sizes",
    "torchrun": "test_several_processes does, with smaller sizes",
    "hfgen train diffusion --num_processes": "test_several_processes does, with smaller sizes",
}
"""First words of commands that are not run, and why."""


def printed_in(path: Path) -> list[list[str]]:
    """Return all commands of a document in order, blocks before prose."""
    text = path.read_text(encoding="utf-8")
    listed = [words for block in blocks_of(text) if block.kind == "shell" for words in commands_of(block)]
    return [*listed, *inline_commands(text)]


def commands_in(path: Path) -> list[list[str]]:
    """Return those commands of a document that are run."""
    return [words for words in printed_in(path) if reason(words) is None]


def reason(words: list[str]) -> str | None:
    """Return why a command is not run; None if it is."""
    return next((why for start, why in NOT_RUN.items() if shlex.join(words).startswith(start)), None)


def examples() -> list[list[str]]:
    """Return the examples of all help texts."""
    texts = [["--help"], ["train"], ["anomaly"], ["anomaly", "score", "--help"]]
    texts += [[name, "--help"] for name in cli.COMMANDS if name not in ("train", "anomaly")]
    texts += [["train", family, "--help"] for family in FAMILIES]
    found = []
    for words in texts:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            cli.main(words)
        found.append(shlex.split(out.getvalue().split("example:\n")[1]))
    return found


def main() -> None:
    """Print each document's commands, why some are not run, and the count."""
    run = 0
    for name, listed in (*((path.name, printed_in(path)) for path in DOCUMENTS), ("--help", examples())):
        if listed:
            print(f"\n{name}")
        for words in listed:
            why = reason(words)
            run += why is None
            print(f"  {shlex.join(words)}" + ("" if why is None else f"    # not run: {why}"))
    total = sum(len(printed_in(path)) for path in DOCUMENTS) + len(examples())
    print(f"\n{run} of {total} commands are run")


if __name__ == "__main__":
    main()
