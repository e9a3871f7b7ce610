"""Policies side by side: on the same storage, in turn, everything compiled and touched before any clock starts."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lazypv.errors import UsageError
from lazypv.guest import Workload
from lazypv.hardware import UV_BASE_PAGES, Machine
from lazypv.host.host import frames_for
from lazypv.host.kvm import StorageSizes
from lazypv.image import GuestImage, image_for
from lazypv.machine.storage import available_memory
from lazypv.scenario.measure import PHASES, Contender, Job, Kind, Measured, Policy, measure, name_of
from lazypv.sizes import PAGE_SIZE, parse_pages, parse_size

if TYPE_CHECKING:
    from lazypv.invariants import Violation

DEFAULT_MEMORY = 8 << 30
_WHOLE = 1 << 20
WARM_MEMORY = "96MiB"
WARM_LIMIT = "32MiB"


class ProgressReport(Protocol):
    """Who wants to know how far it is."""

    def expect(self, phases: int) -> None:
        """How many phases there will be."""

    def __call__(self, phase: str) -> None:
        """The next phase begins."""


@dataclass(frozen=True)
class Plan:
    """What a person asked for.

    Attributes
    ----------
    memory : str or None
        Size of the guest; None is 8 GiB, or half of the free memory if that is less, but never less than the image.
    threads : int or None
        Cores of one bulk operation; None is all of them.
    """

    kind: Kind
    image: str | None
    memory: str | None
    vcpus: int
    policies: tuple[Contender, ...]
    threads: int | None
    batch: int
    throttle: float | None
    sync_below: str
    workload: Workload
    repeat: int
    seed: int
    timeline: bool = False


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes
    ----------
    runs : dict of str to list of Measured
        By policy, in order.
    """

    kind: Kind
    image: str
    memory: int
    vcpus: int
    sync_below: int
    batch: int
    computer: dict[str, object]
    runs: dict[str, list[Measured]]

    @property
    def violations(self) -> list[Violation]:
        """Of all runs."""
        return [violation for runs in self.runs.values() for run in runs for violation in run.violations]


def compare(plan: Plan, progress: ProgressReport) -> Comparison:
    """Run every policy `plan.repeat` times on one machine, taking turns (A B B A).

    Raises
    ------
    LazyPVError
        The image cannot be read, sizes do not fit, or there is less memory than that takes.
    """
    order = _turns(plan)
    progress.expect(len(order) * PHASES + 2)
    progress("read the image")
    if plan.memory is not None and parse_pages(plan.memory) == 0:
        raise UsageError("a guest without memory is refused")
    image = image_for(plan.image, plan.memory, plan.seed)
    sync_below = parse_size(plan.sync_below)
    parse_pages(sync_below)
    memory = guest_memory(plan.memory, image)
    image.source(memory)
    threads = plan.threads or os.cpu_count() or 1
    job = Job(
        kind=plan.kind,
        memory=memory,
        vcpus=plan.vcpus,
        batch=plan.batch,
        sync_below=sync_below,
        throttle=plan.throttle,
        workload=plan.workload,
        seed=plan.seed,
        timeline=plan.timeline,
    )
    progress("touch storage")
    machine = Machine(machine_size(memory, plan.vcpus), threads=threads)
    try:
        warm(machine, image)
        runs: dict[str, list[Measured]] = {name_of(policy): [] for policy in plan.policies}
        for policy in order:
            runs[name_of(policy)].append(measure(machine, image, job, policy, progress))
    finally:
        machine.close()
    return Comparison(
        kind=plan.kind,
        image=image.name,
        memory=memory,
        vcpus=plan.vcpus,
        sync_below=sync_below,
        batch=plan.batch,
        computer=describe_computer(threads),
        runs=runs,
    )


def _turns(plan: Plan) -> list[Contender]:
    there, back = plan.policies, plan.policies[::-1]
    return [policy for turn in range(plan.repeat) for policy in (back if turn % 2 else there)]


def guest_memory(wanted: str | None, image: GuestImage) -> int:
    """Bytes of the guest: what was asked for, or 8 GiB, or half of the free memory, or at least the image."""
    if wanted is not None:
        return parse_pages(wanted) * PAGE_SIZE
    half = available_memory() // 2 // _WHOLE * _WHOLE
    return max(min(DEFAULT_MEMORY, half), image.size)


def machine_size(memory: int, vcpus: int) -> int:
    """Bytes of a machine on which a guest of `memory` can be rebooted or shut down."""
    frames = frames_for(memory // PAGE_SIZE, vcpus, StorageSizes())
    return (frames + UV_BASE_PAGES + 2 * 4 + 64) * PAGE_SIZE


def warm(machine: Machine, image: GuestImage) -> None:
    """Compile, or load from the cache, whatever a measurement calls: a small guest goes through all of it first."""
    small = GuestImage(image.name, image.pages[:64], image.guest_page[:64], 64 * PAGE_SIZE)
    memory = min(parse_size(WARM_MEMORY), (machine.frames.free() // 3) * PAGE_SIZE)
    kinds: tuple[Kind, ...] = ("reboot", "shutdown")
    policies: tuple[Policy, ...] = ("eager", "lazy")
    for kind in kinds:
        for policy in policies:
            job = Job(
                kind=kind,
                memory=memory,
                vcpus=1,
                batch=64,
                sync_below=memory // 2 // PAGE_SIZE * PAGE_SIZE,
                throttle=None,
                workload=Workload(touches=64),
                seed=0,
                hold_back=True,
            )
            measure(machine, small, job, policy, _nobody)


def _nobody(_phase: str) -> None:
    pass


def describe_computer(threads: int) -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
