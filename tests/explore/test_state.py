"""The state of a small world: what was taken down is put back, and a digest sees all of it and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from lazypv.explore.scenarios import scenario
from lazypv.explore.state import Digester, Snapshot
from lazypv.host.kvm import Protected, Result
from lazypv.series import Series
from lazypv.steps import Acquire, Lock
from lazypv.ultravisor import vault


@pytest.fixture(scope="module")
def world():
    return scenario("reboot-into-protected").build(Series(), 2)


@pytest.fixture
def restored(world):
    world.restore()
    yield world
    world.restore()


def firmware(world):
    return vault.firmware_of(world.machine.ultravisor)


def replace_record(world):
    kvm = world.vms[0].kvm
    kvm.pv = Protected(kvm.pv.handle, kvm.pv.base, kvm.pv.variable, kvm.pv.guest_pages)


CHANGES = {
    "a field of an object": lambda world: setattr(world.processes[0].mm, "users", 7),
    "an object behind a field": lambda world: setattr(world.vms[0].kvm, "pv", Protected()),
    "a list": lambda world: world.vms[0].gmap.crst_list.clear(),
    "a dict": lambda world: firmware(world).configurations.clear(),
    "who holds a lock": lambda world: world.processes[0].mm.mmap_lock.readers.add("qemu"),
    "who waits for a lock": lambda world: world.processes[0].mm.mmap_lock.queue.append(("qemu", True)),
    "a page's state": lambda world: firmware(world).state.__setitem__(9, 1 ^ firmware(world).state[9]),
    "a reference": lambda world: world.machine.frames.byte.__setitem__(9, 1 ^ world.machine.frames.byte[9]),
    "a byte of storage": lambda world: firmware(world).storage.contents.__setitem__((9, 4095), 77),
    "a record of a configuration": lambda world: next(iter(firmware(world).configurations.values())).records.fill(8),
    "a page that is booked and was not destroyed": lambda world: world.host.ledger.add("destroyed_sync", 1),
    "a page that came in and is nowhere": lambda world: world.machine.ultravisor.done.update(UNPACK_IMG=1),
    "a key": lambda world: firmware(world).keys.__setitem__((1, 0), firmware(world).keys[1, 0] ^ 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_digest_sees_every_kind_of_change_and_restoring_undoes_it(restored, change):
    before = restored.digest([])
    change(restored)
    assert restored.digest([]) != before
    restored.restore()
    assert restored.digest([]) == before


def test_a_digest_does_not_ask_which_object_holds_what_it_sees(restored):
    """A record of a VM that is replaced by its equal is the same state: what comes and goes is told by its content."""
    before = restored.digest([])
    replace_record(restored)
    assert restored.digest([]) == before


def test_which_account_a_page_is_in_matters_only_to_a_text_that_counts_it(restored):
    def entered_elsewhere():
        restored.host.ledger.pages["destroyed_on_fault"] += 1
        restored.host.ledger.pages["destroyed_sync"] -= 1
        return restored.digest([])

    before = restored.digest([])
    assert entered_elsewhere() == before
    with restored._tally("destroyed_on_fault"):
        counted = restored.digest([])
        assert entered_elsewhere() != counted
    assert restored.digest([]) == before


def test_what_nobody_can_reach_any_more_is_no_part_of_the_state(restored):
    """A configuration that is gone has no say in what comes."""
    gone = next(iter(firmware(restored).configurations.values()))
    firmware(restored).configurations.clear()
    firmware(restored).cpus.clear()
    before = restored.digest([])
    gone.unpacked += 1
    gone.records[:] = 8
    assert restored.digest([]) == before


def test_every_array_of_a_world_is_part_of_its_state(restored):
    """But the kernels' directory, whose addresses are of no account, and what the machine never gives out."""
    before = restored.digest([])
    snapshot = Snapshot(restored._roots(), opaque=(Series,))
    left_out = (firmware(restored).directory, restored.machine.reserved)
    arrays = [array for array in snapshot.arrays if array.size and not any(array is each for each in left_out)]
    assert len(arrays) > 10
    for array in arrays:
        view = array.reshape(-1).view(np.uint8)
        view[-1] ^= 1
        assert restored.digest([]) != before, f"an array of {array.dtype}{list(array.shape)} changes unseen"
        view[-1] ^= 1
    assert restored.digest([]) == before


COUNT = """
from lazypv.explore.scenarios import scenario
from lazypv.explore.search import Bounds, Explorer
from lazypv.series import Series
of = scenario("unmap-during-cleanup")
world = of.build(Series(), 2)
outcome = Explorer(world, of.scene, Bounds(1)).exhaust()
print(outcome.schedules, outcome.steps, outcome.states, sorted(outcome.final_states))
world.processes[0].mm.mmap_lock.readers.update(f"destroy thread {number}" for number in range(12))
print(world.digest([]))
"""


def test_every_process_sees_the_same_states():
    """Several processes add up what they have met: no order of a set of names, no address may enter a digest."""
    seen = set()
    for seed in ("0", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", COUNT]
        seen.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(seen) == 1


def test_a_digest_sees_where_a_text_stands_and_its_locals():
    async def text(number):
        other = number
        await Acquire(Lock("one"), True)
        await Acquire(Lock("two"), True)
        return other

    def started(number, steps):
        made = text(number)
        for _ in range(steps):
            made.send(None)
        return made

    texts = [started(1, 1), started(1, 1), started(2, 1), started(1, 2)]
    one, same, other_local, further = (Digester((), 1 << 20).digest([each]) for each in texts)
    assert one == same
    assert len({one, other_local, further}) == 3
    for each in texts:
        each.close()


def test_a_snapshot_keeps_lists_dicts_sets_and_arrays():
    things = [[1, 2], {"a": 1}, {3}, np.arange(3)]
    snapshot = Snapshot(things, opaque=())
    things[0].append(9)
    things[1]["b"] = 2
    things[2].clear()
    things[3][:] = 0
    snapshot.restore()
    assert things[0] == [1, 2]
    assert things[1] == {"a": 1}
    assert things[2] == {3}
    assert things[3].tolist() == [0, 1, 2]


def test_a_digest_sees_what_a_named_tuple_holds():
    one, same, other = (Digester((), 1 << 20).digest([Result(0, 1, rrc)]) for rrc in (2, 2, 3))
    assert one == same
    assert one != other


def returns(value):
    """A function that has closed over `value`."""
    return lambda: value


def asks_itself(value):
    """A function that has closed over itself, too."""

    def function():
        return function, value

    return function


async def text_with(function):
    await Acquire(Lock("one"), True)
    return function


@pytest.mark.parametrize("closing_over", [returns, asks_itself])
@pytest.mark.parametrize("place", ["a list", "a text", "a function"])
def test_a_digest_sees_what_a_function_has_closed_over_wherever_it_is(closing_over, place):
    def digest_with(value):
        function = closing_over(value)
        text = text_with(returns(function) if place == "a function" else function)
        text.send(None)
        digest = Digester((), 1 << 20).digest([[function]] if place == "a list" else [text])
        text.close()
        return digest

    one, same, other = (digest_with(value) for value in (1, 1, 2))
    assert one == same
    assert one != other
