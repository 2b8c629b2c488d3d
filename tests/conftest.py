"""What all tests share: no network, and a fresh accelerate state for each."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import pytest

pytest.register_assert_rewrite("tests.helpers.cuts", "tests.helpers.doors", "tests.helpers.processes")


@pytest.fixture(autouse=True)
def same_environment():
    """Give a process that a test starts the same environment whichever tests ran before it."""
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    if after != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    import sys

    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
