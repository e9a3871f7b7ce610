"""A guest that was saved and restored has all of its memory, under a key of its own, and runs on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import lazypv
from lazypv.errors import MemoryShortageError
from lazypv.snapshot.errors import SnapshotStateError, WrongParentError
from lazypv.ultravisor import vault
from lazypv_kernels.layout import SEC, SHR

from .conftest import PAGES, change, end, memory_of, running_guest

EAGER_AND_LAZY = pytest.mark.parametrize("lazy", [False, True], ids=["eagerly", "lazily"])


@EAGER_AND_LAZY
def test_all_pages_of_a_restored_guest_are_equal(host, vm, key, tmp_path, lazy):
    """Pages of every kind: never had, written, shared, exported when the guest was saved."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    other = host.restore(tmp_path / "a.arrow", key=key, lazy=lazy)
    other.complete_restore()
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_saving_changes_nothing_for_the_guest(host, vm, key, tmp_path):
    """Exported pages stay exported, secure ones secure: the states of all frames are as they were."""
    firmware = vault.firmware_of(host.machine.ultravisor)
    before = [firmware.state.copy(), firmware.owner.copy(), firmware.storage.contents.copy()]
    vm.snapshot(tmp_path / "a.arrow", key=key)
    for array, was in zip((firmware.state, firmware.owner, firmware.storage.contents), before, strict=True):
        np.testing.assert_array_equal(array, was)
    end(host, vm)


@EAGER_AND_LAZY
def test_a_restored_guest_runs_on_as_if_nothing_happened(host, vm, key, tmp_path, lazy):
    """It works, takes shared pages back, reboots, comes up protected and shuts down."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    other = host.restore(tmp_path / "a.arrow", key=key, lazy=lazy)
    assert other.guest.shared.tolist() == [PAGES - 7, PAGES - 3]
    host.clock.run(other.guest.unshare(0, np.array([PAGES - 3])))
    other.run(lazypv.Workload("uniform", touches=500))
    other.reboot()
    host.drain()
    assert other.accounts().check() == []
    other.protect()
    assert other.read(np.array([PAGES - 1]))[0] == other.zero_hash
    end(host, vm, other)


def test_shared_and_secure_pages_come_back_as_what_they_were(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    other = host.restore(tmp_path / "a.arrow", key=key)
    firmware = vault.firmware_of(host.machine.ultravisor)
    states = firmware.state[other.kernel_vm.gmap.pte.frames()[[PAGES - 7, PAGES - 3, 0]]]
    assert states.tolist() == [SHR, SHR, SEC]
    assert host.machine.load(other.frame_of(PAGES - 7) * 4096, 8) == b"  DERAHS"
    with pytest.raises(lazypv.ProgramInterruption):
        host.machine.load(other.frame_of(0) * 4096, 8)
    end(host, vm, other)


def test_a_page_that_the_guest_never_had_is_not_brought_in(host, vm, key, tmp_path):
    """Zero where the host may see that anyway: no frame is spent on it."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    had = vm.kernel_vm.gmap.pte.count()
    other = host.restore(tmp_path / "a.arrow", key=key)
    assert other.kernel_vm.gmap.pte.count() == had < PAGES
    end(host, vm, other)


def test_restoring_twice_gives_two_guests_under_different_keys(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    guests = [vm, *(host.restore(tmp_path / "a.arrow", key=key) for _ in range(2))]
    firmware = vault.firmware_of(host.machine.ultravisor)
    slots = [firmware.configurations[guest.kernel_vm.kvm.pv.handle].slot for guest in guests]
    assert len({firmware.keys[slot].tobytes() for slot in slots}) == 3
    end(host, *guests)


def test_a_snapshot_is_restored_on_another_machine(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    elsewhere = lazypv.Host(lazypv.Machine("100MiB"))
    other = elsewhere.restore(tmp_path / "a.arrow", key=key)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(elsewhere, other)
    elsewhere.close()


def test_a_guest_that_is_not_protected_cannot_be_saved(host, key, tmp_path):
    vm = host.create_vm("4MiB")
    with pytest.raises(SnapshotStateError, match="protected"):
        vm.snapshot(tmp_path / "a.arrow", key=key)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guest.key"]


def test_a_machine_that_is_too_small_for_the_guest_says_so_and_keeps_nothing_of_it(vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    for size in ("48MiB", "51MiB"):
        small = lazypv.Host(lazypv.Machine(size))
        free = small.machine.frames.free()
        with pytest.raises(MemoryShortageError, match="frames"):
            small.restore(tmp_path / "a.arrow", key=key)
        assert small.machine.frames.free() == free
        small.close()


def test_an_altered_page_that_the_host_holds_stops_the_save_and_names_the_page(host, vm, key, tmp_path):
    """The content of an exported page is verified before it is saved; the guest goes on."""
    vm.read(np.arange(PAGES))
    frame = np.array([vm.frame_of(11)])
    host.machine.frames.get(frame)
    host.clock.run(vm.kernel_vm.host.pages.export_owned(frame), "export")
    host.machine.store(int(frame[0]) * 4096, b"not what was exported")
    with pytest.raises(SnapshotStateError, match="guest page 0xb"):
        vm.snapshot(tmp_path / "a.arrow", key=key)
    assert not (tmp_path / "a.arrow").exists()
    host.machine.frames.put(frame)
    assert vm.read(np.array([12])).size == 1


# --- what has changed --------------------------------------------------------------------------------------------


def test_an_increment_holds_the_pages_that_were_written_since_and_no_others(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    change(vm, [3, 700, 701])
    vm.read(np.arange(PAGES))
    saved = vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    assert saved.pages == 3
    other = host.restore(tmp_path / "b.arrow", key=key)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_sharing_unsharing_and_the_hosts_own_stores_are_changes(host, vm, key, tmp_path):
    """Dirty tracking sees who changes a page without the guest's storing into it."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    vm.share(np.array([40]))
    host.clock.run(vm.guest.unshare(0, np.array([PAGES - 3])))
    host.machine.store(vm.frame_of(PAGES - 7) * 4096 + 5, b"from the host")
    saved = vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    assert saved.pages == 3
    other = host.restore(tmp_path / "b.arrow", key=key)
    assert other.guest.shared.tolist() == [40, PAGES - 7]
    assert host.machine.load(other.frame_of(PAGES - 7) * 4096 + 5, 13) == b"from the host"
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_a_shared_page_that_the_host_holds_now_is_saved_in_any_case(host, vm, key, tmp_path):
    """The host may write to it without anybody's seeing it."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    frame = np.array([vm.frame_of(PAGES - 7)])
    host.machine.frames.get(frame)
    host.clock.run(vm.kernel_vm.host.pages.export_owned(frame), "export")
    host.machine.store(int(frame[0]) * 4096, b"changed behind its back")
    host.machine.frames.put(frame)
    saved = vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    assert saved.pages == 1
    other = host.restore(tmp_path / "b.arrow", key=key)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


@EAGER_AND_LAZY
def test_a_chain_is_restored_with_the_newest_of_each_page(host, vm, key, tmp_path, lazy):
    names = ["a.arrow", "b.arrow", "c.arrow", "d.arrow"]
    vm.snapshot(tmp_path / names[0], key=key)
    for step, (parent, child) in enumerate(itertools.pairwise(names)):
        change(vm, [step, 100, 900 + step], seed=step)
        vm.snapshot(tmp_path / child, key=key, parent=tmp_path / parent)
    other = host.restore(tmp_path / "d.arrow", key=key, lazy=lazy)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_a_guest_that_was_restored_can_be_saved_as_a_child_of_what_it_came_from(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    other = host.restore(tmp_path / "a.arrow", key=key, lazy=True)
    change(other, [9])
    assert other.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow").pages == 1
    third = host.restore(tmp_path / "b.arrow", key=key)
    np.testing.assert_array_equal(memory_of(third), memory_of(other))
    end(host, vm, other, third)


def test_an_increment_with_nothing_in_it_is_a_snapshot_too(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    assert vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow").pages == 0
    other = host.restore(tmp_path / "b.arrow", key=key)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_a_snapshot_of_another_guest_or_of_an_earlier_run_is_no_parent(host, vm, key, tmp_path):
    stranger = running_guest(host, seed=3)
    stranger.snapshot(tmp_path / "stranger.arrow", key=key)
    vm.snapshot(tmp_path / "a.arrow", key=key)
    with pytest.raises(WrongParentError, match="guest"):
        vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "stranger.arrow")
    vm.reboot()
    host.drain()
    vm.protect()
    with pytest.raises(WrongParentError):
        vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    assert not (tmp_path / "b.arrow").exists()


def test_a_snapshot_taken_after_the_guest_was_restored_is_no_parent_of_the_one_it_was_taken_of(host, vm, key, tmp_path):
    """The two have gone different ways since: what the original has changed nobody knows there."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    other = host.restore(tmp_path / "a.arrow", key=key)
    change(other, [9])
    other.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    with pytest.raises(WrongParentError, match="this run"):
        vm.snapshot(tmp_path / "c.arrow", key=key, parent=tmp_path / "b.arrow")


def test_the_bytes_of_an_increment_are_in_proportion_to_the_pages_changed(vm, key, tmp_path):
    """At most 1.3 times the bytes of the changed pages plus 64 KiB."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    for changed in (1, 10, 600):
        change(vm, list(range(changed)))
        saved = vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow", allow_fork=True)
        assert saved.pages == 600 or saved.pages == changed
        assert (tmp_path / "b.arrow").stat().st_size <= 1.3 * 4096 * changed + (64 << 10)
