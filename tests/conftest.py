"""What all tests share: no network, and a fresh accelerate state for each."""

import os
from collections import Counter

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import pytest

pytest.register_assert_rewrite("tests.helpers.cuts", "tests.helpers.doors", "tests.helpers.processes")

LONG = ("test_notebooks.py", "test_docs.py", "test_printed.py", "test_compare.py", "test_portable.py")
"""Files of few tests that take long."""


def pytest_collection_modifyitems(items):
    """Begin with the long files, then those of many tests: else one worker is left with a long file at the end."""
    counts = Counter(item.path for item in items)
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (places.get(item.path.name, len(LONG)), -counts[item.path], str(item.path)))


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
