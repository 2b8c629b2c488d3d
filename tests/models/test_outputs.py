"""The outputs of networks, which accelerate takes apart and rebuilds under mixed precision."""

import dataclasses
import importlib
import pkgutil

import pytest
import torch
from accelerate.utils import convert_to_fp32
from diffusers.utils import BaseOutput

import hfgen.models

MODULES = [importlib.import_module(f"hfgen.models.{each.name}") for each in pkgutil.iter_modules(hfgen.models.__path__)]
OUTPUTS = {value for module in MODULES for value in vars(module).values() if isinstance(value, type)}
OUTPUTS = sorted(
    (each for each in OUTPUTS if issubclass(each, BaseOutput) and each is not BaseOutput),
    key=lambda each: each.__name__,
)


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output.__name__)
def test_an_output_survives_mixed_precision_whole(output):
    values = {field.name: torch.ones(1, dtype=torch.bfloat16) for field in dataclasses.fields(output)}
    rebuilt = convert_to_fp32(output(**values))
    assert type(rebuilt) is output and rebuilt.keys() == values.keys()
    assert all(value.dtype == torch.float32 for value in rebuilt.values())
