"""Memory that goes back to the operating system: whole huge pages of free frames, our own memory only."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from lazypv.errors import UsageError
from lazypv.hardware import Machine
from lazypv.machine.storage import HUGE_PAGE, HUGE_PAGES
from lazypv.scenario import Host
from lazypv.ultravisor import vault

PAGE = 4096


def contents_of(machine):
    return vault.firmware_of(machine.ultravisor).storage.contents


def test_our_own_storage_begins_with_a_whole_huge_page():
    assert contents_of(Machine("8MiB")).ctypes.data % HUGE_PAGE == 0


def test_only_whole_huge_pages_of_free_frames_go_back_and_read_as_zero():
    machine = Machine("32MiB")
    contents = contents_of(machine)
    contents[:] = 0xAA
    machine.frames.byte[3 * HUGE_PAGES + 7] = 1
    before = machine.frames.byte.copy()
    given = machine.give_back_free()
    blocks = before.reshape(-1, HUGE_PAGES).any(axis=1)
    assert given == np.count_nonzero(~blocks) * HUGE_PAGE > 0
    for number, held in enumerate(blocks):
        part = contents[number * HUGE_PAGES : (number + 1) * HUGE_PAGES]
        assert (part == (0xAA if held else 0)).all()
    assert np.array_equal(machine.frames.byte, before)
    machine.close()


def test_this_process_holds_less_afterwards():
    machine = Machine("96MiB")
    process = psutil.Process()
    before = process.memory_info().rss
    given = machine.give_back_free()
    assert given > 80 << 20
    assert before - process.memory_info().rss > given // 2
    machine.close()


@pytest.mark.parametrize(
    "make", [lambda: Machine.attach(on_a_page(16 << 20)), lambda: Machine("16MiB", contents=False)]
)
def test_somebody_elses_memory_and_none_at_all_are_not_given_back(make):
    with pytest.raises(UsageError, match="own memory"):
        make().give_back_free()


def on_a_page(size):
    room = np.zeros(size + PAGE, np.uint8)
    start = -room.ctypes.data % PAGE
    return room[start : start + size]


def test_a_guest_that_is_gone_for_good_leaves_its_memory_to_others_and_another_can_come():
    """After the cleaning; the next guest touches it first and works as ever."""
    machine = Machine("160MiB")
    host = Host(machine, sync_below="4MiB")
    free = machine.frames.free()
    for _ in range(2):
        vm = host.create_vm("32MiB", vcpus=1)
        vm.protect()
        vm.populate()
        assert machine.give_back_free() < free * PAGE - (32 << 20), "nothing of a living guest"
        stamps = vm.page_hashes()
        assert np.array_equal(vm.page_hashes(), stamps)
        vm.shutdown()
        host.drain()
        assert machine.give_back_free() > free * PAGE - 8 * HUGE_PAGE
        assert machine.frames.free() == free
        assert host.check() == []
    host.close()
    machine.close()
