"""Public functions and constructors refuse arguments of other types than they say, by name and before they do anything.

The walk covers every name that hfgen exports, the methods of its pipelines, paths, likelihoods and metrics.
"""

import inspect
import types
import typing
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import hfgen
from hfgen import paths
from hfgen.distributions import likelihoods
from hfgen.metrics import detection, distances, modes, neighbours, perceptual, pixels, straightness
from hfgen.options import SampleArgs, TrainArgs
from hfgen.registry import EXPORTS, PIPELINES, SCHEDULERS, resolve
from hfgen.utils.arguments import ArgumentTypeError, argument, checked

WRONG = {
    "text": "many", "fraction": 1.5, "nothing": None, "truth": True, "list": [1, "a"], "tensor": torch.ones(2, 3),
    "array": np.ones((2, 3)), "dictionary": {"a": 1}, "bytes": b"3",
}  # fmt: skip
LISTS = (tuple, list, Sequence, Iterable)
NO_DOORS = {
    *("ModelMixin", "SchedulerMixin"),  # of diffusers
    *("Condition", "Objective", "Monitor", "HFGenPipeline"),  # abstract, without a constructor of their own
    *("Loss",),  # made in every step
}
STARTS = ("from_pretrained", "save_pretrained", "push_to_hub", "download", "call_with", "to", "progress_bar")
STARTS += ("register_modules", "extract_init_dict", "to_images", "set_progress_bar_config")
"""Methods of diffusers, whose arguments are its own."""


def parts(hint) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def wrong_values(hint, default) -> dict[str, object]:
    """Return values that no reading of an annotation allows."""
    kinds = parts(hint)
    choices = [one for kind in kinds if typing.get_origin(kind) is typing.Literal for one in typing.get_args(kind)]
    plain = {kind for kind in kinds if isinstance(kind, type)} | {*map(type, choices)}
    origins = {typing.get_origin(kind) or kind for kind in kinds}
    allowed = {"text"} if str in plain else set()
    allowed |= {"fraction"} if float in plain else set()
    allowed |= {"nothing"} if type(None) in plain or default is None else set()
    allowed |= {"truth"} if bool in plain else set()
    allowed |= {"tensor"} if Tensor in plain else set()
    allowed |= {"list", "array", "tensor"} if origins & {*LISTS} else set()
    allowed |= {"dictionary"} if origins & {dict, Mapping} else set()
    return {} if typing.Any in kinds else {name: value for name, value in WRONG.items() if name not in allowed}


def doors():
    """Yield name and function of every public door, its constructor for a class."""
    for name in sorted(set(EXPORTS) - NO_DOORS):
        value = resolve(name)
        yield name, value.__init__ if isinstance(value, type) else value
    for module in (paths, likelihoods):
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__ and "__init__" in vars(value):
                yield name, value.__init__
    yield "build_likelihood", likelihoods.build_likelihood
    for module in (detection, distances, modes, neighbours, perceptual, pixels, straightness):
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_":
                yield f"{module.__name__}.{name}", value
    for name in SCHEDULERS:
        for method in ("step", "add_noise", "get_velocity"):
            if hasattr(resolve(name), method):
                yield f"{name}.{method}", getattr(resolve(name), method)
    for name in PIPELINES:
        for method, value in inspect.getmembers(resolve(name), inspect.isfunction):
            ours = value.__module__.startswith(("hfgen", "pipelines"))
            if ours and (method == "__call__" or method[0] != "_") and method not in STARTS:
                yield f"{name}.{method}", value


DOORS = {name: function for name, function in doors() if len(inspect.signature(function).parameters) > 0}


def hints_of(function) -> dict[str, object]:
    hints = typing.get_type_hints(function)
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        name: hints.get(name)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind not in kinds
    }


@pytest.mark.parametrize("door", sorted(DOORS))
def test_a_door_refuses_what_is_of_another_type(door):
    function = DOORS[door]
    parameters = inspect.signature(function).parameters
    me = (None,) if "self" in parameters else ()
    for name, hint in hints_of(function).items():
        assert hint is not None, f"{name} has no annotation"
        for kind, value in wrong_values(hint, parameters[name].default).items():
            with pytest.raises(ArgumentTypeError, match=rf"^{name}=") as error:
                function(*me, **{name: value})
            assert "must be" in str(error.value) and "\n" not in str(error.value), (kind, str(error.value))


def test_the_walk_meets_every_door():
    assert {"train", "FlowMap", "build_flow", "GANPipeline.__call__", "VEPath", "DiTModel", "TensorData"} <= set(DOORS)
    assert len(DOORS) > 150


def test_numbers_of_numpy_and_tensors_of_one_number_count_as_numbers():
    for number in (np.float64(0.25), np.float32(0.25), np.array(0.25), torch.tensor(0.25)):
        assert type(hfgen.FlowMap(step_share=number).step_share) is float
        assert hfgen.FlowMap(step_share=number).step_share == 0.25
    for count in (np.int64(8), np.array(8), torch.tensor(8)):
        model = hfgen.build_flow("nice", "xs", count, channels=np.uint8(1))
        assert type(model.config.in_channels) is int and model.sample_shape == (1, 8, 8)
        scheduler = hfgen.DDIMScheduler(num_train_timesteps=count, clip_sample=np.bool_(False))
        assert scheduler.config.num_train_timesteps == 8 and scheduler.config.clip_sample is False
        assert scheduler.to_json_string()  # which takes Python's own types alone
    assert hfgen.GaussianMixturePriorModel(np.array([3, 1, 1]), np.int32(2)).config.latent_shape == (3, 1, 1)
    assert hfgen.GaussianMixturePriorModel((np.int64(3), 1, torch.tensor(1))).config.latent_shape == (3, 1, 1)
    assert TrainArgs(max_train_steps=np.int64(3)).max_train_steps == 3


@pytest.mark.parametrize("value", [True, "0.1", 1 + 0j, torch.tensor(True), np.bool_(True), np.array("0.1"), [0.1]])
def test_what_looks_like_a_number_is_none(value):
    with pytest.raises(ArgumentTypeError, match=r"^label_dropout=.* must be a number"):
        hfgen.Denoising(paths.StraightPath(), label_dropout=value)


@pytest.mark.parametrize("value", [2.0, np.float64(2), torch.tensor(2.0), "2", True, None, [2]])
def test_what_looks_like_a_whole_number_is_none(value):
    with pytest.raises(ArgumentTypeError, match=r"^channels=.* must be a whole number"):
        hfgen.build_denoiser("dit", "xs", 8, channels=value)


@pytest.mark.parametrize(
    ("group", "option", "value"),
    [
        (TrainArgs, "push_to_hub", "False"),
        (TrainArgs, "use_ema", "no"),
        (SampleArgs, "eval_metric", 3),
        (TrainArgs, "use_ema", 1),
        (TrainArgs, "output_dir", 3),
        (TrainArgs, "mixed_precision", True),
        (TrainArgs, "mixed_precision", ["bf16"]),
    ],
)
def test_options_in_python_have_their_types(group, option, value):
    with pytest.raises(ArgumentTypeError, match=f"^{option}="):
        group(**{option: value})


def test_an_argument_that_is_its_default_is_never_refused():
    @checked
    def function(size: int = None, *rest: str, name: str = "", **others: int):  # noqa: RUF013
        return size, rest, name, others

    assert function(None, 1, name="a", other="b") == (None, (1,), "a", {"other": "b"})  # rest and others are unchecked
    assert function(np.int64(3))[0] == 3
    with pytest.raises(TypeError, match=r"^size='3' must be a whole number.$"):
        function("3")
    with pytest.raises(ValueError, match=r"^name=3 must be a text.$"):
        function(name=3)


@pytest.mark.parametrize(
    ("value", "hint", "kept"),
    [
        ((1, 2), tuple[int, int], (1, 2)),
        ([1, 2], tuple[int, ...], [1, 2]),
        (np.array([1, 2]), tuple[int, int], (1, 2)),
        (torch.Size([1, 2]), tuple[int, ...], (1, 2)),
        (np.int64(1), int | str | Sequence[int | str] | Tensor | None, 1),
        ([np.int64(1), "b"], int | str | Sequence[int | str] | Tensor | None, [1, "b"]),
        (3, float, 3),
        (range(3), Sequence[int], range(3)),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        (paths.StraightPath, type, paths.StraightPath),
        ("linear", typing.Literal["linear", "spherical"], "linear"),
    ],
)
def test_what_annotations_allow_is_taken(value, hint, kept):
    assert argument("it", value, hint) == kept


@pytest.mark.parametrize(
    ("value", "hint", "text"),
    [
        ((1, 2, 3), tuple[int, int], "2 values, each a whole number"),
        ((1, "2"), tuple[int, ...], "a list, each a whole number"),
        ("12", Sequence[str], "a list, each a text"),
        ({"a": 1}, Sequence[str], "a list"),
        (3, typing.Literal["linear", "spherical"], "'linear' or 'spherical'"),
        ("straight", paths.Path, "a Path"),
        (np.ones((2, 2)), Tensor, "a Tensor"),
        (3, Mapping[str, int] | None, "a dictionary or None"),
        (torch.ones(2, 2), float, "a number"),
    ],
)
def test_refusals_say_what_an_argument_must_be(value, hint, text):
    with pytest.raises(ArgumentTypeError) as error:
        argument("it", value, hint)
    assert str(error.value).startswith("it=") and text in str(error.value) and len(str(error.value)) < 160


def test_a_configuration_keeps_what_was_given_by_position():
    """diffusers drops such options in `from_config`, and names none of them twice."""
    network = hfgen.DiTModel(8, 1, 1, 2, hidden_size=16, num_layers=1, num_attention_heads=2)
    assert hfgen.DiTModel.from_config(network.config).config.sample_size == 8
    with pytest.raises(TypeError, match="multiple values for argument 'sample_size'"):
        hfgen.DiTModel(8, sample_size=8)
    with pytest.raises(TypeError, match="positional argument"):
        hfgen.GradientDescentScheduler(0.1, 0.0, 0.0, 1.0, 2.0)
