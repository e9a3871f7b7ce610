"""Small guests rebooted and shut down on real threads: invariants, accounts, remains."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

from lazypv.guest import Workload
from lazypv.hardware import Machine
from lazypv.image import image_for
from lazypv.scenario.compare import machine_size
from lazypv.scenario.host import Host
from lazypv.scenario.measure import Job, Kind, Policy, measure
from lazypv.series import Series

from .check import Check, NoticedError

MEMORY = 4 << 20
SYNC_BELOW = 1 << 20
PATIENCE_SECONDS = 20.0


def checks() -> Iterator[Check]:
    """Both kinds under both policies, and a machine of states only."""
    kinds: tuple[Kind, ...] = ("reboot", "shutdown")
    policies: tuple[Policy, ...] = ("lazy", "eager")
    for kind in kinds:
        for policy in policies:
            yield Check(f"{kind} {policy}", partial(_run, kind, policy, hold_back=kind == "reboot"))
    yield Check("reboot without 05, held back", _held_back)
    yield Check("reboot lazy, no contents", partial(_run, "reboot", "lazy", contents=False))


def _run(kind: Kind, policy: Policy, hold_back: bool = False, contents: bool = True) -> None:
    job = Job(
        kind=kind,
        memory=MEMORY,
        vcpus=2,
        batch=64,
        sync_below=SYNC_BELOW,
        throttle=None,
        workload=Workload(touches=256),
        seed=1,
        hold_back=hold_back,
    )
    machine = Machine(machine_size(MEMORY, job.vcpus), contents=contents)
    try:
        measured = measure(machine, image_for(None, str(MEMORY), 1), job, policy, lambda _phase: None)
    finally:
        machine.close()
    if measured.violations:
        violation = measured.violations[0]
        raise NoticedError(f"invariant {violation.number}: {violation.text}")


def _held_back() -> None:
    """The walk of before patch 05, too, waits outside until it may go, and nobody takes that for a deadlock."""
    machine = Machine(machine_size(MEMORY, 2))
    host = Host(machine, series=Series().without("05"), sync_below=SYNC_BELOW)
    try:
        vm = host.create_vm(MEMORY)
        vm.protect()
        vm.run(Workload(touches=256))
        host.kernel.throttle.open = False
        report = vm.reboot()
        if not report.deferred or not host.kernel.threads:
            raise NoticedError(f"nothing was held back: {report}")
        _until_it_waits(host)
        host.kernel.throttle.open = True
        host.drain()
        violations = [*vm.accounts().check(), *host.check()]
    finally:
        host.close()
        machine.close()
    if violations:
        raise NoticedError(f"invariant {violations[0].number}: {violations[0].text}")


def _until_it_waits(host: Host) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not any(actor.waiting for actor in host.clock._actors) and time.monotonic() < until:
        host.clock.check()
        threading.Event().wait(0.005)
