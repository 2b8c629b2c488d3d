"""Memory of freed tensors stays with the process, where the C library allows it."""

import logging
import platform
import subprocess
import sys

import pytest
import torch

import hfgen
from hfgen.utils.devices import cast

CODE = """
import resource, torch
{call}
torch.manual_seed(0)
layers = [torch.nn.Conv2d(3, 64, 3, padding=1), *[torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)]]
network, x = torch.nn.Sequential(*layers), torch.randn(16, 3, 64, 64)
pages = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    network(x).square().mean().backward()
    network.zero_grad()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(pages[3:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_training_step_reuses_the_pages_of_the_step_before():
    def faults(call):
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(call=call)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    kept = faults("from hfgen.utils.devices import keep_freed_memory; keep_freed_memory()")
    assert kept < 0.2 * faults("")


def test_no_modules_that_should_stay_in_float32_are_not_said(caplog, monkeypatch):
    """diffusers 0.42.1 says "[]" of each network that is cast; what is said of modules that there are stays."""
    network = hfgen.build_denoiser("dit", "xs", 8, 1)
    logger = logging.getLogger("diffusers")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger.manager, "disable", logging.NOTSET)
    caplog.set_level(logging.WARNING, "diffusers")  # by its method: loggers keep what they answered at another level
    assert cast(network, "bfloat16").dtype == torch.bfloat16
    assert not caplog.records
    monkeypatch.setattr(type(network), "_keep_in_fp32_modules", ["output"])
    cast(network, "float32")
    assert "should be kept in float32: ['output']" in caplog.text
