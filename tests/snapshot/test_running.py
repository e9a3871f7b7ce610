"""A guest is saved while it runs: as of one moment, within bounded memory; and it runs while it is restored."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from lazypv.host.run import access
from lazypv.snapshot.errors import SnapshotStateError
from lazypv.snapshot.layout import columns
from lazypv.snapshot.reader import SnapshotFile
from lazypv.snapshot.save import ROOM_ASIDE, save
from lazypv.steps import Touch
from lazypv.ultravisor import vault
from lazypv_kernels.access import COPY_PAGE

from .conftest import PAGES, change, end, memory_of


class Writer:
    """A guest that writes a number into page after page, then the next number, until it is told to stop."""

    def __init__(self, vm):
        self.vm = vm
        self.rounds = 0
        self.stopping = False
        self.actor = vm.host.clock.spawn(self._write(), "writer")

    async def _write(self):
        pages, rows = np.arange(PAGES), np.zeros(PAGES, np.int64)
        while not self.stopping:
            await Touch(self, "stopping")
            self.rounds += 1
            source = np.full((1, 512), self.rounds, np.uint64)
            await access(self.vm.kernel_vm, 0, pages, COPY_PAGE, np.zeros(PAGES, np.uint64), source, rows)

    def stop(self):
        self.stopping = True
        self.vm.host.clock.join([self.actor])


@pytest.mark.parametrize("room", [4, ROOM_ASIDE], ids=["hardly any room", "room"])
def test_a_running_guest_is_saved_as_it_was_at_one_moment(host, vm, key, tmp_path, room):
    """Pages are written in order, so at any moment the first ones hold a number and the others the one before."""
    writer = Writer(vm)
    while writer.rounds < 3:
        pass
    aside = []
    while len(aside) < 6 or (len(aside) < 60 and np.count_nonzero(aside) < 3):
        saved = save(vm.kernel_vm, vm.lineage, tmp_path / f"{len(aside)}.arrow", key, room=room, threads=2)
        assert saved.aside <= room
        aside.append(saved.aside)
        before = writer.rounds
        while writer.rounds == before:  # and it goes on
            time.sleep(0.001)
    writer.stop()
    assert np.count_nonzero(aside) >= 3, "the guest wrote while it was saved"
    for number in range(len(aside)):
        other = host.restore(tmp_path / f"{number}.arrow", key=key, allow_rollback=True)
        memory = memory_of(other).view(np.uint64)
        assert (memory == memory[:, :1]).all(), "no page is half of one moment, half of another"
        numbers = memory[:, 0].astype(np.int64)
        assert (np.diff(numbers) <= 0).all()
        assert numbers[0] - numbers[-1] <= 1
        end(host, other)
    end(host, vm)


def test_increments_of_a_running_guest_lose_nothing(host, vm, key, tmp_path):
    """What it writes while one is being saved is in the next."""
    vm.snapshot(tmp_path / "0.arrow", key=key)
    writer = Writer(vm)
    for number in range(1, 8):
        vm.snapshot(tmp_path / f"{number}.arrow", key=key, parent=tmp_path / f"{number - 1}.arrow")
    writer.stop()
    vm.snapshot(tmp_path / "8.arrow", key=key, parent=tmp_path / "7.arrow")
    other = host.restore(tmp_path / "8.arrow", key=key)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_a_failed_save_loses_no_change(host, vm, key, tmp_path):
    """What was dirty before is dirty after."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    change(vm, [5, 6])
    with pytest.raises(Exception, match="folder"):
        vm.snapshot(tmp_path / "nowhere" / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    change(vm, [7])
    assert vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow").pages == 3
    other = host.restore(tmp_path / "b.arrow", key=key)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_a_guest_is_saved_once_at_a_time(host, vm, key, tmp_path):
    ultravisor, handle = host.machine.ultravisor, vm.kernel_vm.kvm.pv.handle
    assert ultravisor.begin_snapshot(handle, None, 4) is not None
    with pytest.raises(SnapshotStateError, match="already"):
        vm.snapshot(tmp_path / "a.arrow", key=key)
    ultravisor.end_snapshot(handle, None)
    assert vm.snapshot(tmp_path / "a.arrow", key=key).pages == PAGES


def test_nothing_plain_is_left_of_what_was_copied_aside(host, vm, key, tmp_path):
    """Remanence: rows of the pool are cleared when they are given back."""
    ultravisor, handle = host.machine.ultravisor, vm.kernel_vm.kvm.pv.handle
    vm.read(np.arange(PAGES))
    ultravisor.begin_snapshot(handle, None, 8)
    saving = vault.firmware_of(ultravisor).configurations[handle].saving
    assert ultravisor.copy_aside(handle, np.arange(12)).tolist() == [2] * 8 + [0] * 4
    assert saving.pool.any()
    assert not ultravisor.has_room_aside(handle)
    at = columns(8)
    batch = np.zeros(at[5], np.uint8)
    ultravisor.seal_rows(handle, np.arange(8), np.zeros(32, np.uint8), np.zeros(9, np.uint64), 1, batch, at)
    assert not saving.pool.any()
    assert ultravisor.has_room_aside(handle)
    ultravisor.end_snapshot(handle, None)


# --- lazily ------------------------------------------------------------------------------------------------------


def test_a_lazy_guest_gets_only_what_it_touches(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    hashes = vm.page_hashes()
    other = host.restore(tmp_path / "a.arrow", key=key, lazy=True, prefetch=False)
    wanted = np.array([700, 3, 512])
    np.testing.assert_array_equal(other.read(wanted), hashes[wanted])
    assert np.flatnonzero(other.kernel_vm.gmap.pte.frames() >= 0).tolist() == [3, 512, 700]
    end(host, vm, other)


def test_a_page_that_is_still_in_the_snapshot_cannot_be_had_as_a_zero_page(host, vm, key, tmp_path):
    """A host that imports around the pager is refused: the firmware knows where the page is."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    other = host.restore(tmp_path / "a.arrow", key=key, lazy=True, prefetch=False)
    other.read(np.array([0]))
    from lazypv.host.faults import page_fault

    host.clock.run(page_fault(other.kernel_vm, np.array([1])), "fault")
    answer = host.machine.ultravisor.import_pages(other.kernel_vm.kvm.pv.handle, np.array([1]))
    assert answer.rc.tolist() == [0x0F04]
    np.testing.assert_array_equal(other.read(np.array([1])), vm.read(np.array([1])))
    end(host, vm, other)


def test_a_lazy_guest_whose_pages_are_exported_meanwhile_keeps_them(host, vm, key, tmp_path):
    """What it wrote counts, not what the snapshot has."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    other = host.restore(tmp_path / "a.arrow", key=key, lazy=True, prefetch=False)
    change(other, [20, 21])
    frames = other.kernel_vm.gmap.pte.frames()[[20, 21]]
    host.machine.frames.get(frames)
    host.clock.run(other.kernel_vm.host.pages.export_owned(frames), "export")
    host.machine.frames.put(frames)
    change(vm, [20, 21])
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_a_guest_works_while_the_rest_is_fetched(host, vm, key, tmp_path):
    """Both go through the same door, and neither takes a page from the other."""
    import lazypv

    vm.snapshot(tmp_path / "a.arrow", key=key)
    for seed in range(6):
        other = host.restore(tmp_path / "a.arrow", key=key, lazy=True)
        other._seed = seed
        other.run(lazypv.Workload("uniform", touches=3000, writes=False))
        other.complete_restore()
        np.testing.assert_array_equal(memory_of(other), memory_of(vm))
        end(host, other)
    end(host, vm)


@pytest.mark.parametrize("left", [False, True], ids=["ended", "left"])
def test_a_zero_page_that_is_touched_while_the_last_page_comes_in_is_zero(host, vm, key, tmp_path, left):
    """The CPU was told that its page is still in the snapshot; the prefetch does not wait for it, since it is zero."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    zero = int(np.flatnonzero(~memory_of(vm).any(axis=1))[0])
    other = host.restore(tmp_path / "a.arrow", key=key, lazy=True, prefetch=False)
    pager = other.pager
    real = pager._restore
    handle = pager._chain.newest.source.handle

    def meanwhile(pages):
        pager._restore = real
        other.start_prefetch(())
        while not pager.done:
            time.sleep(0.001)
        if left:
            pager.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(handle)
        return real(pages)

    pager._restore = meanwhile
    other.read(np.array([zero]))
    assert pager.done
    assert pager.problem is None
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    other.kernel_vm.pager = None if left else other.kernel_vm.pager
    end(host, vm, other)


def test_files_are_let_go_of_when_the_last_who_reads_has_read(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    other = host.restore(tmp_path / "a.arrow", key=key, lazy=True, prefetch=False)
    pager = other.pager
    real, handle = pager._restore_from, pager._chain.newest.source.handle

    def meanwhile(*where):
        pager.close()
        os.fstat(handle)
        return real(*where)

    pager._restore_from = meanwhile
    other.read(np.array([5]))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)
    other.kernel_vm.pager = None
    end(host, vm, other)


def test_a_guest_may_end_while_it_is_still_being_fetched(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    for leave in ("reboot", "shutdown"):
        other = host.restore(tmp_path / "a.arrow", key=key, lazy=True)
        other.read(np.array([4]))
        getattr(other, leave)()
        host.drain()
        assert host.check() == []
        if leave == "reboot":
            other.kill()
            host.drain()
    end(host, vm)


def test_what_a_lazy_guest_wanted_first_is_recorded_and_fetched_first_the_next_time(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    other = host.restore(tmp_path / "a.arrow", key=key, lazy=True, prefetch=False)
    wanted = [900, 17, 555]
    for page in wanted:
        other.read(np.array([page]))
    other.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    file = SnapshotFile(tmp_path / "b.arrow", key)
    file.close()
    assert file.state().working_set[:3] == tuple(wanted)
    third = host.restore(tmp_path / "b.arrow", key=key, lazy=True, prefetch=False)
    fetched, pager = [], third.kernel_vm.pager
    real = pager._restore
    pager._restore = lambda pages: (fetched.append(pages.tolist()), real(pages))[1]
    third.start_prefetch(file.state().working_set)
    third.complete_restore()
    assert fetched[0] == sorted(wanted)
    end(host, vm, other, third)


def test_the_working_set_of_an_increment_is_what_was_written_last(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    change(vm, [30, 31, 800])
    vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    file = SnapshotFile(tmp_path / "b.arrow", key)
    file.close()
    assert file.state().working_set == (30, 31, 800)
