"""What commands print about options: one name for one thing, errors of a line, help in two lengths, recipes, paths."""

import dataclasses
import importlib
import os
import re
import shlex
import sys

import pytest
import yaml

from hfgen import cli, options
from hfgen.command_line import option_errors
from hfgen.command_line.parser import COMMAND, program
from hfgen.command_line.recipes import UNKNOWN, configuration_file, read_recipe, recipes
from hfgen.families.diffusion.options import GROUPS as DIFFUSION
from hfgen.options import parse, parse_words, parser
from hfgen.registry import FAMILIES
from tests.helpers.toys import ROOT
from tests.test_ranges import doors

LISTED = doors()
LISTED["push"] = ("hfgen.commands.push", (importlib.import_module("hfgen.commands.push").PushOptions,), ["x", "a/b"])
each_command = pytest.mark.parametrize("name", LISTED)


def command_of(name):
    """The parser of a command, and words that it needs."""
    _, groups, words = LISTED[name]
    return parser(f"hfgen {name}", "Text.", "example", *groups), groups, words


def fields(groups):
    return [field for group in groups for field in dataclasses.fields(group) if not field.metadata.get("positional")]


def new_fields(name):
    """The options of a command that no command before it has in the same words."""
    names = list(LISTED)
    known = [field for other in names[: names.index(name)] for field in fields(LISTED[other][1])]
    known = {(field.name, field.metadata["help"]) for field in known}
    return [field for field in fields(LISTED[name][1]) if (field.name, field.metadata["help"]) not in known]


def complaint(capsys, command, words):
    """The line that ends a command."""
    with pytest.raises(SystemExit) as stop:
        options.parse_words(command, words)
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    for foreign in ("Expected a", "Parser key", "Union", "Literal", "<class", "argument --", "Traceback"):
        assert foreign not in errors, errors
    return errors


def wrong(field):
    """A text that is no value of an option; None for one that takes any text."""
    kind = option_errors.wanted(field.type)
    if kind == "a text":
        return None
    return "tenth" if "one of" in kind or "number" in kind else "perhaps"


# --- wrong values -----------------------------------------------------------------------------------------------------


@each_command
def test_every_option_with_a_wrong_value_is_answered_in_a_line(name, capsys, tmp_path):
    command, _, words = command_of(name)
    for field in new_fields(name):
        value = wrong(field)
        if value is None:
            continue
        message = complaint(capsys, command, [*words, f"--{field.name}", value])
        assert f"--{field.name}" in message and repr(value) in message
        for choice in option_errors.choices_of(field.type):
            assert str(choice) in message
        config = tmp_path / "a b.yaml"
        config.write_text(yaml.safe_dump({field.name: value}))
        assert complaint(capsys, command, [*words, "--config", str(config)]).startswith(
            f"error: {config}: {field.name}: "
        )


@each_command
def test_every_option_without_a_value_says_what_it_needs(name, capsys):
    command, _, words = command_of(name)
    for field in new_fields(name):
        if field.type is not bool:
            message = complaint(capsys, command, [*words, f"--{field.name}"])
            assert f"--{field.name} needs a value: " in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_train_steps", "ten"], "--max_train_steps: 'ten' is no whole number; it must be at least 1."),
        (["--max_train_steps", "[1]"], "--max_train_steps: '[1]' is no whole number; it must be at least 1."),
        (["--max_train_steps", "1e3"], "--max_train_steps: '1e3' is no whole number; it must be at least 1."),
        (["--resolution", "true"], "--resolution: 'true' is no whole number; it must be from 1 to 16384."),
        (["--max_train_steps="], "--max_train_steps: '' is no whole number; it must be at least 1."),
        (["--path", "x"], "--path: must be one of straight, vp, cosine, ve, linear_vp, cosine_vp; got 'x'."),
        (["--channels", "2"], "--channels: must be one of 1, 3, 4; got '2'."),
        (["--mixed_precision", "fp8"], "--mixed_precision: must be one of no, bf16, fp16; got 'fp8'."),
        (["--use_ema", "perhaps"], "--use_ema: 'perhaps' is neither true nor false."),
        (["--no_use_ema", "x"], "--use_ema: 'x' is neither true nor false."),
        (["--learning_rate", "a\nb"], "--learning_rate: 'a b' is no number; it must be above 0."),
        (["--learning_rate", "9" * 500 + "x"], "9...' is no number"),
        (
            ["--learning_rte", "1"],
            "--learning_rte is no option of hfgen train diffusion; did you mean --learning_rate?",
        ),
        (["--epochs", "1"], "--epochs is no option of hfgen train diffusion; did you mean --num_epochs?"),
        (["--batch-size", "1"], "did you mean --eval_batch_size or --train_batch_size?"),
        (["--zzzz", "1"], "--zzzz is no option of hfgen train diffusion; --help_all lists all."),
        (["digits"], "hfgen train diffusion takes no 'digits': values follow their option, as in --option value."),
        (["--seed", "1:30:00"], "--seed: '1:30:00' is no whole number; it must be from 0 to 2147483647."),
        (["--learning_rate=-1:30.5"], "--learning_rate: '-1:30.5' is no number; it must be above 0."),
        (["--seed", "--path", "vp"], "--seed needs a value: a whole number, from 0 to 2147483647."),
        (["--config"], "--config needs a value"),
    ],
)
def test_messages(capsys, words, message):
    assert message in complaint(capsys, parser("hfgen train diffusion", "x", "x", *DIFFUSION), words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: ten", ": seed: 'ten' is no whole number; it must be from 0 to 2147483647."),
        ("seed: {a: 3}", ": seed: \"{'a': 3}\" is no whole number"),
        ("seed: 1:30:00", ": seed: '1:30:00' is no whole number; it must be from 0 to 2147483647."),
        ("learning_rate: 1:30.5", ": learning_rate: '1:30.5' is no number; it must be above 0."),
        ("seed:", ": seed has no value; leave the line out for the default."),
        ("output_dir: ~", ": output_dir has no value; leave the line out for the default."),
        ("sed: 1", ": sed is no option of hfgen train diffusion; did you mean seed?"),
        ("seed: [", ", line 2: not valid YAML"),
        ("hello", ": a configuration has lines 'name: value'"),
        ("", ": a configuration has lines 'name: value'"),
        ("- seed: 1", ": a configuration has lines 'name: value'"),
        ("1: 2", ": a configuration has lines 'name: value'"),
        ("dataset: 2", ": dataset: '2' is no text; put it in quotes."),
        ("use_ema: 2", ": use_ema: '2' is neither true nor false."),
        ("path: x", ": path: must be one of straight"),
    ],
)
def test_messages_about_a_file_name_file_and_key(capsys, tmp_path, text, message):
    config = tmp_path / "own's.yaml"
    config.write_text(text)
    command = parser("hfgen train diffusion", "x", "x", *DIFFUSION)
    assert f"{config}{message}" in complaint(capsys, command, ["--seed", "1", "--config", str(config)])
    config.write_bytes(b"seed: \xff")
    assert f"{config} is no text in UTF-8" in complaint(capsys, command, [f"--config={config}"])


@pytest.mark.parametrize("text", ["1e3", ".5e3", "010", "1:30", "2001-01-01", "no", "~x", "=", "a: b", "é"])
def test_a_printed_configuration_is_read_back(text, tmp_path):
    """Texts that look like numbers, too, and numbers are those of the command line."""
    command, config = parser("hfgen train diffusion", "x", "x", *DIFFUSION), tmp_path / "a.yaml"
    values = parse_words(command, [f"--dataset={text}", "--seed=010", "--learning_rate=1e-5"])
    config.write_text(command.dump(values))
    assert parse_words(command, ["--config", str(config)]).as_dict() == values.as_dict()
    config.write_text("seed: 010\nlearning_rate: 1e-5")
    given = parse_words(command, ["--config", str(config)])
    assert (given.seed, given.learning_rate) == (values.seed, values.learning_rate) == (10, 1e-5)


def test_what_is_missing_is_named(capsys):
    for name, (_, _, words) in LISTED.items():
        if words:
            assert " is missing: " in complaint(capsys, command_of(name)[0], words[1:])


# --- names ------------------------------------------------------------------------------------------------------------


FORMER = [(name, old, new) for name in LISTED for old, new in command_of(name)[0].former.items()]


@pytest.mark.parametrize(("name", "old", "new"), FORMER)
def test_a_former_name_is_accepted_with_a_hint(name, old, new, capsys, tmp_path):
    command, groups, words = command_of(name)
    (field,) = (field for field in fields(groups) if field.name == new)
    value = [] if field.type is bool else ["2m" if new == "train_budget" else "2"]
    expected = parse(command, [*words, f"--{new}", *value], *groups)
    assert "is now" not in capsys.readouterr().err
    assert parse(command, [*words, f"--{old}", *value], *groups) == expected
    assert capsys.readouterr().err == f"note: --{old} is now --{new}; the old name will go.\n"
    config = tmp_path / "old.yaml"
    config.write_text(yaml.safe_dump({old: next(getattr(group, new) for group in expected if hasattr(group, new))}))
    assert parse(command, [*words, "--config", str(config)], *groups) == expected
    assert capsys.readouterr().err == f"note: {config}: {old} is now {new}; the old name will go.\n"
    config.write_text(f"{old}: 2\n{new}: 2\n")
    assert f"{old} and {new} are one option" in complaint(capsys, command, [*words, "--config", str(config)])


def test_former_names_are_nobodys_and_one_thing_has_one_name():
    assert len(FORMER) >= 20
    for name in LISTED:
        command, groups, _ = command_of(name)
        names = {field.name for field in fields(groups)}
        assert not names & set(command.former), name
        assert not names & {"num", "steps", "class_label", "batches", "preview", "private", "epochs", "eval_images"}


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LISTED if name != "tones"])
def test_help_has_two_screens_with_an_example_and_says_where_the_rest_is(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    command, groups, _ = command_of(name)
    short, whole = command.format_help(), command.format_help_all()
    assert len(short.splitlines()) <= 60 and max(map(len, short.splitlines())) <= 120
    assert short.splitlines()[-2:] == ["example:", "  example"] == whole.splitlines()[-2:]
    for field in fields(groups):
        assert f"--{field.name}" in whole
    if short != whole:
        assert f"all {len(command.fields)} options: {command.prog} --help_all" in short
    if name.startswith("train "):
        flags = re.findall(r"^  --(\w+)", short, re.MULTILINE)
        basics = ["output_dir", "dataset", "max_train_steps", "train_batch_size"]
        first_of_its_own = next(flag for flag in ("model", "pipeline", "text", "noise", "model_size") if flag in flags)
        if first_of_its_own == "text":  # words have no data set of images
            basics.remove("dataset")
        places = [flags.index(flag) for flag in basics]
        assert places == sorted(places) and flags.index(first_of_its_own) > places[-1]


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in ("train", "anomaly")])
def test_every_command_has_both_lengths(name, capsys):
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stop:
            cli.main([name, flag])
        assert not stop.value.code and capsys.readouterr().out.startswith(f"usage: hfgen {name} ")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_door_says_what_was_typed(family, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        cli.main(["train", family, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: hfgen train {family} [options]")
    assert COMMAND not in os.environ
    door = importlib.import_module(FAMILIES[family].door)
    with pytest.raises(SystemExit):
        door.main(["--zzzz"])
    assert capsys.readouterr().err == (f"error: --zzzz is no option of hfgen train {family}; --help_all lists all.\n")
    monkeypatch.setitem(sys.modules, "__main__", type(sys)("__main__"))
    monkeypatch.setattr(sys, "argv", [f"training/train_{family}.py", "--zzzz"])
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert program(family) == f"python training/train_{family}.py"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert program(family) == f"torchrun training/train_{family}.py"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert program(family) == f"accelerate launch training/train_{family}.py"
    monkeypatch.setenv(COMMAND, "hfgen anomaly fit")
    assert program(family) == "hfgen anomaly fit"


@pytest.mark.parametrize(
    ("words", "called"), [(["train", "vae"], "hfgen train vae"), (["anomaly", "fit"], "hfgen anomaly fit")]
)
def test_the_process_that_a_training_becomes_says_what_was_typed(words, called, monkeypatch):
    seen = {}

    def execve(_, __, environment):
        seen.update(environment)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit):
        cli.main([*words, "--num_processes", "1"])
    assert seen[COMMAND] == called


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_a_recipe_is_found_by_name_from_anywhere_and_a_file_goes_first(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configuration_file("mnist") == ROOT / "training" / "configs" / "mnist.yaml"
    (tmp_path / "mnist").mkdir()  # a folder of data, most likely
    assert configuration_file("mnist").name == "mnist.yaml"
    (tmp_path / "vae_digits").write_text("seed: 3\n")
    assert configuration_file("vae_digits").read_text() == "seed: 3\n"
    for wrong_name, hint in (("mnits", "mnist"), ("training/configs/mnist.yaml", "mnist"), ("vae_digit", "vae_digits")):
        with pytest.raises(ValueError, match=rf"--config {wrong_name} is no file, .*did you mean --config {hint}\?"):
            configuration_file(wrong_name)
    with pytest.raises(
        ValueError,
        match=r"recipes of hfgen: ar_digits, cifar10, cifar10_latent, digits, distill_cifar10, distill_digits, "
        "distill_gan_mnist, distill_mnist, energy_digits, flow_digits, flow_map_cifar10, flow_map_mnist, gan_digits, ",
    ):
        configuration_file("zzzzzz")
    command = parser("hfgen train diffusion", "x", "x", *DIFFUSION)
    assert "can't be read: File name too long." in complaint(capsys, command, ["--config", "a" * 5000])
    assert "did you mean --config mnist?" in complaint(capsys, command, ["--config", "mnits"])
    values = options.parse_words(command, ["--config", "mnist", "--seed", "3"])
    assert (values.dataset, values.seed, values.max_train_steps) == ("ylecun/mnist", 3, 1500)


def test_recipes_are_listed_with_what_was_measured(capsys):
    cli.main(["recipes"])
    listing = capsys.readouterr().out
    for name, recipe in recipes().items():
        assert f"{name}\n  " in listing and recipe.command in listing
        assert recipe.family in FAMILIES and set(recipe.facts) == {"time", "memory", "quality"}
        cli.main(["recipes", name])
        shown = capsys.readouterr().out
        assert shown.split("\n\n")[0].rsplit("\n", 1)[0] in listing
        assert yaml.safe_load(shown.split("\n\n", 1)[1]) == yaml.safe_load(recipe.path.read_text())
    assert UNKNOWN in listing
    for words in (["recipes", "mnits"], ["recipes", "zzz"]):
        with pytest.raises(SystemExit):
            cli.main(words)
    errors = capsys.readouterr().err.splitlines()
    assert (
        errors[0] == "error: no recipe 'mnits'; did you mean mnist?" and "there are: ar_digits, cifar10, " in errors[1]
    )


def test_documents_say_of_recipes_what_their_files_say():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for name, recipe in recipes().items():
        facts = recipe.facts
        assert f"| `{name}` | {recipe.text} | {facts['time']} | {facts['memory']} | {facts['quality']} |" in text


def test_a_header_without_its_entries_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("# family: vae\n# what: text\n#   that goes on\nseed: 1\n")
    recipe = read_recipe(path)
    assert recipe.text == "text that goes on" and set(recipe.facts.values()) == {UNKNOWN}
    for header, message in (("# family: vae\n", "no what"), ("# Some text.\n", "no entry")):
        path.write_text(header)
        with pytest.raises(ValueError, match=message):
            read_recipe(path)


# --- paths ------------------------------------------------------------------------------------------------------------


@each_command
def test_the_home_folder_is_meant_by_a_tilde_in_every_path(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command, groups, words = command_of(name)
    paths = [field.name for field in fields(groups) if field.metadata.get("path")]
    config = tmp_path / "c.yaml"
    for path in {field.name for field in new_fields(name)} & set(paths):
        config.write_text(f"{path}: ~/a b\n")
        for given in ([f"--{path}", "~/a b"], [f"--{path}=~/a b"], ["--config", "~/c.yaml"]):
            values = options.as_dict(*parse(command, [*words, *given], *groups))
            assert values[path] == str(tmp_path / "a b"), path
    for group in groups:
        for field in dataclasses.fields(group):
            if (
                not field.name.endswith("split")
                and re.search(r"\b(folder|file)\b", field.metadata["help"])
                and field.type in (str, str | None)
            ):
                assert field.metadata.get("path"), f"--{field.name} may be a path"


def test_the_example_of_a_command_survives_a_shell():
    for name, (_, module) in cli.COMMANDS.items():
        example = getattr(importlib.import_module(module), "EXAMPLE", None)
        assert example is None or shlex.split(example)[:2] == ["hfgen", name]
