"""Progress bars: for people alone, late, one at a time, and gone without a trace."""

import contextlib
import functools
import io
import time

import pytest
import torch

import hfgen
from hfgen.console import progress
from hfgen.console.progress import ProgressBar, quiet
from hfgen.families.fit_mixture import fit_mixture


class Terminal(io.StringIO):
    """Standard error of a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Bars appear at once."""
    monkeypatch.setattr(progress, "BAR_DELAY", 1e-9)
    monkeypatch.setattr("hfgen.pipelines.parts.BAR_DELAY", 1e-9)


def on_terminal(test):
    """A test with standard error on a terminal, which it gets. (A fixture's would be pytest's again in the test.)"""

    def run(monkeypatch):
        with contextlib.redirect_stderr(Terminal()) as terminal:
            test(terminal, monkeypatch)

    run.__name__ = test.__name__
    return run


def remains(text):
    """What a terminal shows at the end: of each line what was last written over it."""
    return "".join(line.split("\r")[-1] for line in text.split("\n")).strip()


def count_to(number, desc):
    for _ in ProgressBar(range(number), desc=desc, mininterval=0):
        time.sleep(0.01)


def pipeline_of_steps():
    network = hfgen.DiTModel(8, 1, 1, 2, hidden_size=8, num_layers=1, num_attention_heads=1)
    return hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler())


@on_terminal
def test_a_bar_is_shown_on_a_terminal_and_leaves_nothing(terminal, monkeypatch):
    count_to(10, "Drawing")
    assert "Drawing" in terminal.getvalue() and "9/10" in terminal.getvalue()
    assert remains(terminal.getvalue()) == ""


@on_terminal
def test_what_is_quick_has_no_bar(terminal, monkeypatch):
    monkeypatch.setattr(progress, "BAR_DELAY", 1.0)
    count_to(3, "quick")
    assert terminal.getvalue().strip() == ""


def test_nothing_is_written_to_a_pipe(capfd, tmp_path):
    count_to(5, "hidden")
    pipeline_of_steps().save_pretrained(tmp_path)
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path)
    pipeline(num_inference_steps=3)
    assert capfd.readouterr().err == ""


@on_terminal
def test_one_bar_at_a_time(terminal, monkeypatch):
    for _ in ProgressBar(range(3), desc="outer", mininterval=0):
        count_to(2, "inner")
    assert "outer" in terminal.getvalue() and "inner" not in terminal.getvalue()
    count_to(3, "later")
    assert "later" in terminal.getvalue()


@on_terminal
def test_a_bar_that_an_error_ends_makes_room(terminal, monkeypatch):
    with pytest.raises(ZeroDivisionError), ProgressBar(total=5, desc="first"):
        _ = 1 / 0
    count_to(3, "second")
    assert "second" in terminal.getvalue()


@on_terminal
def test_pipelines_have_diffusers_bar_with_these_rules(terminal, monkeypatch):
    pipeline = pipeline_of_steps()
    pipeline.set_progress_bar_config(mininterval=0)
    pipeline(num_inference_steps=3)
    assert "2/3" in terminal.getvalue() and remains(terminal.getvalue()) == ""
    pipeline.set_progress_bar_config(disable=True)
    before = terminal.getvalue()
    pipeline(num_inference_steps=3)
    assert terminal.getvalue() == before
    pipeline.set_progress_bar_config(leave=True, desc="mine")
    pipeline(num_inference_steps=3)
    assert "mine" in remains(terminal.getvalue())


@on_terminal
def test_a_quiet_pipeline_is_as_its_user_chose_afterwards(terminal, monkeypatch):
    pipeline = pipeline_of_steps()
    pipeline.set_progress_bar_config(desc="mine", mininterval=0)
    with quiet(pipeline):
        pipeline(num_inference_steps=2)
    assert terminal.getvalue() == ""
    pipeline(num_inference_steps=2)
    assert "mine" in terminal.getvalue()


@on_terminal
def test_a_bar_of_a_pipeline_is_hidden_under_another(terminal, monkeypatch):
    pipeline = pipeline_of_steps()
    pipeline.set_progress_bar_config(desc="inner", mininterval=0)
    for _ in ProgressBar(range(2), desc="outer", mininterval=0):
        pipeline(num_inference_steps=2)
    assert "outer" in terminal.getvalue() and "inner" not in terminal.getvalue()


@on_terminal
def test_a_mixture_is_the_same_under_a_bar(terminal, monkeypatch):
    x = torch.randn(200, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("hfgen.families.fit_mixture.ProgressBar", functools.partial(ProgressBar, mininterval=0))
    shown = fit_mixture(x, 2)
    assert "Fitting a mixture" in terminal.getvalue() and remains(terminal.getvalue()) == ""
    terminal.isatty = lambda: False
    assert torch.equal(shown.means, fit_mixture(x, 2).means)
