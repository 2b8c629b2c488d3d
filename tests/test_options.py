"""Options of all families: which belong together, which a resumed run may change, and what help and messages say."""

import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from hfgen import options
from hfgen.command_line.recipes import recipes
from hfgen.options import POSITIVE, AnyOf, ValueRule, as_dict, parse, parser, refuse_idle, resumable, rules
from hfgen.registry import FAMILIES
from hfgen.trainer.checkpoint import compare
from tests.helpers.commands import without_launch

ROOT = Path(__file__).resolve().parents[1]
MODULES = {family: importlib.import_module(f"hfgen.families.{family}.options") for family in FAMILIES}
each_family = pytest.mark.parametrize("family", FAMILIES)

RESUMABLE = {
    *("prompts", "states_dir"),
    *(
        "discriminator_learning_rate",
        "classifier_learning_rate",
        "score_learning_rate",
        "gap_steps",
        "rmsprop_alpha",
        "muon_ratio",
        "muon_momentum",
        "muon_weight_decay",
    ),
    *("dataset", "cache_dir", "cache_budget", "dataloader_num_workers", "pipeline", "pair_dir", "text"),
    *("autoencoder", "latent_dir"),
    *("max_train_steps", "max_train_seconds", "num_epochs", "learning_rate", "lr_scheduler", "lr_warmup_steps"),
    *("adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm"),
    *("ema_max_decay", "ema_inv_gamma", "ema_power"),
    *("mixed_precision", "gradient_checkpointing", "channels_last", "torch_compile", "allow_tf32", "sharding"),
    *("output_dir", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint"),
    *("sample_steps", "timelapse", "logging_steps", "report_to", "dry_run"),
    *("scheduler", "num_inference_steps", "guidance_scale", "eval_batch_size", "features", "num_samples"),
    *("eval_steps", "eval_metric", "eval_num_samples", "eval_features"),
    *("held_out_split", "num_likelihood", "num_probe", "likelihood_samples", "mixture_components", "temperature"),
    *("health_steps", "health_samples", "on_collapse"),
    *("step_size", "momentum", "tolerance", "gap_steps", "most_gap", "on_divergence"),
    *("score", "false_alarm_rate", "density_components", "score_samples"),
    *("push_to_hub", "push_every", "hub_model_id", "hub_private_repo", "hub_license"),
}
"""Options that a resumed run may change: where the data are, how long and with which optimiser it goes on, rounding,
and what is saved, shown, measured and pushed."""

CHANGED_RULES = {
    ("PriorSampleArgs", "eval_steps"),
    ("ARHeldOutArgs", "likelihood_samples"),
    ("FlowHeldOutArgs", "likelihood_samples"),
    ("ProbeArgs", "likelihood_samples"),
    ("TwoClockNoiseArgs", "label_dropout"),
    ("TwoClockNoiseArgs", "variance"),
    ("TwoClockNoiseArgs", "vlb_weight"),
    ("TwoClockTrainArgs", "init_from"),
    ("EnergyTrainArgs", "gradient_checkpointing"),
    ("EnergyTrainArgs", "torch_compile"),
    ("GANSampleArgs", "eval_features"),
    ("AccuracyArgs", "likelihood_samples"),
    ("StyleAdversarialArgs", "spectral_norm"),
    ("StyleGANTrainArgs", "gradient_checkpointing"),
    ("ComparisonDataArgs", "random_flip"),
    ("ComparisonDataArgs", "dataloader_num_workers"),
    ("PairTrainArgs", "overfit_batch"),
    ("PairTrainArgs", "init_from"),
    ("DistillTrainArgs", "init_from"),
    ("FlowMapTrainArgs", "init_from"),
    ("AnomalyTrainArgs", "num_epochs"),
    ("WordTrainArgs", "gradient_checkpointing"),
    ("TextDenoiserArgs", "class_conditional"),
    ("TextNoiseArgs", "label_dropout"),
    ("LowRankArgs", "prior_weight"),
    ("LowRankArgs", "prior_samples"),
    ("LowRankArgs", "prior_steps"),
    ("TextAdapterArgs", "new_class"),
    ("TextAdapterArgs", "prior_weight"),
    ("TextAdapterArgs", "prior_samples"),
    ("TextAdapterArgs", "prior_steps"),
    ("ClassifierTrainArgs", "gradient_checkpointing"),
}
"""Options of a subclass that belong to others than in its base class."""


def fields_of(family: str) -> dict[str, dataclasses.Field]:
    """The options of a family by name."""
    return {field.name: field for group in MODULES[family].GROUPS for field in dataclasses.fields(group)}


def conditions(family: str, name: str) -> list[Any]:
    """The conditions of an option that say something."""
    (group,) = (group for group in MODULES[family].GROUPS if name in fields_in(group))
    return [rule for rule in rules(group, name) if rule != {}]


def fields_in(group: type) -> list[str]:
    return [field.name for field in dataclasses.fields(group)]


def filled(family: str, values: dict[str, Any]) -> list[Any]:
    """Instances of all groups with these values, else defaults."""
    return [
        group(**{name: values[name] for name in fields_in(group) if name in values}) for group in MODULES[family].GROUPS
    ]


def another(field: dataclasses.Field, *without: Any) -> Any:
    """A value of the option's type that is none of `without`, its default or what it calls off."""
    kinds = get_args(field.type) or (field.type,)
    if get_origin(field.type) is Literal:
        candidates = get_args(field.type)
    elif any(get_origin(kind) is Literal for kind in kinds):
        candidates = get_args(kinds[0])
    else:
        candidates = {bool: (True, False), int: (7, 8, 27, 28), float: (0.5, 0.25), str: ("x", "y", "7", "8")}[kinds[0]]
    taken = (*without, field.default, field.metadata["off"])
    allowed = field.metadata["range"]
    return next(v for v in candidates if v not in taken and (allowed is None or allowed.holds(v)))


def turned(field: dataclasses.Field, on: bool) -> Any:
    """A value of an option that turns it on or off: 1 or 0 of a number, another or the default of a text or choice."""
    kind = (get_args(field.type) or (field.type,))[0]
    if get_origin(field.type) is not Literal and kind in (bool, int, float):
        return kind(on)
    return another(field) if on else field.default


def enabled(family: str, name: str) -> dict[str, Any]:
    """Values of other options with which this one has an effect."""
    values: dict[str, Any] = {}
    for rule in conditions(family, name):
        if isinstance(rule, AnyOf):
            values[rule.names[0]] = turned(fields_of(family)[rule.names[0]], True)
            continue
        for other, needed in rule.items():
            field = fields_of(family)[other]
            if isinstance(needed, ValueRule):
                possible = [value for value in (turned(field, True), 2) if needed.holds(value)]
            else:
                possible = [value for value in needed if can_be(field, value)]
            if field.default not in possible:
                values |= enabled(family, other) | {other: possible[0]}
    return values


def can_be(field: dataclasses.Field, value: Any) -> bool:
    return get_origin(field.type) is not Literal or value in get_args(field.type)


def idle(family: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    """All ways to leave an option without effect: the other option that does so, and values of others that do.

    A condition of the whole class also leaves those without effect that the option belongs to: no name then."""
    (group,) = (group for group in MODULES[family].GROUPS if name in fields_in(group))
    whole, ways = getattr(group, "ONLY_WITH", None), []
    for rule in conditions(family, name):
        if isinstance(rule, AnyOf):
            off = {each: turned(fields_of(family)[each], False) for each in rule.names}
            ways.append((rule.names[0] if rule.names else "", off))
            continue
        for other, needed in rule.items():
            field = fields_of(family)[other]
            if isinstance(needed, ValueRule):
                value = 0 if needed.holds(field.default) else field.default
            elif field.default not in needed:
                value = field.default
            else:
                value = another(field, *needed)
            others = {} if rule is whole else enabled(family, name) | enabled(family, other)
            ways.append(("" if rule is whole else other, others | {other: value}))
    return ways


CONDITIONAL = [(family, name) for family in FAMILIES for name in fields_of(family) if conditions(family, name)]
each_conditional = pytest.mark.parametrize(("family", "name"), CONDITIONAL)


# --- which belong together --------------------------------------------------------------------------------------------


def test_names_of_a_family_are_its_own():
    for family, module in MODULES.items():
        names = [name for group in module.GROUPS for name in fields_in(group)]
        assert len(names) == len(set(names)), family


@each_conditional
def test_an_option_belongs_to_options_of_the_same_family_and_values_they_can_have(family, name):
    fields = fields_of(family)
    for rule in conditions(family, name):
        assert name not in (rule.names if isinstance(rule, AnyOf) else rule)
        for other in rule.names if isinstance(rule, AnyOf) else rule:
            assert other in fields, f"--{name} belongs to --{other}, which {family} has not"
        for other, needed in {} if isinstance(rule, AnyOf) else rule.items():
            assert isinstance(needed, ValueRule) or any(can_be(fields[other], value) for value in needed)


@each_family
def test_defaults_have_nothing_to_refuse(family):
    refuse_idle(*filled(family, {}))


@each_conditional
def test_an_option_without_effect_is_refused_with_its_name_and_the_fix(family, name):
    field = fields_of(family)[name]
    value = another(field)
    for other, values in idle(family, name):
        shown = "" if name in options.SECRETS else f" {value}"
        with pytest.raises(ValueError, match=rf"^--{name}{shown} does nothing .*Leave it out") as refusal:
            refuse_idle(*filled(family, {**values, name: value}))
        assert f"--{other}" in str(refusal.value) or "does nothing here. Leave it out." in str(refusal.value)
        for harmless in (field.default, field.metadata["off"]):
            if harmless is not dataclasses.MISSING:
                refuse_idle(*filled(family, {**values, name: harmless}))


@each_conditional
def test_an_option_is_accepted_where_it_has_an_effect(family, name):
    if all(rule != options.NEVER for rule in conditions(family, name)):
        refuse_idle(*filled(family, {**enabled(family, name), name: another(fields_of(family)[name])}))


def test_messages_offer_only_values_that_the_family_has():
    prior = {"prior": "vamp"}
    with pytest.raises(ValueError, match=r"^--prior vamp does nothing with --objective vq, only with elbo\. Leave it"):
        refuse_idle(*filled("vqgan", prior))
    with pytest.raises(ValueError, match=r"with --objective ae, only with elbo or iwae\. Leave it out, or change the"):
        refuse_idle(*filled("vae", {**prior, "objective": "ae"}))
    with pytest.raises(
        ValueError, match=r"^--memory_size 9 does nothing with --control 0.0, only with a number above 0"
    ):
        refuse_idle(*filled("gan", {"memory_size": 9}))
    with pytest.raises(ValueError, match=r"with --pipeline x, only without it\."):
        refuse_idle(*filled("anomaly", {"pipeline": "x", "learning_rate": 0.5}))
    with pytest.raises(ValueError, match=r"with --max_train_steps 3000, only with null\."):
        refuse_idle(*filled("anomaly", {"num_epochs": 2.0}))


def test_a_penalty_that_another_one_replaces_leaves_its_interval_without_effect():
    refuse_idle(*filled("gan", {"penalty_every": 2}))
    refuse_idle(*filled("gan", {"penalty_every": 2, "weight_clip": 0.01, "r2": 1.0}))
    message = r"^--penalty_every 2 does nothing without --r1, --r2 or --gradient_penalty\. Leave it out, or give one of"
    with pytest.raises(ValueError, match=message):
        refuse_idle(*filled("gan", {"penalty_every": 2, "weight_clip": 0.01}))


def test_a_message_holds_no_secret():
    with pytest.raises(ValueError, match=r"^--hub_token does nothing") as refusal:
        refuse_idle(*filled("vae", {"hub_token": "hf_secret"}))
    assert "hf_secret" not in str(refusal.value)


@each_family
def test_a_door_refuses_before_data_are_read(family, monkeypatch, capsys, tmp_path):
    door = importlib.import_module(FAMILIES[family].door)

    def open_rows(*_: Any) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("hfgen.data.images.open_data", open_rows)
    with pytest.raises(SystemExit) as stop:
        door.main(["--hub_model_id", "a/b", "--output_dir", str(tmp_path / "run")])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert message.startswith("error: --hub_model_id a/b does nothing with --push_to_hub False, only with True.")
    assert message.count("\n") == 1


# --- what is shipped --------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """The trainings that README, docs and recipes name: the family, and the words that follow."""
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    lines = [line for text in texts for line in re.sub(r"\\\n\s+", "", text).splitlines() if line.startswith("    ")]
    lines += [recipe.command for recipe in recipes().values()]
    trainings = []
    for line in lines:
        words, _, remark = line.strip().partition(" #")
        if re.match(r"hfgen (train \w|anomaly fit)", words) and "..." not in words and "recipe's line" not in remark:
            _, command, *rest = shlex.split(words.split(", or ")[-1])
            trainings.append(("anomaly", rest[1:]) if command == "anomaly" else (rest[0], rest[1:]))
    return trainings


def test_shipped_recipes_and_commands_of_the_docs_are_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    trainings = commands()
    assert len(trainings) > 25 and {family for family, _ in trainings} == set(FAMILIES)
    for family, words in trainings:
        module = MODULES[family]
        refuse_idle(*parse(parser("x", "x", "x", *module.GROUPS), without_launch(words), *module.GROUPS))


# --- resume -----------------------------------------------------------------------------------------------------------


def test_what_a_resumed_run_may_change_is_this():
    names = {name for family in FAMILIES for name in fields_of(family)}
    assert names >= RESUMABLE
    for family, module in MODULES.items():
        assert resumable(*module.GROUPS) == RESUMABLE & fields_of(family).keys(), family


@each_family
def test_a_change_is_refused_or_reported(family):
    names = resumable(*MODULES[family].GROUPS)
    before = as_dict(*filled(family, {}))
    for name, field in fields_of(family).items():
        if name in options.SECRETS:
            continue
        value = another(field)
        after, line = {**before, name: value}, f"{name}: {field.default} -> {value}"
        if name in RESUMABLE:
            assert compare(before, after, names) == [line]
        else:
            with pytest.raises(ValueError, match=re.escape(line)):
                compare(before, after, names)


def test_without_names_the_options_of_training_are_those_that_may_change():
    before = {**as_dict(options.TrainArgs()), "num_processes": 1, "versions": {"torch": "1"}, "model": "a"}
    after = {**before, "learning_rate": 0.5, "versions": {"torch": "2"}}
    assert compare(before, after) == ["learning_rate: 0.001 -> 0.5", "versions/torch: 1 -> 2"]
    split = {**before, "train_batch_size": 64, "num_processes": 2}
    assert compare(before, split) == ["train_batch_size: 128 -> 64", "num_processes: 1 -> 2"]
    for other in ({"model": "b"}, {"num_processes": 2}, {"seed": 1}):
        with pytest.raises(ValueError, match=next(iter(other))):
            compare(before, before | other)
    assert compare(before, before | {"model": "b"}, {"model"}) == ["model: a -> b"]
    assert compare(before, {"new": 1}) == []


def test_a_redefined_option_keeps_what_it_is():
    for family, module in MODULES.items():
        for group in module.GROUPS:
            for base in filter(dataclasses.is_dataclass, group.__mro__[1:]):
                for field in dataclasses.fields(base):
                    here = group.__dataclass_fields__[field.name].metadata
                    assert here["resumable"] == field.metadata["resumable"], (family, field.name)
                    if (group.__name__, field.name) not in CHANGED_RULES:
                        assert here["only_with"] == field.metadata["only_with"], (family, field.name)


# --- help -------------------------------------------------------------------------------------------------------------


def help_of(family: str) -> str:
    module = MODULES[family]
    text = parser(f"train_{family}.py", module.DESCRIPTION, module.EXAMPLE, *module.GROUPS).format_help_all()
    return re.sub(r"(?<=\w)-\s+(?=\w)", "-", re.sub(r"\s+", " ", text))


def test_help_says_what_an_option_belongs_to():
    text = help_of("vae")
    assert "weight of KL; 0: off (only with --objective elbo) (type: float, at least 0, default: 1.0)" in text
    assert "(only with --objective elbo and --beta above 0) (type: int, at least 0, default: 0)" in text
    assert "(only with --objective elbo or iwae)" in text
    assert "(only with --push_to_hub and --sample_steps above 0)" in text
    assert "(only with --lr_scheduler constant_with_warmup, linear, cosine or polynomial)" in text
    assert "(only without --streaming)" in text
    assert "--objective {elbo,iwae,ae,dae,vq} variational" in text and "Literal" not in text.replace("Optional[L", "")
    assert "(only with --r1, --r2 or --gradient_penalty)" in help_of("gan")
    assert "(only with --eval_steps or --health_steps)" in help_of("gan")
    assert "(only with --objective elbo)" in help_of("vqgan") and "iwae" not in help_of("vqgan")
    assert "Training (only without --pipeline; except --output_dir, --seed, --allow_tf32, --" in help_of("anomaly")
    assert "Objective (only without --pipeline):" in help_of("anomaly")
    assert "passes over the data (only with --max_train_steps null)" in help_of("anomaly")
    assert "mirror images left-right at random (not used here)" in help_of("reflow")


@each_family
def test_help_notes_every_condition_and_keeps_every_default(family):
    text, module = help_of(family), MODULES[family]
    assert module.DESCRIPTION in text and module.EXAMPLE in text
    assert text.startswith(f"usage: train_{family}.py [options] ")
    own = [field for field in fields_of(family).values() if field.metadata["only_with"] != {}]
    groups = [group for group in module.GROUPS if hasattr(group, "ONLY_WITH")]
    assert text.count("(only with") + text.count("(not used here)") >= len(own) + len(groups)
    assert text.count("default: ") >= len(fields_of(family))


# --- the field itself -------------------------------------------------------------------------------------------------


def test_conditions():
    assert [POSITIVE.holds(value) for value in (1, 0.5, 0, -1, None)] == [True, True, False, False, False]

    @dataclasses.dataclass
    class Group:
        """Group"""

        first: int = options.option(0, "a number")
        second: bool = options.option(False, "a switch", only_with={"first": POSITIVE}, resumable=True)

    @dataclasses.dataclass
    class Child(Group):
        """Child"""

        second: bool = options.variant(Group, "second", True)
        third: int = options.option(0, "a number", only_with=AnyOf(("first", "second")))

    child = Child.__dataclass_fields__["second"]
    assert child.default is True and child.metadata == Group.__dataclass_fields__["second"].metadata
    assert resumable(Child) == resumable(Child()) == {"second"}
    refuse_idle(Child(third=1))
    refuse_idle(Child(first=1, second=False))
    with pytest.raises(ValueError, match=r"^--second False does nothing with --first 0, only with a number above 0"):
        refuse_idle(Child(second=False))
    with pytest.raises(AttributeError, match="first"):
        refuse_idle(dataclasses.make_dataclass("Lone", [("second", bool, Group.__dataclass_fields__["second"])])(True))


def test_options_import_nothing_heavy():
    heavy = "{'torch', 'diffusers', 'transformers', 'datasets', 'accelerate', 'numpy', 'PIL', 'huggingface_hub'}"
    imports = "; ".join(f"import {module.__name__}" for module in MODULES.values())
    code = f"import sys; {imports}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_former_names_are_taken_from_python_with_a_hint(capsys):
    from hfgen.commands.sample import SampleOptions

    assert SampleOptions("there", num=3).num_samples == 3
    assert "num is now num_samples" in capsys.readouterr().err
    assert dataclasses.replace(SampleOptions("there"), num_samples=4).num_samples == 4
    with pytest.raises(TypeError, match="num and num_samples are one option"):
        SampleOptions("there", num=3, num_samples=4)
    with pytest.raises(TypeError, match="nums"):
        SampleOptions("there", nums=3)
