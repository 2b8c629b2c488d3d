"""Two nodes, one of which is lost: the launchers of torch start both again, from the last checkpoint."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hfgen.trainer.checkpoint import checkpoints
from tests.helpers.processes import environment, run_in_two_processes
from tests.helpers.toys import rows

PROGRAM = """
import sys, time, torch
from tests.helpers.toys import KINDS, TracedObjective, plain_networks, run, weights

def wait(step):
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0)

options = {"train_batch_size": 4, "max_train_steps": 40, "logging_steps": 1, "checkpointing_steps": 5}
_, result = run(f"{sys.argv[1]}/run", "gan", TracedObjective(KINDS["gan"][1](), wait), plain_networks("gan"), **options)
torch.save(weights(result.networks), f"{sys.argv[1]}/{torch.distributed.get_rank()}.pt")
torch.distributed.destroy_process_group()
"""


class Node:
    """A launcher of a node with one process, in a session of its own.

    Args:
        folder: with the program, and for what it prints.
        number: 0 keeps the meeting point of the nodes.
        port: of that point, on loopback.
    """

    def __init__(self, folder: Path, number: int, port: int):
        self.log = folder / f"node{number}.log"
        words = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
        words += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", f"is_host={number == 0}"]
        command = [sys.executable, "-m", "torch.distributed.run", *words, folder / "nodes.py", folder, "0.2"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment(), stdout=log, stderr=log, start_new_session=True
            )

    def lose(self) -> None:
        """Kill the launcher and its processes, as a power cut does."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in (self.process.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def wait_for(what, seconds, nodes):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "".join(node.log.read_text()[-2000:] for node in nodes)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children of a process are read from /proc")
def test_a_lost_node_costs_the_steps_since_the_last_checkpoint_and_no_bit(tmp_path):
    (tmp_path / "nodes.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [Node(tmp_path, number, port) for number in (0, 1)]
    try:
        wait_for(lambda: any(int(f.name.split("-")[1]) >= 10 for f in checkpoints(tmp_path / "run")), 300, nodes)
        nodes[1].lose()
        newest = checkpoints(tmp_path / "run")[-1]
        assert newest.name < "checkpoint-40"
        nodes[1] = Node(tmp_path, 1, port)
        wait_for(lambda: all(node.process.poll() is not None for node in nodes), 400, nodes)
    finally:
        for node in nodes:
            if node.process.poll() is None:
                node.lose()
    said = "".join(node.log.read_text() for node in nodes)
    assert [node.process.returncode for node in nodes] == [0, 0], said[-3000:]
    assert f"Resumed from {newest} at step" in said
    whole = tmp_path / "whole"
    whole.mkdir()
    run_in_two_processes(PROGRAM, whole)
    assert rows(tmp_path / "run") == rows(whole / "run") and len(rows(whole / "run")) == 40
    for rank in (0, 1):
        torch.testing.assert_close(*(torch.load(f / f"{rank}.pt") for f in (tmp_path, whole)), rtol=0, atol=0)
