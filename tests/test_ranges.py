"""Every numeric option of every command has a range, which the command line, YAML and Python check before all else."""

import dataclasses
import importlib
import math
import pkgutil
import re
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml

import hfgen
import hfgen.commands
from hfgen import cli, registry
from hfgen.compare.budget import Budget
from hfgen.options import SampleArgs, TrainArgs, fill, option, parse, parse_or_exit, parser
from hfgen.paths import StraightPath
from hfgen.registry import FAMILIES
from hfgen.trainer.ema import EMA
from hfgen.utils.ranges import (
    ABOVE_0,
    COUNT,
    FINITE,
    INSIDE_0_1,
    LARGEST,
    REPEATS,
    SEED,
    Amount,
    Form,
    Listed,
    Options,
    Range,
    check_ranges,
    range_of,
)

BEFORE = {name: dict(table) for name, table in vars(registry).items() if name.isupper() and isinstance(table, dict)}
importlib.import_module("tests.helpers.newfamily")  # registers itself, which other tests must not see
for name, table in BEFORE.items():
    vars(registry)[name].clear()
    vars(registry)[name].update(table)

MODULES = [
    "hfgen.options",
    "hfgen.evaluation.options",
    "tests.helpers.newfamily.options",
    *(f"hfgen.families.{family}.options" for family in FAMILIES),
    *(f"hfgen.commands.{module.name}" for module in pkgutil.iter_modules(hfgen.commands.__path__)),
]
TEXTS = {
    *("train_budget", "num_inference_steps", "batch_sizes", "widths", "step", "query", "latency", "memory"),
    *("classifier_interval", "autoguidance_interval", "bandwidths"),
}
"""Options whose text holds numbers."""
WITHIN = {"bandwidths": "1.5,2"}
"""Texts that one option takes, and that are outside of all others."""
RECKLESS = {
    *("max_grad_norm", "learning_rate", "adam_epsilon", "adam_weight_decay", "num_epochs", "push_every"),
    *("likelihood_sigma", "beta", "r1", "gradient_penalty", "commitment", "guidance_scale", "logit_std"),
}
"""Numbers that would do harm without a word where they are negative."""


def groups() -> list[type]:
    """All dataclasses of options of all commands."""
    found = {
        value: None
        for name in MODULES
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
        if any("help" in field.metadata for field in dataclasses.fields(value))
    }
    return list(found)


def numeric(group: type) -> list[dataclasses.Field]:
    """The options of a dataclass that hold numbers."""
    fields = [field for field in dataclasses.fields(group) if not field.metadata.get("positional")]
    return [field for field in fields if {int, float} & set(kinds(field)) or field.name in TEXTS]


def kinds(field: dataclasses.Field) -> tuple:
    return get_args(field.type) or (field.type,)


def outside(field: dataclasses.Field) -> Iterator[Any]:
    """Values that an option must refuse: below its range, above it, and no number at all."""
    allowed = field.metadata["range"]
    if isinstance(allowed, Range):
        yield from (math.nan, math.inf, -math.inf)
        step = 1 if float not in kinds(field) else 0
        if math.isfinite(allowed.low):
            just_below = allowed.low - step if step else math.nextafter(allowed.low, -math.inf)
            yield from ((allowed.low if allowed.above else just_below), -3 if step else -3.5)
            yield from () if allowed.zero or not allowed.holds(0) or not allowed.low else (0,)
        if math.isfinite(allowed.high):
            yield allowed.high if allowed.below else allowed.high + 1
        if step:
            yield from (2**63, 10**30, -(2**63))
    else:
        yield from (f"{10**30}", "9" * 5000) if isinstance(allowed, Listed) else ()
        texts = ("", "nan", "inf", "-1", "0", "-2m", "5,-1", "0m", "nanm", "1e999s", f"{10**400}s", "5,,5", "1.5,2")
        yield from (text for text in texts if text != WITHIN.get(field.name))


ALL = [(group, field) for group in groups() for field in numeric(group)]
each_option = pytest.mark.parametrize(
    ("group", "field"), ALL, ids=[f"{group.__name__}-{field.name}" for group, field in ALL]
)


def instance(group: type, **values: Any) -> Any:
    positional = [field for field in dataclasses.fields(group) if field.metadata.get("positional")]
    required = {field.name: "x" if field.type is str else ["x"] for field in positional}
    return group(**{**required, **values})


def test_the_walk_finds_all_commands_and_all_groups_check_themselves():
    assert len(groups()) > 30 and len(ALL) > 200
    assert {field.name for _, field in ALL} >= RECKLESS | TEXTS
    assert [group for group in groups() if not issubclass(group, Options)] == []
    texts = {field.name for group in groups() for field in dataclasses.fields(group) if "range" in field.metadata}
    assert texts >= {field.name for _, field in ALL}


def test_other_texts_hold_no_numbers():
    for group in groups():
        for field in dataclasses.fields(group):
            number = isinstance(field.default, str) and re.fullmatch(r"[\d.,]+[a-z]*", field.default)
            assert not number or field.name in TEXTS, field.name


@each_option
def test_a_range_is_declared_and_refuses_what_is_outside(group, field):
    allowed = field.metadata["range"]
    assert allowed is not None, "give option(...) a range"
    if field.name in RECKLESS:
        assert not allowed.holds(-1)
    for value in outside(field):
        with pytest.raises(ValueError, match=f"^--{field.name} {re.escape(str(value))} must be ") as refusal:
            instance(group, **{field.name: value})
        assert allowed.told(value) in str(refusal.value)
    assert field.default is None or allowed.holds(field.default)
    instance(group, **{field.name: field.default})


@each_option
def test_whole_numbers_have_a_largest_one(group, field):
    """Above it, tables and seeds of 32 or 64 bits would overflow late, or a training would have no end."""
    allowed = field.metadata["range"]
    allowed = allowed.each if isinstance(allowed, Listed) else allowed
    if isinstance(allowed, Range) and (int in kinds(field) or field.name in TEXTS) and float not in kinds(field):
        assert allowed.high <= LARGEST and allowed.low >= 0
        assert allowed.told(10**30) in (f"at most {allowed.high}", f"from {allowed.low} to {allowed.high}")


@pytest.mark.parametrize("words", [["--max_train_steps", f"{10**30}"], ["--max_train_steps", f"{2**63}"]])
def test_a_count_that_is_too_large_is_said_by_its_largest_one(words, capsys):
    command = parser("x", "x", "x", TrainArgs)
    with pytest.raises(SystemExit):
        parse_or_exit(command, words, TrainArgs)
    assert f"--max_train_steps {words[1]} must be at most 2147483647." in capsys.readouterr().err


def test_spans_that_make_too_many_steps_are_refused():
    from types import SimpleNamespace

    from hfgen.trainer.loop import steps_in

    batches = SimpleNamespace(batches_per_epoch=60_000.0)
    with pytest.raises(ValueError, match=r"^--num_epochs 1000000.0 makes 60000000000 steps; give at most 2147483647"):
        steps_in(TrainArgs(num_epochs=1e6), batches)
    assert steps_in(TrainArgs(num_epochs=1e6), SimpleNamespace(batches_per_epoch=2.0)) == 2_000_000


ELSEWHERE = (("sample", "GuideOptions"), ("serve", "FilterOptions"))
"""Command and group of its options that lies in another module."""


def doors() -> dict[str, tuple[str, tuple[type, ...], list[str]]]:
    """Name -> (module with `main`, groups, words before the options)."""
    found = {f"train {name}": (FAMILIES[name].door, f"hfgen.families.{name}.options", []) for name in FAMILIES}
    found["tones"] = ("tests.helpers.newfamily.train_tones", "tests.helpers.newfamily.options", [])
    result = {key: (door, importlib.import_module(at).GROUPS, words) for key, (door, at, words) in found.items()}
    for name, words in {
        "sample": ["x"],
        "serve": ["x"],
        "demo": ["x"],
        "explain": [],
        "attention": ["x"],
        "recommend": [],
        "train_classifier": [],
        "train_texture": [],
    }.items():
        module = importlib.import_module(f"hfgen.commands.{name}")
        result[name] = (
            module.__name__,
            tuple(
                group
                for group in groups()
                if group.__module__ == module.__name__ or (name, group.__name__) in ELSEWHERE
            ),
            words,
        )
    for name, words in {
        "calibrate": ["x"],
        "compare": [],
        "data": [],
        "evaluate": ["x"],
        "anomaly_score": ["x", "y"],
    }.items():
        module = importlib.import_module(f"hfgen.commands.{name}")
        modules = (module.__name__, "hfgen.evaluation.options") if name == "evaluate" else (module.__name__,)
        own = [group for group in groups() if group.__module__ in modules]
        data = () if name == "anomaly_score" else (importlib.import_module("hfgen.options").DataArgs,)
        result[name] = (module.__name__, (*own, *data), words)
    return result


def test_doors_are_all_commands():
    trained = {f"train {family}" for family in FAMILIES}
    assert {*doors()} - trained - {"tones", "train_classifier", "train_texture", "anomaly_score"} == {*cli.COMMANDS} - {
        *(
            "train",
            "anomaly",
            "push",
            "info",
            "recipes",
            "provenance",
        )  # the first two are the doors and anomaly_score; the others take no number
    }


@pytest.mark.parametrize("name", doors())
def test_commands_refuse_before_data_are_read(name, monkeypatch, capsys, tmp_path):
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("data were read")

    module, all_groups, words = doors()[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hfgen.data.images.load_images", read)
    monkeypatch.setattr("hfgen.data.images.open_data", read)
    monkeypatch.setattr("hfgen.compare.recommend.load_report", read)
    main = importlib.import_module(module).main
    for group in all_groups:
        for field in numeric(group):
            bad = -7 if not isinstance(field.metadata["range"], Range) else [*outside(field)][-1]
            text = {math.inf: ".inf", -math.inf: "-.inf"}.get(bad, bad)
            with pytest.raises((SystemExit, ValueError)) as stop:
                main([*words, f"--{field.name}={text}"])
            message = capsys.readouterr().err + str(stop.value)
            assert f"--{field.name}" in message and field.metadata["range"].told(bad) in message, message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [".nan", ".inf", "-1"])
def test_yaml_is_checked_as_flags_are(value, tmp_path, capsys):
    groups = importlib.import_module("hfgen.families.vae.options").GROUPS
    command = parser("x", "x", "x", *groups)
    (tmp_path / "run.yaml").write_text(f"max_grad_norm: {value}\n")
    with pytest.raises(ValueError, match=r"^--max_grad_norm (nan|inf|-1.0) must be (finite, and )?above 0\.$"):
        parse(command, ["--config", str(tmp_path / "run.yaml")], *groups)
    with pytest.raises(SystemExit) as stop:
        parse_or_exit(command, ["--config", str(tmp_path / "run.yaml")], *groups)
    assert stop.value.code == 2
    assert re.search(r"--max_grad_norm (nan|inf|-1.0) must be (finite, and )?above 0\.", capsys.readouterr().err)
    assert math.isnan(yaml.safe_load(".nan"))


@pytest.mark.parametrize("name", [field.name for group in (TrainArgs, SampleArgs) for field in numeric(group)])
def test_train_refuses_before_it_looks_at_data(name, monkeypatch):
    monkeypatch.setattr("hfgen.families.train.as_items", lambda *_: pytest.fail("data were read"))
    field = {**TrainArgs.__dataclass_fields__, **SampleArgs.__dataclass_fields__}[name]
    bad = -3.5 if float in kinds(field) else -3
    for value in (bad, np.float64(bad) if float in kinds(field) else np.int64(bad)):
        with pytest.raises(ValueError, match=f"^--{name} {bad} must be"):
            hfgen.train(torch.nn.Identity(), hfgen.Denoising(StraightPath(), "flow_prediction"), None, **{name: value})


def test_help_shows_ranges():
    text = parser("x", "x", "x", TrainArgs).format_help_all()
    shown = re.sub(r"\s+", " ", text)
    assert "peak learning rate of every player (type: float, above 0, default: 0.001)" in shown
    assert "(type: float, at least 0 and below 1, default: 0.9)" in shown
    for field in numeric(TrainArgs):
        assert str(field.metadata["range"]) in shown


def test_options_that_changed_after_they_were_made_are_checked_by_a_run():
    from hfgen.families.run import Run

    args = TrainArgs()
    args.max_grad_norm = -1.0
    with pytest.raises(ValueError, match=r"^--max_grad_norm -1\.0 must be above 0\.$"):
        Run([args, SampleArgs()]).check()


def test_options_of_classes_without_the_base_are_checked_where_they_are_parsed(capsys):
    @dataclasses.dataclass
    class Own:
        """Own"""

        size: int = option(1, "a size", range=COUNT)
        ratio: float = option(1.0, "a number without a range")
        name: str | None = option(None, "a name")

    command = parser("x", "x", "x", Own)
    assert fill(command.parse_args(["--size=2"]), Own) == [Own(2)]
    for words, message in {
        "--size=0": "--size 0 must be at least 1.",
        "--ratio=.nan": "--ratio nan must be a fin",
    }.items():
        with pytest.raises(SystemExit):
            parse_or_exit(command, [words], Own)
        assert message in capsys.readouterr().err
    assert range_of(Own.__dataclass_fields__["name"]) is None


def test_ranges_hold_for_their_numbers_alone():
    for allowed, good, bad in (
        (ABOVE_0, (1e-300, 1, 10**400, np.float32(2)), (0, -0.0, -1e-300, True, None, "1", 1j)),
        (COUNT, (1, np.int64(3), 2**31 - 1), (0, False, -1, 2**31, 10**400, 1.5, 2.0)),
        (INSIDE_0_1, (0.5, 1e-9), (0, 1, 2)),
        (REPEATS, (0, 2, 50), (1, -1, 2**31)),
        (SEED, (0, 2**31 - 1), (-1, 2**31, 0.0)),
        (FINITE, (-1e300, 0), ()),
    ):
        assert all(map(allowed.holds, good)), allowed
        assert not any(map(allowed.holds, (*bad, math.nan, math.inf, -math.inf, np.float32("nan")))), allowed
    assert [str(each) for each in (ABOVE_0, INSIDE_0_1, REPEATS, FINITE, Range(high=2), Range(0, 1))] == [
        *("above 0", "above 0 and below 1", "0, or at least 2", "a finite number", "at most 2", "from 0 to 1"),
    ]
    with pytest.raises(ValueError, match=r"^--seed 1\.5 must be a whole number, from 0"):
        check_ranges(TrainArgs(seed=0), dataclasses.replace(TrainArgs(), seed=1.5))


def test_a_refusal_says_what_is_wrong_with_a_number():
    for allowed, value, words in (
        (COUNT, 1.5, "a whole number, at least 1"),
        (COUNT, True, "a whole number, at least 1"),
        (COUNT, 0, "at least 1"),
        (COUNT, 2**31, f"at most {LARGEST}"),
        (ABOVE_0, math.inf, "finite, and above 0"),
        (ABOVE_0, -1, "above 0"),
        (FINITE, math.nan, "a finite number"),
    ):
        assert allowed.told(value) == words


@pytest.mark.parametrize("text", ["", " "])
def test_a_path_is_not_empty(text):
    """As of a variable of a shell that is not set: the present folder is meant by nobody."""
    with pytest.raises(ValueError, match=rf"^--output_dir '{text}' is no path: it is empty\.$"):
        TrainArgs(output_dir=text)


def test_a_path_has_no_zero_byte():
    with pytest.raises(ValueError, match=r"^--output_dir 'a\\x00b' is no path: it has a zero byte\.$"):
        TrainArgs(output_dir="a\0b")


@pytest.mark.parametrize("value", [1.5, 2.0, True, "3"])
def test_counts_of_objects_are_whole_numbers(value):
    from hfgen.distributions.likelihoods import build_likelihood
    from hfgen.models.conditions import ClassCondition
    from hfgen.objectives.token_flow import TokenFlow
    from hfgen.paths import StraightPath

    bernoulli = build_likelihood("bernoulli")
    for name, make in {
        "curriculum_steps": lambda: hfgen.FlowMap(curriculum_steps=value),
        "alpha_steps": lambda: hfgen.Distilled(StraightPath(), "flow_prediction", alpha_steps=value),
        "warmup_steps": lambda: hfgen.ELBO(bernoulli, (2,), warmup_steps=value),
        "start_step": lambda: hfgen.AutoencoderGAN(hfgen.VectorQuantized(bernoulli), start_step=value),
        "n_critic": lambda: hfgen.Adversarial("hinge", 2, n_critic=value),
        "num_tokens": lambda: TokenFlow(num_tokens=value),
        "num_classes": lambda: ClassCondition(value),
    }.items():
        with pytest.raises(ValueError, match=rf"{name}='?{value}'? must be a whole number"):
            pytest.fail(f"{name} took {value}: {make()}")


def test_texts_of_numbers():
    assert Listed(COUNT).parse("1, 5,20") == (1, 5, 20)
    assert Listed(Range(0), 2).holds("0,3") and not Listed(Range(0), 2).holds("0,3,4")
    amounts = Amount({"s": 1.0, "ms": 1e-3})
    assert amounts.parse("1.5 S") == 1.5 and amounts.parse(".5ms") == pytest.approx(5e-4, rel=1e-12)
    for text in ("", "5", "-1s", "0s", "0.0ms", "nans", "infs", "1e3s", "5m", f"{10**309}s", "s"):
        assert not amounts.holds(text), text
    assert Budget.parse("2e15 flops").amount == 2e15 and Budget.parse("2m").amount == 120
    form = Form(Budget.parse, "a budget")
    for text in (
        "",
        "0m",
        "-2m",
        "nan",
        "nanm",
        "inf",
        "1e999s",
        "9e307h",
        "1e-400s",
        "2M",
        "1e31 flops",
        "2e30 images",
    ):
        assert not form.holds(text), text


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_objects_refuse_numbers_that_would_silently_do_harm(value):
    from torch import nn

    from hfgen.distributions.likelihoods import build_likelihood
    from hfgen.objectives.penalties import GradientPenalty, WeightClipping
    from hfgen.paths import CosineVPPath, LinearVPPath, StraightPath, VEPath

    bernoulli, straight, layer = build_likelihood("bernoulli"), StraightPath(), nn.Linear(1, 1)
    makers = [
        *(lambda name=name: EMA(layer, **{name: value}) for name in ("max_decay", "inv_gamma", "power")),
        *(
            lambda name=name: hfgen.Denoising(straight, **{name: value})
            for name in ("logit_std", "snr_gamma", "label_dropout")
        ),
        *(lambda name=name: hfgen.ELBO(bernoulli, (2,), **{name: value}) for name in ("beta", "free_bits")),
        lambda: hfgen.Reconstruction(bernoulli, "gaussian", value),
        lambda: hfgen.VectorQuantized(bernoulli, value),
        lambda: hfgen.Adversarial("hinge", 2, mode_seeking=value),
        lambda: GradientPenalty(value),
        lambda: WeightClipping(value),
        *(
            lambda name=name: hfgen.AutoencoderGAN(hfgen.VectorQuantized(bernoulli), **{name: value})
            for name in ("weight", "pixels", "perceptual", "feature_matching")
        ),
        lambda: build_likelihood("gaussian", value),
        lambda: LinearVPPath(beta_max=value),
        lambda: VEPath(sigma_max=value),
        lambda: CosineVPPath(value),
        *(lambda name=name: hfgen.RectifiedFlowScheduler(**{name: value}) for name in ("shift", "power")),
        *(
            lambda name=name: hfgen.DDIMScheduler(**{name: value})
            for name in ("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "beta_end")
        ),
    ]
    for number, make in enumerate(makers):
        with pytest.raises(ValueError, match=rf"{re.escape(str(value))}|check the betas"):
            pytest.fail(f"maker {number} took {value}: {make()}")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_are_finite(value):
    for name in ("logit_mean", "sigmoid_bias"):
        with pytest.raises(ValueError, match=f"{name}={value} must be a finite number"):
            hfgen.Denoising(hfgen.paths.StraightPath(), **{name: value})
