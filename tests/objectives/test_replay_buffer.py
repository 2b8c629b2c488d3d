"""Laws of the replay buffer: contents and samples, which depend neither on how batches are cut nor on a resume."""

import pytest
import torch

from hfgen.objectives.replay_buffer import ReplayBuffer
from tests.helpers.processes import run_in_two_processes


def replay(capacity=20, shape=(1, 2, 2)):
    return ReplayBuffer(capacity, shape)


def numbered(number, count=6):
    """Return the items of a step. Each element of item i is 100 number + i."""
    return (100.0 * number + torch.arange(count)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def draws(number, count=6):
    return torch.rand(count, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def read_step(memory, number, shards=1, turns=1, read_first=False):
    """Read and write all slices of a step, turn after turn; return the items of the last turn, in order."""
    parts = []
    slices = list(zip(numbered(number).chunk(shards), draws(number).chunk(shards), strict=True))
    for _ in range(turns):
        for shard, (items, u) in enumerate(slices):
            if not read_first:
                memory.write(items, number, shard, shards)
            parts.append(memory.read(number, u))
            if read_first:
                memory.write(items, number, shard, shards)
    return None if parts[0] is None else torch.cat(parts[-shards:])


def test_the_buffer_holds_float32_without_gradients():
    memory, x = replay(), torch.randn(3, 1, 2, 2)
    memory.write(x.bfloat16().requires_grad_(), 0)
    assert memory.items.dtype == torch.float32 and not memory.items.requires_grad
    assert memory.read(0, draws(0)) is None


def test_items_of_any_shape():
    memory = ReplayBuffer(20, (5, 3))
    memory.write(torch.arange(90.0).view(6, 5, 3), 0)
    item = memory.read(1, torch.tensor([0.0], dtype=torch.float64))
    assert torch.equal(item, torch.arange(15.0).view(1, 5, 3))


def test_only_earlier_steps_are_read_and_all_stored_items_equally_often():
    memory = replay()
    for number in range(8):
        memory.write(numbered(number), number)
        if number == 0:
            assert memory.read(0, draws(0)) is None
            continue
        u = (torch.arange(1400, dtype=torch.float64) + 0.5) / 1400
        values, counts = memory.read(number, u)[:, 0, 0, 0].unique(return_counts=True)
        history = [100.0 * n + i for n in range(number) for i in range(6)]
        assert values.tolist() == history[-14:]  # 20 slots, of which the present step takes 6
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("read_first", [False, True])
@pytest.mark.parametrize(("shards", "turns"), [(2, 1), (3, 1), (6, 1), (1, 3), (3, 2)])
def test_the_buffer_does_not_depend_on_how_the_batch_is_cut(shards, turns, read_first):
    whole, cut = replay(), replay()
    for number in range(10):
        expected, items = read_step(whole, number), read_step(cut, number, shards, turns, read_first)
        assert (expected is None and items is None) if number == 0 else torch.equal(expected, items)
    assert torch.equal(whole.items, cut.items)


def test_a_restored_buffer_reads_the_same_items_as_the_original():
    original, restored = replay(), replay()
    for number in range(7):
        read_step(original, number)
    restored.load_state_dict(original.state_dict())
    for number in range(7, 12):
        assert torch.equal(read_step(original, number), read_step(restored, number, read_first=True))
    older = replay()
    read_step(older, 0)
    older.load_state_dict(original.state_dict())  # replaces its copy of the last step, too
    assert torch.equal(read_step(older, 12), read_step(original, 12))


def test_impossible_buffers_are_refused():
    with pytest.raises(ValueError, match="memory_size=1 must be at least 2"):
        replay(1)
    with pytest.raises(ValueError, match="memory_size=11 must be at least 12, twice the 6 items"):
        replay(11).write(numbered(0).chunk(2)[0], 0, 0, 2)
    memory = replay()
    memory.write(numbered(0), 0)
    with pytest.raises(ValueError, match="step 2 has no items to read: the last written step is 0"):
        memory.read(2, draws(2))


@pytest.mark.parametrize("capacity", [2, 3])
def test_the_smallest_buffers_hold_single_items(capacity):
    """One slot is read while another is written; with three, two earlier items are stored."""
    memory = replay(capacity)
    with pytest.raises(ValueError, match="step 1 has no items to read: the last written step is -1"):
        memory.read(1, draws(1, 1))
    for number in range(5):
        memory.write(numbered(number, 1), number)
        if number:
            stored = [100.0 * n for n in range(max(0, number - capacity + 1), number)]
            u = (torch.arange(len(stored), dtype=torch.float64) + 0.5) / len(stored)
            assert memory.read(number, u)[:, 0, 0, 0].tolist() == stored


TWO = """
import sys, torch
torch.distributed.init_process_group("gloo")
from tests.objectives.test_replay_buffer import draws, numbered, replay
rank, memory, parts = torch.distributed.get_rank(), replay(), []
for number in range(6):
    for micro in (0, 1):  # four slices of three
        shard = 2 * micro + rank
        memory.write(numbered(number, 12)[3 * shard : 3 * shard + 3], number, shard, 4)
        parts.append(memory.read(number, draws(number, 12)[3 * shard : 3 * shard + 3]))
torch.save((memory.items, parts[2:]), f"{sys.argv[1]}/{rank}.pt")
torch.distributed.barrier()  # no process closes its connections while the other still uses them
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_read_and_store_the_items_of_one(tmp_path):
    run_in_two_processes(TWO.replace("replay()", "replay(30)"), tmp_path)
    alone = replay(30)
    expected = []
    for number in range(6):
        alone.write(numbered(number, 12), number)
        expected.append(alone.read(number, draws(number, 12)))
    saved = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for items, _ in saved:
        assert torch.equal(items, alone.items)
    parts = [parts[micro] for micro in range(10) for _, parts in saved]  # by step, micro-batch, process
    assert torch.equal(torch.cat(parts), torch.cat(expected[1:]))
