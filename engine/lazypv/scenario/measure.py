"""The main job: one guest, rebooted or shut down under a policy, measured, and every page accounted for.

A run goes like this. The old run comes up, fills its memory, works, shares some pages. At its last instruction the
clock starts; the guest is down until the next run's first instruction (or until the process is gone). The new run meets
what is left of the old one, first as a normal guest, then as a protected one, and begins with what the walk reaches
last. When nothing is left to clean, invariants, accounts and remains are looked at.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from lazypv.clocks.actors import Event, LongestHold
from lazypv.guest import Workload
from lazypv.host.faults import ProcessKilledError
from lazypv.host.teardown import DESTROY_THREAD
from lazypv.invariants import Remains, Violation, search_remains
from lazypv.policy import LoadedPolicy
from lazypv.scenario.boot import GuestStartError
from lazypv.scenario.host import Host, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypv.hardware import Machine
    from lazypv.image import GuestImage
    from lazypv.invariants import OldRun

Kind = Literal["reboot", "shutdown"]
Policy = Literal["eager", "lazy"]
Contender = Policy | LoadedPolicy
"""The series with ``lazy_destroy`` at 0 or 1, or somebody's own policy."""

PHASES = 9
"""How often :func:`measure` tells its progress, at most."""
SHARED_SHARE = 100
"""One page in so many is shared with the host, at least :data:`SHARED_LEAST`."""
SHARED_LEAST = 64
EARLY_PAGES = 256
"""Pages of the old run that the new one touches before it is protected itself, and as many right after."""
SPEED_PAGES = 4096
"""Own pages that the new run goes over again and again while its speed is measured."""
INVARIANTS_CHECKED = (1, 2, 4, 9, 10, 11, 13, 14, 17, 18, 20, 22, 25, 26, 27, 30, 31, 33, 34, 38, 40, 41)


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes
    ----------
    hold_back : bool
        Keep the background walk back until the new run has met what it is to meet; otherwise it meets what is left.
    timeline : bool
        Keep every bulk step and call.
    """

    kind: Kind
    memory: int
    vcpus: int
    batch: int
    sync_below: int
    throttle: float | None
    workload: Workload
    seed: int
    hold_back: bool = False
    timeline: bool = False


@dataclass
class Measured:
    """One run under one policy.

    Attributes
    ----------
    downtime_s, complete_s : float
        Until the guest was back (or its process gone), and until all its memory was: storage freed.
    setup_s : float
        Compilation, boot, filling and sharing before the clock started.
    held_back_bytes : int
        Pages still owned by the old run, and storage donated for it, when it was no longer down.
    slowdown : float or None
        Speed of the new run when nothing was left to clean, over its speed while cleaning went on.
    """

    policy: str
    downtime_s: float
    complete_s: float
    setup_s: float
    owned_pages: int
    held_back_bytes: int
    threads: int
    accounts: OldRun
    exceptions: dict[int, int]
    uvcs: dict[str, int]
    useless_uvcs: dict[str, int]
    longest_hold: LongestHold
    slowdown: float | None
    violations: list[Violation] = field(default_factory=list)
    timeline: list[Event] = field(default_factory=list)
    rc: int = 0
    rrc: int = 0


def measure(
    machine: Machine, image: GuestImage, job: Job, policy: Contender, progress: Callable[[str], None]
) -> Measured:
    """One run under one policy; the machine is free again afterwards. `progress` is told what happens now.

    Raises
    ------
    PolicyError, ViolationError
        A policy of somebody's own raised something, or used the host in a way that is wrong.
    """
    own = policy if isinstance(policy, LoadedPolicy) else None
    host = Host(
        machine,
        lazy_destroy=policy != "eager",
        sync_below=job.sync_below,
        batch=job.batch,
        throttle=job.throttle,
        policy=own.make() if own else None,
    )
    try:
        with own.blamed() if own else nullcontext():
            return _Run(host, image, job, name_of(policy), progress).measure()
    finally:
        host.close()


def name_of(policy: Contender) -> str:
    """How reports call it: eager, lazy, or what the person typed."""
    return policy.spelling if isinstance(policy, LoadedPolicy) else policy


class _Run:
    """The parts of one measurement, in the order in which they happen."""

    def __init__(self, host: Host, image: GuestImage, job: Job, policy: str, progress: Callable[[str], None]) -> None:
        self.host, self.job, self.policy, self.progress = host, job, policy, progress
        self.violations: list[Violation] = []
        start = host.clock.now()
        progress("boot")
        self.vm = host.create_vm(job.memory, vcpus=job.vcpus, image=image, seed=job.seed)
        self.vm.protect()
        progress("fill memory")
        self.vm.populate()
        progress("work")
        self.vm.run(job.workload)
        self.shared = self._pages_to_share()
        self.vm.share(self.shared)
        progress("remember contents")
        self.remains = self._remember()
        mine = np.setdiff1d(np.arange(self.vm.boot_image.pages, self.vm.pages), self.shared, assume_unique=True)
        self.late = np.ascontiguousarray(mine[::-1][: 2 * EARLY_PAGES])
        self.setup_s = host.clock.now() - start

    def _pages_to_share(self) -> NDArray[np.int64]:
        """One in a hundred, spread over all of memory behind the boot image: some lie above the limit."""
        pages, first = self.vm.pages, self.vm.boot_image.pages
        count = min(max(pages // SHARED_SHARE, SHARED_LEAST), max(1, (pages - first) // 2))
        return np.unique(np.linspace(first, pages - 1, count).astype(np.int64))

    def _remember(self) -> Remains:
        hashes = self.vm.page_hashes()
        return Remains.of([self.vm.guest.stamp], np.delete(hashes, self.shared))

    def measure(self) -> Measured:
        """From the old run's last instruction until nothing is left of it."""
        host, job, kernel = self.host, self.job, self.host.kernel
        ultravisor = host.machine.ultravisor
        issued, useless = Counter(ultravisor.issued), Counter(ultravisor.useless)
        host.clock.holds.clear()
        host.clock.timeline = [] if job.timeline else None
        kernel.throttle.open = not job.hold_back
        self.progress(job.kind)
        start = host.clock.now()
        report = self.vm.reboot() if job.kind == "reboot" else self.vm.shutdown()
        threads = int(report.deferred)
        slowdown = self._new_run(report) if job.kind == "reboot" else None
        kernel.throttle.open = True
        self.progress("wait for the cleaner")
        host.drain()
        complete = host.clock.last_end - start if report.deferred else report.downtime_s
        accounts = self.vm.accounts()
        measured = Measured(
            policy=self.policy,
            downtime_s=report.downtime_s,
            complete_s=complete,
            setup_s=self.setup_s,
            owned_pages=report.owned_pages,
            held_back_bytes=report.held_back_bytes,
            threads=threads,
            accounts=accounts,
            exceptions=dict(kernel.ledger.exceptions - self.vm.exceptions_before),
            uvcs=dict(ultravisor.issued - issued),
            useless_uvcs=dict(ultravisor.useless - useless),
            longest_hold=self._longest_hold(),
            slowdown=slowdown,
            rc=report.result.rc,
            rrc=report.result.rrc,
            timeline=host.clock.timeline or [],
        )
        host.clock.timeline = None
        self.progress("check")
        self._check_report(report)
        self._check_end(accounts, ultravisor.issued["DESTROY_SEC_CONF"] - issued["DESTROY_SEC_CONF"])
        self._end_guest()
        measured.violations = self.violations
        return measured

    # --- the next run --------------------------------------------------------------------------------------------

    def _new_run(self, report: Report) -> float | None:
        """What the next run does while its predecessor's memory is being cleaned; its slow-down by that."""
        vm = self.vm
        self.progress("next run")
        try:
            early, first = self.late[:EARLY_PAGES], self.late[EARLY_PAGES:]
            vm.read(early)
            vm.protect()
            self._expect_zero(vm.read(np.concatenate([first, self.shared[::-1][:SHARED_LEAST]])))
            self._expect_zero(vm.read(early))
            self.host.kernel.throttle.open = True
            return self._slowdown() if report.deferred else None
        except (ProcessKilledError, GuestStartError) as killed:
            self.violations.append(Violation(35, f"the next run did not survive: {killed}"))
            return None

    def _expect_zero(self, hashes: NDArray[np.uint64]) -> None:
        wrong = int(np.count_nonzero(hashes != self.vm.zero_hash)) if self.host.machine.has_contents else 0
        if wrong:
            self.violations.append(Violation(31, f"{wrong} pages did not read as zero when the next run imported them"))

    def _slowdown(self) -> float | None:
        """Rate of whole-page reads of own pages while the cleaner runs, and as many afterwards."""
        clock = self.host.clock
        pages = np.arange(min(SPEED_PAGES, self.vm.boot_image.pages), dtype=np.int64)
        self.vm.read(pages)
        rounds, start = 0, clock.now()
        while self.host.kernel.threads:
            self.vm.read(pages)
            rounds += 1
        beside = clock.now() - start
        if not rounds:
            return None
        self.host.drain()
        start = clock.now()
        for _ in range(rounds):
            self.vm.read(pages)
        return beside / (clock.now() - start)

    # --- checks --------------------------------------------------------------------------------------------------

    def _check_report(self, report: Report) -> None:
        limit = self.host.kernel.sync_below_pages
        if report.left_below_limit:
            self._violated(22, f"{report.left_below_limit} pages below the limit still belong to the old run")
        if report.deferred and report.destroyed_sync > limit:
            self._violated(
                40, f"{report.destroyed_sync} pages were destroyed in the guest's time, {limit} at most may be"
            )
        if report.deferred and self.policy == "eager":
            self._violated(38, "lazy_destroy is 0, but the destruction was put off")

    def _check_end(self, accounts: OldRun, destroyed: int) -> None:
        if self.policy == "eager" and destroyed != 1:
            self._violated(38, f"DESTROY_SEC_CONF was issued {destroyed} times")
        walk = self.host.clock.holds.get(("mmap_lock", DESTROY_THREAD))
        if walk is not None and (walk.pages > self.job.batch or walk.calls):
            self._violated(33, f"the walk held the lock for {walk.pages} pages and {walk.calls} calls")
        self.violations += accounts.check()
        self.violations += self.host.check()
        self.violations += search_remains(self.host.machine, self.remains, leaked=accounts.leaked > 0)

    def _end_guest(self) -> None:
        """Whatever still runs ends, and the machine is as it was before."""
        if self.job.kind == "reboot":
            self.vm.kill()
            self.host.drain()
        machine = self.host.machine
        kept = machine.pages - machine.reserved.size - machine.frames.free() - self.host.kernel.ledger.leaked_frames
        self.violations += self.host.check()
        if kept:
            self._violated(34, f"{kept} frames are held by nobody who is alive")

    def _violated(self, number: int, text: str) -> None:
        self.violations.append(Violation(number, text))

    def _longest_hold(self) -> LongestHold:
        """Of the mmap lock, by whoever: what a fault of the guest had to wait for at most."""
        holds = [hold for (lock, _), hold in self.host.clock.holds.items() if lock == "mmap_lock"]
        return LongestHold(
            max((hold.pages for hold in holds), default=0),
            max((hold.calls for hold in holds), default=0),
            max((hold.seconds for hold in holds), default=0.0),
        )
