"""What nobody will come back for: references, set-aside pages and records that have lost whoever should take care.

Only where nothing is running but threads that are held back does each of them have an owner. Source: semantics 9,
invariants 25, 27, 34.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazypv.host.host import Host
    from lazypv.host.vm import Process


def loose_ends(host: Host) -> list[tuple[int, str]]:
    """Number of the invariant, and what was found."""
    found = [end for process in host.processes for end in _of_process(host, process)]
    if (ownerless := len(host.records) - host.threads) > 0:
        found.append((34, f"{ownerless} records of deferred destroys are in nobody's hands"))
    return found


def _of_process(host: Host, process: Process) -> Iterator[tuple[int, str]]:
    mm = process.mm
    records = [record for record in host.records if record.mm is mm]
    users = process.tasks + sum(record.has_mm for record in records)
    if mm.users != users:
        yield 25, f"mm_users is {mm.users}, but the address space has {users} users"
    holders = (mm.users > 0) + sum(not vm.closed for vm in process.vms) + sum(record.holds_mm for record in records)
    if mm.count != holders:
        yield 25, f"mm_count is {mm.count}, but {holders} references are held"
    protected = any(vm.kvm.pv.handle for vm in process.vms)
    if mm.torn_down and mm.set_aside.pages and not records and not protected:
        yield 27, f"{mm.set_aside.pages} pages are on a list that nobody will work off"
