"""Configurations at the border between schedulers: what belongs to the network, and which options go over.

A configuration holds two kinds of options. Facts state how the network was trained; any other scheduler needs them.
The other options are the scheduler's own. They go over to another class if they were set, and not if they were left at
their defaults. diffusers records in memory which ones were left (`_use_default_values`), but does not save it. Our
schedulers record it with the values (`_default_options`). This record is saved, and passes through diffusers' classes.
A scheduler therefore goes over in the same way from memory and from a folder.
"""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import diffusers
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from ..paths import PATH_OPTIONS, path_facts, prediction_row

LEARNED = ("learned", "learned_range")
"""Kinds of `variance_type` that belong to the network: its output has a second half of channels."""

HEADS = ("npr", "sn", "ocm")
"""Kinds of `variance_type` for which a network beside the denoiser makes the second half, see `reverse_variance.py`."""

OPTIMAL = ("analytic", *HEADS)
"""Kinds of `variance_type` that state how much x_t leaves open of the data."""

FACTS = (
    "path",
    "num_train_timesteps",
    "prediction_type",
    "use_flow_sigmas",
    "shift",
    "flow_shift",
    "start_ratio",
    "data_variances",
    *(key for options in PATH_OPTIONS.values() for key in options),
)
"""Options that state facts. A change of scheduler keeps them, even if they are defaults."""

_RENAMED = {"RectifiedFlowScheduler": {"solver_type": "solver"}}
"""Class -> former names of its options, in folders that were saved before, and the present names."""


_DERIVED = {"method", "grid_type", "timestep_spacing", "steps_offset"}
"""Options whose default depends on others, and these others."""


def network_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a scheduler configuration, ours or diffusers', says of the network, with every default explicit.

    Returns:
        `path`, the parameters of this path, `num_train_timesteps` and `prediction_type`. `use_flow_sigmas`, diffusers'
        name of the straight path. On the straight path the time shift, as `shift` and as `flow_shift`. If the variance
        is learned, or measured as optimal, `variance_type`, and the measured `data_variances`. Of a network that draws
        in one step from a level of noise, this `start_ratio`.

    Raises:
        ValueError: the configuration states no path that hfgen knows, or the prediction kind is not known.
    """
    facts = path_facts(config)
    flow = facts["path"] == "straight"
    facts["prediction_type"] = config.get("prediction_type") or ("flow_prediction" if flow else "epsilon")
    prediction_row(facts["prediction_type"])
    facts["use_flow_sigmas"] = flow
    keys = ("flow_shift", "shift") if "solver_order" in config else ("shift", "flow_shift")  # which one is read
    shift = next((config[key] for key in keys if config.get(key) is not None), 1.0)
    if flow:
        facts.update(shift=shift, flow_shift=shift)
    elif shift != 1 and "power" in config:  # `RectifiedFlowScheduler` shifts its grid on every path
        facts["shift"] = shift
    if config.get("data_variances") is not None:
        facts["data_variances"] = [list(pair) for pair in config["data_variances"]]
    known = (*LEARNED, *HEADS, *(["analytic"] if "data_variances" in facts else []))
    if config.get("variance_type") in known:
        facts["variance_type"] = config["variance_type"]
    if config.get("start_ratio") is not None:
        facts["start_ratio"] = config["start_ratio"]
    return facts


def prediction_half(scheduler: Any, output: Any, sample: Any) -> Any:
    """Return the first half of a network's channels, (B, C, ...), where the second one states a variance.

    Args:
        scheduler: whose configuration says so.
        output (B, 2 C, ...): the network's output for the
        sample (B, C, ...).

    Raises:
        ValueError: the configuration does not say so, or the shapes are others.
    """
    if scheduler.config.get("variance_type") in (*LEARNED, *HEADS) and output.ndim == sample.ndim:
        output = output[:, : sample.shape[1]]
    if output.shape != sample.shape:
        raise ValueError(
            f"The network's output {tuple(output.shape)} has another shape than the sample {tuple(sample.shape)}. If "
            "half of its channels state a variance, the scheduler's configuration has to say so: "
            f"{type(scheduler).__name__}.from_config({{**config, 'variance_type': 'learned_range'}})."
        )
    return output


def without_variances(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what `hfgen calibrate` stated: it holds for these weights of the network alone."""
    dropped = {"data_variances"} | ({"variance_type"} if config.get("variance_type") in OPTIMAL else set())
    return {key: value for key, value in config.items() if key not in dropped}


def states_facts(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is that of a scheduler, or names a path, instead of a few options."""
    owned = ("_class_name", "_use_default_values", "sigma_data")
    named = ("path", "use_flow_sigmas", "beta_schedule", "trained_betas", "shift", "snr_shift_scale")
    return any(key in config for key in owned) or any(config.get(key) is not None for key in named)


def present_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the present names of options that a folder has under former names."""
    names = _RENAMED.get(str(config.get("_class_name")), {})
    names = {old: new for old, new in names.items() if old in config and new not in config}
    return {names.get(key, key): value for key, value in config.items()}


def default_options(cls: type, config: Mapping[str, Any]) -> set[str]:
    """Return the names of options, other than facts, that were left at their defaults.

    A configuration from JSON without a record has those of its class: `cls` itself, or a class of diffusers.
    """
    left = {key for key, value in config.get("_default_options", {}).items() if _equal(config.get(key), value)}
    if "_use_default_values" in config:
        left.update(config["_use_default_values"])
    elif "_default_options" not in config and "_class_name" in config:
        name, ours = config["_class_name"], "path" in config
        owner = (cls if name == cls.__name__ else None) if ours else getattr(diffusers, str(name), None)
        parameters = inspect.signature(owner.__init__).parameters if owner else {}
        left.update(key for key, p in parameters.items() if key in config and _equal(config[key], p.default))
    return left - set(FACTS)


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def split_options(cls: type, config: Mapping[str, Any], kwargs: Mapping[str, Any]) -> tuple[dict, dict, dict]:
    """Return the options that `cls` takes from another scheduler's configuration, and what it only keeps for others.

    Args:
        cls: one of our schedulers.
        config: a configuration, ours or diffusers'.
        kwargs: options that replace those of the configuration.

    Returns:
        Options of `cls`; options that other classes have; the record of what a saved configuration left at defaults.
    """
    own, merged = set(inspect.signature(cls.__init__).parameters) - set(cls.ignore_for_config), {**config, **kwargs}
    facts = network_facts(merged) if states_facts(merged) else {}
    left = default_options(cls, config) - set(kwargs)
    dropped, saved = set(FACTS) if facts else set(), config.get("_class_name") == cls.__name__ and "path" in config
    if saved:  # a folder keeps the values that it states
        dropped = dropped - own | (left & _DERIVED if kwargs else set())
    else:
        dropped |= left
    options = {key: value for key, value in merged.items() if key[0] != "_" and key not in dropped} | facts
    record = {key: options[key] for key in left if key in options and key in own} if saved else {}
    return (
        {key: value for key, value in options.items() if key in own},
        {key: value for key, value in options.items() if key not in own},
        record,
    )


class ConfigurationMixin:
    """`from_config` for configurations of all schedulers, and explicit facts. A mixin of `ConfigMixin` classes."""

    ignore_for_config: ClassVar[tuple[str, ...]] = ("sigma_min", "sigma_max")
    _compatibles: ClassVar[list[str]] = [member.name for member in KarrasDiffusionSchedulers]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a scheduler from another's configuration, ours or diffusers'.

        What the configuration says of the network is kept, see `network_facts`. Other options are kept if
        they were set.

        Raises:
            ValueError: the configuration states no path that hfgen knows.
        """
        if not isinstance(config, Mapping):
            return super().from_config(config, return_unused_kwargs, **kwargs)
        own = {*inspect.signature(cls.__init__).parameters, *FACTS}
        replaced = {key: kwargs.pop(key) for key in own & set(kwargs)}
        options, others, record = split_options(cls, cls._translated(present_names(config), replaced), replaced)
        scheduler, unused = super().from_config(options, return_unused_kwargs=True, **kwargs)
        private = {key: config[key] for key in ("_class_name", "_diffusers_version") if key in config}
        if "_class_name" in private:
            private["_class_name"] = cls.__name__
        record = {**scheduler.config["_default_options"], **record}
        scheduler.register_to_config(**private, **others)
        scheduler._set_up()  # with the options that are not given to `__init__`
        scheduler.register_to_config(_default_options=record)
        return (scheduler, {**unused, **others}) if return_unused_kwargs else scheduler

    @classmethod
    def _translated(cls, config: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return a configuration in this class's names. `kwargs` replace its options, and may be changed here."""
        return config

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [cls, *super()._get_compatibles()]

    def _state_facts(self, ends: Mapping[str, Any]) -> None:
        """Make the facts explicit in the configuration, and record the options that were left at their defaults."""
        facts, config = network_facts({**self.config, **ends}), self.config
        left = {key: config[key] for key in config.get("_use_default_values", ()) if key not in FACTS}
        if "_use_default_values" in config:
            self.register_to_config(_use_default_values=[])  # so that diffusers' schedulers take every option
        self.register_to_config(**facts, _default_options=left)
