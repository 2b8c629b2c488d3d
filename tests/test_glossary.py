"""The glossary has the technical terms of option help, each with a link to where it is used."""

import dataclasses
import importlib
import re
import typing

import pytest

from hfgen.evaluation.options import EvaluateOptions
from hfgen.registry import FAMILIES
from tests.helpers.toys import ROOT

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^- (.*?)(?=^- |^## |\Z)", GLOSSARY, re.MULTILINE | re.DOTALL)

EVERYDAY = {"HF_TOKEN", "GPUs", "JSON", "NVIDIA", "RGB", "RGBA", "GiB", "MNIST", "UTF", "VAEPipeline"}
"""Acronyms that are no terms of the field."""

TERMS = (
    *("adversarial", "anomal", "autocast", "autoencoder", "bootstrap", "checkpoint", "codebook", "codes", "collapse"),
    *(
        "commitment",
        "consistency",
        "critic",
        "denoising",
        "density",
        "discriminator",
        "dropout",
        "epoch",
        "false-alarm",
    ),
    *("feature network", "feature matching", "free", "generator", "gradient norm", "guidance", "latent", "likelihood"),
    *("logit", "memorisation", "mixture", "moving average", "noise", "null", "optimiser", "perceptual", "prior"),
    *("precision", "recall", "scheduler", "spectral", "variational", "warm-up", "weight decay"),
)
"""Parts of words. Those that stand in some option's help need a place in the glossary."""


def texts():
    """What `--help` says: of each option its help, and the names that it may have as value."""
    groups = {g for family in FAMILIES for g in importlib.import_module(f"hfgen.families.{family}.options").GROUPS}
    for group in sorted({*groups, EvaluateOptions}, key=lambda group: group.__name__):
        for field in dataclasses.fields(group):
            yield field.name, field.metadata.get("help", "")
            for kind in (field.type, *typing.get_args(field.type)):
                if typing.get_origin(kind) is typing.Literal:
                    yield from ((field.name, str(value)) for value in typing.get_args(kind))


def test_acronyms_of_help_are_explained():
    found = {(name, word) for name, text in texts() for word in re.findall(r"\b[A-Z]\w*[A-Z0-9]\w*\b", text)}
    assert len(found) > 10
    headings = " ".join(re.match(r"(.*?):", entry, re.DOTALL)[1] for entry in ENTRIES)
    missing = {pair for pair in found if pair[1] not in EVERYDAY and not re.search(rf"\b{pair[1]}\b", headings)}
    assert not missing


@pytest.mark.parametrize("term", TERMS)
def test_terms_of_help_are_explained(term):
    if any(term in text.lower() for _, text in texts()):
        assert term in GLOSSARY.lower(), term


def test_every_entry_has_an_explanation_and_leads_somewhere():
    assert len(ENTRIES) > 80
    names = []
    for entry in ENTRIES:
        assert re.match(r"\*\*.+?\*\*.*?: .{9}", entry, re.DOTALL), entry
        assert "](" in entry or "see *" in entry, entry
        names.append(re.match(r"\*\*(.+?)\*\*", entry)[1].lower())
    parts = re.split(r"^## (\w) to (\w)$", GLOSSARY, flags=re.MULTILINE)[1:]
    for first, last, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        letters = [name[0] for name in re.findall(r"^- \*\*(.+?)\*\*", text.lower(), re.MULTILINE)]
        assert letters == sorted(letters) and letters[0] >= first.lower() and letters[-1] <= last.lower()
