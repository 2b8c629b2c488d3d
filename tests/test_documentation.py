"""The documentation as a site: all public names are in it, and it builds without a warning where its tools are."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from hfgen.registry import EXPORTS
from tests.helpers.toys import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def tools():
    """The packages of the extra `docs`."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return [re.match(r"[\w-]+", requirement)[0] for requirement in extras["docs"]]


def test_the_tools_are_those_of_make_and_have_versions():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for tool in tools():
        assert re.search(rf"^\t@\$\(DOCS_VENV\).*{tool}", makefile, re.MULTILINE)
        assert f"\n{tool}==" in pinned
    assert "make docs" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_page_has_a_place_in_the_navigation():
    navigation = re.findall(r"- ([\w/]+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(navigation) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert "strict: true" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs; `make docs` has its own")
def test_the_site_builds_without_warnings_and_has_all_public_names(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name, module in EXPORTS.items():
        place = module.removeprefix("hfgen.") if module.startswith("hfgen.pipelines.") else module
        assert not module.startswith("hfgen.") or f'id="{place}.{name}"' in page, name
