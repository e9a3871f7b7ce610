"""Small guests rebooted and shut down on real threads: invariants, accounts, remains."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lazypv.guest import Workload
from lazypv.hardware import Machine
from lazypv.image import image_for
from lazypv.scenario.compare import machine_size
from lazypv.scenario.measure import Job, Kind, Policy, measure

from .check import Check, NoticedError

MEMORY = 4 << 20
SYNC_BELOW = 1 << 20


def checks() -> Iterator[Check]:
    """Both kinds under both policies, and a machine of states only."""
    kinds: tuple[Kind, ...] = ("reboot", "shutdown")
    policies: tuple[Policy, ...] = ("lazy", "eager")
    for kind in kinds:
        for policy in policies:
            yield Check(f"{kind} {policy}", partial(_run, kind, policy, hold_back=kind == "reboot"))
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
