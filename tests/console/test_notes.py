"""What libraries warn of, on the console of a command."""

import os
import subprocess
import sys
import warnings

import pytest

from hfgen.console.notes import own_console
from tests.helpers.toys import ROOT

WARNING = """
import warnings
from hfgen.console.notes import own_console
{own}
warnings.warn("the file \\x1b[2J'a' of\\n  this data set is old.", FutureWarning)
warnings.warn("once", UserWarning)
"""


def said(own, **variables):
    """What a process prints on standard error."""
    command = [sys.executable, "-W", "always", "-c", WARNING.format(own=own)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_a_warning_is_one_harmless_line_without_a_place_in_the_code():
    lines = said("own_console()")
    assert lines[1:] == ["warning: once"] and len(lines) == 2
    assert lines[0].startswith("warning: the file ") and lines[0].endswith("'a' of this data set is old.")
    assert "\x1b" not in lines[0]


def test_only_the_main_process_of_a_launch_warns():
    assert said("own_console()", RANK="1") == []


def test_a_program_of_ones_own_keeps_pythons_format():
    assert any("FutureWarning" in line for line in said(""))


def test_recorded_warnings_stay_those_of_the_recorder():
    own_console()
    with pytest.warns(UserWarning, match="seen"):
        warnings.warn("seen", UserWarning, stacklevel=1)
