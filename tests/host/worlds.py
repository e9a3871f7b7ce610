"""A small machine with a host, a process and a VM, and what tests do with them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from lazypv.clocks.actors import Fault
from lazypv.clocks.live import LiveClock
from lazypv.hardware import Machine
from lazypv.host import faults, kvm
from lazypv.host.host import Host
from lazypv.host.loose_ends import loose_ends
from lazypv.host.policy import TeardownPolicy
from lazypv.host.run import access
from lazypv.host.vm import Process, Vm
from lazypv.invariants import check_frames, check_structures
from lazypv.series import Series
from lazypv.sizes import PAGE_SIZE
from lazypv.steps import Bulk, Step, Text, Wait
from lazypv.ultravisor import Answer, ImageHeader, vault
from lazypv_kernels.access import COPY_PAGE, LOAD, STORE_WORD, hash_words
from lazypv_kernels.layout import DIR_EXPORTED, DIR_WORDS, DON_UV, MARK_SECURE, NO_FRAME, NS, SEC, STATE_MASK

IMAGE_PAGES = 8
GUEST_PAGES = 256
LIMIT_PAGES = 64
"""`sync_below` of these worlds: guest pages below it are never cleaned lazily."""
BATCH = 16
NODE_CAPACITY = 5
REFUSED = Answer(1, 0x0101)
"""An injected failure."""

_WORDS = PAGE_SIZE // 8
ZERO_PAGE = int(hash_words(np.zeros((1, _WORDS), np.uint64), 0))
"""What reading a page of zeroes gives."""


def pages_size(pages: int) -> int:
    return pages * PAGE_SIZE


def hash_of(content: bytes) -> int:
    """What a guest that reads a page with this content gets."""
    return int(hash_words(np.frombuffer(content, np.uint64).reshape(1, _WORDS), 0))


def posted(*numbers: str, without: tuple[str, ...] = ()) -> Series:
    """The series with some defects as they were posted, less some patches."""
    return Series().without(*without).with_defects(*numbers)


class World:
    """One machine, one host, one process with one VM of 256 pages, of which 64 lie below the limit.

    The background walk stands still while `hold` is in force.
    """

    def __init__(
        self,
        series: Series | None = None,
        *,
        lazy_destroy: bool = True,
        guest_pages: int = GUEST_PAGES,
        slots: list[range] | None = None,
        feature_bits: tuple[int, ...] = (),
        machine_pages: int = 1024,
        image_at: int = 0,
        policy: TeardownPolicy | None = None,
    ) -> None:
        self.machine = Machine(pages_size(machine_pages), feature_bits=feature_bits, uv_base_pages=16)
        self.firmware = vault.firmware_of(self.machine.ultravisor)
        self.free_at_start = self.machine.frames.free()
        self.host = Host(
            self.machine,
            series=series,
            lazy_destroy=lazy_destroy,
            sync_below=pages_size(LIMIT_PAGES),
            batch=BATCH,
            node_capacity=NODE_CAPACITY,
            policy=policy,
        )
        self.clock = LiveClock()
        self.process = self.new_process()
        self.vm = self.host.create_vm(self.process, slots or [range(guest_pages)], 2)
        self.image_at = image_at
        self._random = np.random.default_rng(7)

    # --- driving -------------------------------------------------------------------------------------------------

    def run(self, text: Text[Any]) -> Any:
        return self.clock.run(text)

    def hold(self) -> None:
        """The background walk stops before its next batch."""
        self.host.throttle.open = False

    def let_go(self) -> None:
        self.host.throttle.open = True

    def drain(self) -> None:
        """Until no background thread is left."""
        self.let_go()
        self.run(self._drained())
        self.clock.join_ended()

    async def _drained(self) -> None:
        await Wait(lambda: self.host.threads == 0, "background threads to end", patient=True)

    def fail(self, name: str, value: Any = REFUSED, *, after: int = 0) -> None:
        """From now on each step of that name gives `value` back instead of being done, the first `after` excepted."""
        left = after

        def fault(step: Step[Any]) -> Fault | None:
            nonlocal left
            if step.label != name:
                return None
            left -= 1
            return Fault(value) if left < 0 else None

        self.clock.faults = fault

    def repair(self) -> None:
        self.clock.faults = None

    # --- processes and VMs ---------------------------------------------------------------------------------------

    def new_process(self) -> Process:
        return self.host.create_process(private=pages_size(12), shared_file=pages_size(7), special=pages_size(3))

    def new_vm(self, pages: int = GUEST_PAGES, process: Process | None = None) -> Vm:
        return self.host.create_vm(process or self.new_process(), [range(pages)], 2)

    async def protect_text(self, vm: Vm) -> None:
        """Boot loader, enable, parameters, unpack, verify, start; each has to work."""
        image = self._random.integers(0, 255, (IMAGE_PAGES, PAGE_SIZE), dtype=np.uint8)
        header = ImageHeader.seal(image, self.image_at)
        pages = np.arange(self.image_at, self.image_at + IMAGE_PAGES)
        rows = np.arange(IMAGE_PAGES)
        words = image.view(np.uint64)
        stamps = np.ascontiguousarray(words[:, 0])
        await access(vm, 0, pages, COPY_PAGE, stamps, words, rows)
        self._must(await kvm.enable(vm))
        self._must(await kvm.set_parameters(vm, header))
        handle = vm.kvm.pv.handle
        unpack = self.machine.ultravisor.unpack_pages
        await faults.import_pages(vm, pages, lambda part: unpack(handle, part), 0x3E)
        self._must(await kvm.verify(vm))
        self._must(await kvm.start_cpus(vm))

    @staticmethod
    def _must(result: kvm.Result) -> None:
        assert result.errno == 0, result

    def protect(self, vm: Vm | None = None) -> int:
        """Bring the VM up protected; its handle."""
        self.run(self.protect_text(vm or self.vm))
        return (vm or self.vm).kvm.pv.handle

    def disable(self, vm: Vm | None = None) -> kvm.Result:
        result: kvm.Result = self.run(kvm.disable(vm or self.vm))
        return result

    def exit(self, process: Process | None = None) -> None:
        self.run((process or self.process).exit())

    def full_guest(self) -> int:
        """A protected guest all of whose pages are secure; its handle."""
        handle = self.protect()
        self.write(self.all_pages(), 7)
        return handle

    def remove_slot(self, start: int, stop: int) -> None:
        """The guest has no memory in ``[start, stop)`` any more; what is mapped there is not looked at."""
        slots = self.vm._backed
        below = [range(slot.start, min(slot.stop, start)) for slot in slots]
        above = [range(max(slot.start, stop), slot.stop) for slot in slots]
        self.vm._backed = sorted((part for part in (*below, *above) if part), key=lambda part: part.start)

    def reboot_with_old_pages(self) -> int:
        """A protected guest with all of its pages secure reboots, and the cleaner has not begun; the old handle."""
        old = self.protect()
        self.write(self.all_pages(), 7)
        self.hold()
        assert self.disable().errno == 0
        return old

    # --- the guest -----------------------------------------------------------------------------------------------

    def all_pages(self, vm: Vm | None = None) -> np.ndarray:
        return np.arange((vm or self.vm).guest_pages)

    def write(self, pages: Any, value: int, vm: Vm | None = None, number: int = 0) -> None:
        pages = np.atleast_1d(np.asarray(pages))
        self.run(access(vm or self.vm, number, pages, STORE_WORD, np.full(pages.size, value, np.uint64)))

    def fill(self, page: int, content: bytes, vm: Vm | None = None) -> None:
        """The guest writes all of a page."""
        words = np.frombuffer(content, np.uint64).reshape(1, _WORDS).copy()
        one = np.zeros(1, np.int64)
        self.run(access(vm or self.vm, 0, one + page, COPY_PAGE, np.zeros(1, np.uint64), words, one))

    def read(self, page: int, vm: Vm | None = None, number: int = 0) -> int:
        values = np.zeros(1, np.uint64)
        self.run(access(vm or self.vm, number, np.array([page]), LOAD, values))
        return int(values[0])

    def share(self, pages: Any, vm: Vm | None = None) -> None:
        self.run(self._share(np.atleast_1d(np.asarray(pages)), vm or self.vm))

    async def _share(self, pages: np.ndarray, vm: Vm) -> None:
        handle = vm.gmap.guest_handle
        share = self.machine.ultravisor.share_pages
        answer = await Bulk("share", lambda part: share(handle, part, True), pages)
        assert answer.all_done

    # --- looking -------------------------------------------------------------------------------------------------

    def frames(self, pages: Any, vm: Vm | None = None) -> np.ndarray:
        """Frames behind guest pages, which have to be mapped."""
        entry = (vm or self.vm).gmap.pte[np.atleast_1d(np.asarray(pages))]
        assert np.all(entry != NO_FRAME)
        return entry.astype(np.int64) - 1

    def states(self, frames: np.ndarray) -> Counter[int]:
        return Counter((self.firmware.state[frames] & STATE_MASK).tolist())

    def owned(self, handle: int) -> np.ndarray:
        """Frames of guest pages that the configuration owns."""
        configuration = self.firmware.configurations.get(handle)
        if configuration is None:
            return np.empty(0, np.int64)
        state = self.firmware.state & STATE_MASK
        return np.flatnonzero((self.firmware.owner == configuration.slot) & (state >= SEC) & (state < DON_UV))

    def owned_guest_pages(self, handle: int) -> np.ndarray:
        return np.sort(self.firmware.guest_page[self.owned(handle)])

    def exported(self, handle: int) -> int:
        """Pages that left the configuration by export, so far or in all its life."""
        if handle in self.firmware.history:
            return self.firmware.history[handle][0]
        slot = self.firmware.configurations[handle].slot
        return int(self.firmware.directory[slot * DIR_WORDS + DIR_EXPORTED])

    def issued(self, name: str) -> int:
        return self.machine.ultravisor.issued[name]

    def is_free(self, frames: np.ndarray) -> np.ndarray:
        return self.machine.frames.byte[frames] == 0

    def longest_hold(self, lock: str) -> tuple[int, int]:
        """Pages handled, and calls made, under the longest hold of `lock` by anybody."""
        holds = [hold for (name, _), hold in self.clock.holds.items() if name == lock]
        return max(hold.pages for hold in holds), max(hold.calls for hold in holds)

    def fresh_clock(self) -> None:
        """Forget what was measured so far."""
        self.clock.stop()
        self.clock = LiveClock()

    # --- what has to hold ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Invariants 1 and 2 on every frame: nothing secure is free, nothing secure is unmarked."""
        state, byte = self.firmware.state & STATE_MASK, self.machine.frames.byte
        assert not np.any((byte == 0) & (state != NS)), "a frame is free but not non-secure (invariant 1)"
        assert not np.any((state == SEC) & (byte & MARK_SECURE == 0)), "a secure frame bears no mark (invariant 2)"
        assert self.host.ledger.broken == []

    def broken(self) -> list[int]:
        """Numbers of the invariants that do not hold now; nothing may be running."""
        found = [*loose_ends(self.host), *check_frames(self.host), *check_structures(self.host, drained=True)]
        return sorted({number for number, _ in found})

    def end_clean(self) -> None:
        """Everything ends, and nothing is left."""
        self.exit()
        self.drain()
        assert self.broken() == []
        self.check_all_gone()

    def check_all_gone(self) -> None:
        """Every process is gone: every frame, reference, counter and configuration is as before the first."""
        self.check()
        assert self.firmware.configurations == {}
        assert np.count_nonzero(self.firmware.owner) == 0
        assert self.states(np.arange(self.machine.pages)) == {NS: self.machine.pages - 16, DON_UV: 16}
        assert self.machine.frames.free() == self.free_at_start
        assert self.host.configurations == self.host.leaked == {}
        assert (self.host.threads, self.host.put_off_pages, self.host.ledger.leaked_frames) == (0, 0, 0)
        for process in self.host.processes:
            mm = process.mm
            assert (mm.users, mm.count, mm.freed, mm.torn_down) == (0, 0, True, True)
            assert (mm.protected.value, mm.to_drain, mm.set_aside.pages, len(mm.set_aside.nodes)) == (0, 0, 0, 0)

    def close(self) -> None:
        self.let_go()
        self.clock.stop()
        self.machine.close()
