"""Runs that began when options had other defaults go on as they began."""

import dataclasses
import json

import pytest

from hfgen.families.former_defaults import keep_former_defaults
from hfgen.options import TrainArgs, option, parse, parser, variant
from hfgen.training import train_diffusion
from hfgen.utils.ranges import Options
from tests.helpers.doors import run_door


@dataclasses.dataclass
class Choices(Options):
    """Options"""

    first: str = option("new", "changed", former_default="old")
    second: int = option(2, "changed", former_default=1)
    third: str = option("new", "never changed")


def saved(folder, **config):
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / "checkpoint-3" / "state.json").write_text(json.dumps({"step": 3, "config": config}))


@pytest.mark.parametrize(
    "config, given, expected",
    [
        ({"first": "old", "second": 1, "third": "old"}, {}, ("old", 1, "new")),
        ({"first": "new", "second": 2}, {}, ("new", 2, "new")),
        ({}, {}, ("old", 1, "new")),  # from before the options
        ({"first": "old", "second": 1}, {"first": "other"}, ("other", 1, "new")),
        ({"first": "other", "second": 7}, {}, ("new", 2, "new")),  # left to the comparison, which refuses
    ],
)
def test_options_at_their_defaults_are_those_that_the_run_began_with(tmp_path, config, given, expected):
    saved(tmp_path, **config)
    options = Choices(**given)
    note = keep_former_defaults([TrainArgs(), options], tmp_path, "latest")
    assert dataclasses.astuple(options) == expected
    changed = [f"{name}={value}" for name, value in (("first", "old"), ("second", 1)) if value in expected]
    assert (note is None) == (not changed) and all(each in note for each in changed)


def test_what_was_given_stays(tmp_path):
    saved(tmp_path, first="old", second=1)
    options = Choices()
    note = keep_former_defaults([options], tmp_path, "latest", given={"first"})
    assert dataclasses.astuple(options) == ("new", 1, "new") and "first" not in note


def test_what_was_given_is_known_by_its_name(tmp_path):
    (tmp_path / "a.yaml").write_text("second: 2\n")
    command = parser("hfgen", "", "", Choices)
    parsed = parse(command, ["--config", str(tmp_path / "a.yaml"), "--third=new"], Choices)
    assert parsed == [Choices()] and parsed.given_of(Choices) == {"second": 2, "third": "new"}
    assert parse(command, [], Choices).given_of(Choices) == {}


def test_what_was_given_is_known_where_a_subclass_takes_its_place():
    @dataclasses.dataclass
    class Others(Choices):
        """Options"""

        fourth: int = option(4, "its own")

    parsed = parse(
        parser("hfgen", "", "", TrainArgs, Others), ["--fourth=5", "--second=7", "--seed=3"], TrainArgs, Others
    )
    assert parsed.given_of(Choices) == {"second": 7} and parsed.given_of(TrainArgs) == {"seed": 3}


@pytest.mark.parametrize("state", [None, "{", "[]", '{"config": 3}'])
def test_without_a_checkpoint_that_can_be_read_nothing_changes(tmp_path, state):
    if state is not None:
        saved(tmp_path)
        (tmp_path / "checkpoint-3" / "state.json").write_text(state)
    options = Choices()
    assert keep_former_defaults([options], tmp_path, "latest") is None and options == Choices()


def test_a_variant_keeps_what_the_default_was():
    @dataclasses.dataclass
    class Others(Choices):
        """Options"""

        first: str = variant(Choices, "first", "newer")

    saved_fields = {field.name: field.metadata["former_default"] for field in dataclasses.fields(Others)}
    assert (saved_fields["first"], saved_fields["second"]) == ("old", 1)


FEW = ["--max_train_samples", "16", "--train_batch_size", "8", "--model_size", "xs", "--lr_warmup_steps", "0"]
FEW += ["--eval_batch_size", "4", "--num_inference_steps", "2", "--report_to", "none", "--sample_steps", "0"]
FORMER = ["--optimizer", "adamw", "--time_sampling", "low_discrepancy"]


def test_a_run_of_the_door_goes_on_and_another_one_is_refused(tmp_path, capsys):
    folder = str(tmp_path / "run")

    def train(steps, *words):
        return run_door(
            train_diffusion.main, capsys, *FEW, "--output_dir", folder, "--max_train_steps", str(steps), *words
        )

    assert train(2, *FORMER)[0] == 0
    assert "optimizer: adamw -> rmsprop" in train(4, "--optimizer", "rmsprop")[2]
    (tmp_path / "muon.yaml").write_text("optimizer: muon\n")
    for words in (["--optimizer", "muon"], ["--config", str(tmp_path / "muon.yaml")]):  # the default, as it was given
        status, _, errors = train(4, *words)
        assert status and "optimizer: adamw -> muon" in errors and "began with optimizer" not in errors
    status, out, errors = train(4)
    assert status == 0 and "began with optimizer=adamw, time_sampling=low_discrepancy" in errors
    assert "at step 2 of 4" in out and "Changed since it was saved: max_train_steps: 2 -> 4.\n" in out
