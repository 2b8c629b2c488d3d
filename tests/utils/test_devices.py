"""Memory of freed tensors stays with the process, where the C library allows it."""

import platform
import subprocess
import sys

import pytest

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
