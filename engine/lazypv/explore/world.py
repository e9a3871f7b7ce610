"""Small worlds: a machine of a few dozen frames, a guest of a few pages, and everything else that decides something.

A world is built once, its state taken down, and put back before each run; what a run starts from is a protected guest
that has written its pages and shared one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazypv.clocks.explore import LetGo, Taken
from lazypv.clocks.live import LiveClock
from lazypv.errors import ModelError
from lazypv.explore.footprints import ACCOUNTS, Look, Watcher
from lazypv.explore.state import Digester, Snapshot
from lazypv.guest import GuestRun
from lazypv.hardware import Machine
from lazypv.host import kvm
from lazypv.host.faults import ProcessKilledError
from lazypv.host.gmap import CrstTable
from lazypv.host.host import Host
from lazypv.host.kvm import Protected, StorageSizes
from lazypv.host.ledger import Ledger
from lazypv.host.run import access
from lazypv.host.vm import Process, Vm
from lazypv.invariants import (
    Balance,
    Remains,
    Throughout,
    Violation,
    check_frames,
    check_structures,
    check_wound_up,
    search_remains,
)
from lazypv.invariants.accounts import owned_below, unbalanced
from lazypv.invariants.whole import (
    FLEETING,
    content_hashes,
    cpus_of_configurations,
    firmware_state,
    frame_arrays,
    frames_state,
    is_known,
)
from lazypv.machine import AbsoluteStorage
from lazypv.policy import LoadedPolicy
from lazypv.scenario.boot import BootImage, GuestStartError, load_boot_image, protect
from lazypv.series import Series
from lazypv.sizes import PAGE_SIZE
from lazypv.steps import Bulk, Text, Wait
from lazypv.ultravisor import Ultravisor
from lazypv_kernels.access import LOAD, hash_words
from lazypv_kernels.workers import Workers

FRAMES_BESIDE = 24
"""Of a small machine: its own, a process's other pages, and what faults of a few steps may leak."""
FRAMES_OF_A_GUEST = 10
"""Beside its pages: two top tables, two configurations, their CPUs."""
NODE_CAPACITY = 2
SIZES = StorageSizes(base=1, variable=1, variable_per_mib=0, cpu=1)
_FLEETING = (*FLEETING, Protected, CrstTable, GuestRun)
"""What comes and goes in a run; everything else that a world was built of stays."""
_ZERO = np.zeros((1, PAGE_SIZE // 8), np.uint64)


@dataclass(frozen=True)
class Shape:
    """How small a world is.

    Attributes
    ----------
    pages : int
        Pages of each guest; half of them, rounded down, lie below the limit.
    limit : int or None
        Pages below which nothing is lazy; None is half of `pages`.
    """

    pages: int = 4
    limit: int | None = None
    vcpus: int = 1
    batch: int = 1
    lazy_destroy: bool = True
    misc: bool = False

    @property
    def sync_below(self) -> int:
        """Pages below which nothing is lazy."""
        return self.pages // 2 if self.limit is None else self.limit


class World:
    """One small machine with its host, processes and guests.

    Attributes
    ----------
    vms : list of Vm
        Guests, in order of their making.
    policy : LoadedPolicy or None
        How guests end, if not in the series' way.
    faulted : bool
        A step of this run has failed: what falls back to the slow way, or gives up cleanly, is no violation.
    """

    def __init__(
        self,
        shape: Shape,
        series: Series,
        guests_per_process: tuple[int, ...] = (1,),
        policy: LoadedPolicy | None = None,
    ) -> None:
        self.shape = shape
        self.series = series
        self.policy = policy
        frames = FRAMES_BESIDE + sum(guests_per_process) * (shape.pages + FRAMES_OF_A_GUEST)
        self.machine = Machine(
            frames * PAGE_SIZE,
            uv_base_pages=1,
            slots=6,
            entropy=RepeatedKeys(),
            feature_bits=(0,) if shape.misc else (),
        )
        self.host = Host(
            self.machine,
            lazy_destroy=shape.lazy_destroy,
            series=series,
            sync_below=shape.sync_below * PAGE_SIZE,
            batch=shape.batch,
            node_capacity=NODE_CAPACITY,
            storage_sizes=SIZES,
            policy=None if policy is None else policy.make(),
        )
        self.processes: list[Process] = []
        self.vms: list[Vm] = []
        self.runs: dict[int, GuestRun] = {}
        self.old_stamps: list[int] = []
        self.first_handles: list[int] = []
        self.written: list[NDArray[np.uint64]] = []
        for guests in guests_per_process:
            process = self.host.create_process(private=PAGE_SIZE, shared_file=PAGE_SIZE, special=0)
            self.processes.append(process)
            for _ in range(guests):
                self.vms.append(self.host.create_vm(process, [range(shape.pages)], shape.vcpus))
        self.image = BootImage(np.full((1, PAGE_SIZE), 0x49, np.uint8), Workers(), RepeatedKeys())
        self.found: list[Violation] = []
        self.tallies: list[Tally] = []
        self.made = 0
        self.faulted = False
        self._snapshot: Snapshot | None = None
        self._digester: Digester | None = None
        self._watcher: Watcher | None = None
        self._throughout = Throughout(self.host)
        self._balance = Balance.of(self.host)

    # --- building ------------------------------------------------------------------------------------------------

    def boot(self, vm: Vm) -> None:
        """Bring a guest up, let it write all of its pages, share the last one."""
        clock = LiveClock()
        clock.run(self.bring_up(vm))
        run = self.runs[self.vms.index(vm)]
        pages = np.arange(1, self.shape.pages)
        clock.run(run.write(0, [pages]))
        clock.run(run.share(0, pages[-1:]))
        hashes = np.zeros(self.shape.pages, np.uint64)
        clock.run(access(vm, 0, np.arange(self.shape.pages), LOAD, hashes))
        self.written.append(hashes)
        self.old_stamps.append(run.stamp)
        self.first_handles.append(vm.kvm.pv.handle)

    async def bring_up(self, vm: Vm) -> None:
        """Boot loader, enable, unpack, verify, start."""
        await load_boot_image(vm, 0, self.image)
        await protect(vm, self.image)
        self.made += 1
        self.runs[self.vms.index(vm)] = GuestRun(vm, stamp=self.made << 56 | 0x5354414D50)

    def take_down(self) -> None:
        """This is where every run begins."""
        self._snapshot = Snapshot(self._roots(), opaque=(Ultravisor, Workers, Series, StorageSizes))
        opaque = (World, Tally, Machine, Ultravisor, AbsoluteStorage, Workers, Series, StorageSizes)
        self.machine.ultravisor.done.clear()
        self._balance = Balance.of(self.host)
        roots = [self, self.image, *self._roots()]
        self._digester = Digester(opaque, self.machine.size, roots, _FLEETING)
        self._watcher = Watcher(opaque, self.machine.size, roots, _FLEETING, frame_arrays(self.machine))

    def restore(self) -> None:
        """Go back there."""
        if self._snapshot is None:
            raise ModelError("the world was never taken down")
        self._snapshot.restore()
        self._throughout.begin()
        self.machine.ultravisor.done.clear()
        self.found = []
        self.tallies = []
        self.made = len(self.first_handles)
        self.faulted = False

    def _roots(self) -> list[Any]:
        firmware = firmware_state(self.machine)
        guests = [self.processes, self.vms, self.runs, self.old_stamps, self.first_handles]
        return [self.host, firmware, self.machine.frames, *guests]

    # --- what a guest does ---------------------------------------------------------------------------------------

    async def reads_zero(self, vm: Vm, pages: list[int]) -> None:
        """The guest reads pages that it has never written: they are zero (invariant 31)."""
        hashes = np.zeros(len(pages), np.uint64)
        await access(vm, 0, np.array(pages), LOAD, hashes)
        for page, value in zip(pages, hashes, strict=True):
            if int(value) != _zero_hash():
                self.found.append(Violation(31, f"guest page {page} did not read as zero"))

    async def keeps(self, vm: Vm, pages: list[int]) -> None:
        """The guest, still in its first run, reads pages: they hold what it last wrote (invariant 31)."""
        hashes = np.zeros(len(pages), np.uint64)
        await access(vm, 0, np.array(pages), LOAD, hashes)
        written = self.written[self.vms.index(vm)]
        lost = [page for page, found in zip(pages, hashes, strict=True) if found != written[page]]
        if lost:
            self.found.append(Violation(31, f"guest pages {lost} do not hold what the guest last wrote"))

    async def touches(self, vm: Vm, pages: list[int]) -> None:
        """The guest reads pages, whatever is in them."""
        await access(vm, 0, np.array(pages), LOAD, np.zeros(len(pages), np.uint64))

    async def touches_what_may_be_gone(self, vm: Vm, page: int) -> None:
        """The guest reads a page that is perhaps not its memory any more; then it is stopped (invariants 35, 42)."""
        at = np.array([page])
        gone = not vm.is_backed(at)[0]
        with self._tally("destroyed_on_fault") as destroyed:
            try:
                await self.touches(vm, [page])
            except ProcessKilledError as error:
                if error.signal != "SIGSEGV" or vm.is_backed(at)[0]:
                    raise
        if gone and destroyed.pages:
            self.found.append(Violation(42, f"guest page {page} was cleaned for a guest that has no memory there"))

    async def disable(self, vm: Vm) -> None:
        """KVM_PV_DISABLE, and what has to hold when it returns (invariants 22, 38)."""
        handle = vm.kvm.pv.handle
        with self._tally("destroyed_sync") as destroyed:
            result = await kvm.disable(vm)
        if result.errno:
            raise GuestStartError("KVM_PV_DISABLE", result)
        at_once = destroyed.pages
        limit = self.shape.sync_below
        if self.shape.lazy_destroy and not self.faulted and vm.guest_pages > limit < at_once:
            text = f"{at_once} pages were destroyed in the guest's time, {limit} at most may be"
            self.found.append(Violation(40, text))
        left = owned_below(self.machine, handle, self.shape.sync_below)
        if left:
            self.found.append(Violation(22, f"{left} pages below the limit still belong to the old run"))
        if is_known(self.machine, handle) and not self.shape.lazy_destroy:
            self.found.append(Violation(38, "lazy_destroy is 0, but the configuration outlived KVM_PV_DISABLE"))

    @contextmanager
    def _tally(self, account: str) -> Iterator[Tally]:
        """Count pages of one account while a text is in here."""
        if account not in ACCOUNTS:
            raise ModelError(f"account {account!r} decides something here, and no footprint knows of it")
        tally = Tally(self.host.ledger, account)
        self.tallies.append(tally)
        try:
            yield tally
        finally:
            # A run that is given up leaves here when the next one may have begun.
            self.tallies = [each for each in self.tallies if each is not tally]

    async def drained(self) -> None:
        """Wait until no background thread is left."""
        await Wait(lambda: self.host.threads == 0, "background threads to end")

    def claim(self, step: Bulk[Any], at: int) -> LetGo | None:
        """Claim the frame that page `at` of a step is about, as its call does first; None if there is none to claim."""
        if not step.uvc:
            return None
        page = int(step.columns[0][at])
        frame = page if step.frame_of is None else step.frame_of(page)
        return None if frame < 0 else self.machine.ultravisor.begin(frame)

    # --- looking -------------------------------------------------------------------------------------------------

    def look(self) -> Violation | None:
        """After a step: what no step may break, as far as its inputs have changed."""
        return self._throughout.look() or (self.found[0] if self.found else None)

    def look_at_all(self) -> Violation | None:
        """After a step: all that no step may break."""
        return self._throughout.look_at_all() or (self.found[0] if self.found else None)

    def look_at_the_end(self) -> Violation | None:
        """When nothing runs any more: everything."""
        found = [*check_frames(self.host), *check_structures(self.host, drained=True)]
        if not found:
            first = zip(self.old_stamps, self.first_handles, self.vms, strict=False)
            gone = [stamp for stamp, handle, vm in first if vm.kvm.pv.handle != handle]
            if gone:
                remains = Remains.of(gone, np.empty(0, np.uint64))
                found = search_remains(self.machine, remains, leaked=bool(self.host.ledger.leaks or self.host.leaked))
        return found[0] if found else None

    async def wind_up(self) -> None:
        """Every process of the world ends, and what runs in the background comes to its end."""
        for process in self.host.processes:
            await process.exit()
        await self.drained()

    def look_when_wound_up(self) -> Violation | None:
        """When everybody has left: all is destroyed and free, or accounted for."""
        balance = Balance.of(self.host).check_since(self._balance)
        found = [*check_frames(self.host), *check_wound_up(self.host), *balance]
        return found[0] if found else None

    def digest(self, texts: list[Any]) -> int:
        """A number for the whole state, texts included; the same within this process."""
        if self._digester is None:
            raise ModelError("the world was never taken down")
        # Of the books only what decides something: two states that differ in no more go on alike.
        sums = [*unbalanced(self.host), *[tally.pages for tally in self.tallies]]
        things = [self._roots(), self.found, self.made, self.faulted, texts, sums]
        return self._digester.digest(things, content_hashes(self.machine))

    @property
    def watcher(self) -> Watcher:
        """Who sees what a step changes."""
        if self._watcher is None:
            raise ModelError("the world was never taken down")
        return self._watcher

    def look_closely(self, texts: list[Any]) -> Look:
        """The state in parts, to be compared with another."""
        accounts = [self.host.ledger.pages[each] for each in ACCOUNTS]
        hashes = content_hashes(self.machine).view(np.uint8).reshape(self.machine.pages, -1)
        frames = np.concatenate([frames_state(self.machine), hashes], axis=1)
        scene = [self._roots(), self.found, self.made, self.faulted, accounts]
        return self.watcher.look(frames, cpus_of_configurations(self.machine), scene, texts)

    def fingerprint(self, steps: list[Taken]) -> str:
        """A number for what happened and what it left, the same in any process: hexadecimal."""
        told = hashlib.blake2b(repr([tuple(step) for step in steps]).encode(), digest_size=16)
        told.update(content_hashes(self.machine).tobytes())
        told.update(frames_state(self.machine).tobytes())
        return told.hexdigest()


class Tally:
    """How many pages have come into an account of the books since."""

    def __init__(self, ledger: Ledger, account: str) -> None:
        self._ledger = ledger
        self._account = account
        self._before = ledger.pages[account]

    @property
    def pages(self) -> int:
        """Until now."""
        return self._ledger.pages[self._account] - self._before


class RepeatedKeys:
    """Keys that are the same in every run: what makes a run repeatable, and why nothing of it is ever saved."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, size: int) -> bytes:
        """The next key."""
        self.drawn += 1
        return hashlib.blake2b(self.drawn.to_bytes(8, "big"), digest_size=size, person=b"lazypv-explore").digest()


@cache
def _zero_hash() -> int:
    """Of a page of zeroes; not at import, which must not wait for a compiler."""
    return int(hash_words(_ZERO, 0))


Scene = Callable[["World"], list[tuple[str, Text[Any]]]]
