"""The memory that machines of all rigs lie in."""

from __future__ import annotations

import numpy as np

from lazypv.ultravisor import vault
from lazypv_bench.harness import Settings, Work
from lazypv_bench.rig import Memory, Rig
from lazypv_bench.suite import measure_alone
from lazypv_kernels.workers import Workers

from .fakes import fake_benchmark, silent


def address(machine):
    return vault.firmware_of(machine.ultravisor).storage.contents.ctypes.data


def test_one_machine_after_the_other_lies_in_the_same_memory():
    """It is touched once; a larger machine gets larger memory, and a smaller one a part of that."""
    memory, places = Memory(), []
    for size in (8 << 20, 4 << 20, 32 << 20, 8 << 20):
        with Rig(size, memory) as rig:
            places.append((address(rig.make_machine(size)), rig.machine.pages))
    assert places[0][0] == places[1][0]
    assert places[2][0] == places[3][0]
    assert places[1][1] < places[0][1] == places[3][1] < places[2][1]


def test_memory_is_taken_at_once_for_the_largest(monkeypatch):
    """A short run knows what it will need; and what was released is not had again."""
    workers = Workers(1)
    memory = Memory(5000)
    first = memory.take(1000, workers)
    assert first.pages == 1000
    assert memory.take(5000, workers).contents.ctypes.data == first.contents.ctypes.data
    first.contents[7] = 9
    memory.release()
    assert not memory.take(5000, workers).contents[7].any()
    workers.close()


def test_a_part_can_be_given_back_like_the_whole():
    """`destroy.give_back` has its machine there too."""
    workers = Workers(1)
    memory = Memory(2048)
    memory.take(2048, workers).contents[:] = 9
    part = memory.take(1024, workers)
    assert part.can_be_given_back
    part.give_back(512, 1024)
    whole = memory.take(2048, workers).contents
    assert not whole[512:1024].any()
    assert (np.delete(whole, np.s_[512:1024], axis=0) == 9).all()
    workers.close()


def test_who_is_warm_has_no_run_before_the_first_that_counts():
    """All others have one."""
    log = []
    fake = fake_benchmark([[1.0], [1.0, 1.0]], log=log)
    subject = fake.subject
    warm = type(fake)(fake.name, lambda rig: Work(run=subject(rig).run, bytes=1, warm=True), fake.limit)
    assert measure_alone(warm, Settings(1 << 30, 1), silent).ratio == 0.001
    assert [each for each in log if each in ("a", "b")] == ["b", "a", "b"]
