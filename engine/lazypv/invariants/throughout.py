"""Invariants that hold after every step, whatever runs: looked at only where what they are about has changed.

Each invariant says what it is a function of, its inputs. While those stay what they were, so does its verdict, and
nobody looks again; whoever wants to (a replay) has all of them looked at after each step, and finds the same.

Source: semantics 9, invariants 1, 2, 9, 10, 11, 13, 14, 17, 18, 20, 25, 26, 27.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypv.host.gmap import ASCE_ORIGIN
from lazypv.invariants.frames import free_too_early
from lazypv.invariants.structures import mapped_and_owned
from lazypv.invariants.violation import Violation
from lazypv.ultravisor import vault
from lazypv_kernels import scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lazypv.host.host import Host
    from lazypv.host.mm import Mm
    from lazypv.host.vm import Vm


class Throughout:
    """Looks at one host after each step.

    Parameters
    ----------
    host : Host
        Its arrays stay where they are; its address spaces and VMs may come and go.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seen: list[Any] = []
        self._configurations = vault.firmware_of(host.machine.ultravisor).configurations
        self._frames = _frames_check(host)

    def begin(self) -> None:
        """A run begins: nothing was looked at yet."""
        self._seen = []

    def look(self) -> Violation | None:
        """Evaluate the invariants of frames, and those others whose inputs are not what they were."""
        broken = self._frames()
        if broken is not None:
            return broken
        host = self._host
        if host.ledger.broken:
            return Violation(*host.ledger.broken[0])
        now: list[Any] = [len(self._configurations)]
        for process in host.processes:
            now += _inputs(host, process.mm, process.vms)
        if now == self._seen:
            return None
        self._seen = now
        return self._structures()

    def look_at_all(self) -> Violation | None:
        """Evaluate all of them, changed or not."""
        host = self._host
        broken = self._frames()
        if broken is None and host.ledger.broken:
            broken = Violation(*host.ledger.broken[0])
        return broken or self._structures()

    def _structures(self) -> Violation | None:
        host = self._host
        for process in host.processes:
            for invariant in _OF_AN_ADDRESS_SPACE:
                if (text := invariant.broken(host, process.mm)) is not None:
                    return Violation(invariant.number, text)
            for vm in process.vms:
                for table in _OF_A_VM:
                    if (text := table.broken(vm)) is not None:
                        return Violation(table.number, text)
        return next(self._of_configurations(), None)

    def _of_configurations(self) -> Iterator[Violation]:
        tables = [int(configuration.table[0]) for configuration in self._configurations.values()]
        if len(set(tables)) != len(tables):
            yield Violation(13, "two configurations have the same top table")
        for handle, (_, pv, _) in self._host.leaked.items():
            if any(np.any(self._host.machine.frames.byte[frames] == 0) for frames in (pv.base, pv.variable)):
                yield Violation(14, f"storage donated to handle {handle:#x}, whose destruction failed, is free")


def _frames_check(host: Host) -> Callable[[], Violation | None]:
    """Invariants 1, 2 and 14, over all frames with one kernel."""
    machine = host.machine
    firmware = vault.firmware_of(machine.ultravisor)
    state, owner, frames = firmware.state, firmware.owner, machine.frames.byte
    counts = np.zeros(4, np.int64)
    count_broken_frames, pages = scan.count_broken_frames, frames.size

    def look() -> Violation | None:
        counts[:] = 0
        count_broken_frames(state, owner, frames, 0, pages, counts)
        early = free_too_early(machine, marked_tables_too=False) if counts[0] else None
        if early is not None:
            return early
        return Violation(2, f"{counts[1]} frames are secure but bear no mark") if counts[1] else None

    return look


def _inputs(host: Host, mm: Mm, vms: list[Vm]) -> list[Any]:
    """What the invariants of one address space and its VMs are functions of."""
    nodes, counter = mm.set_aside.nodes, mm.protected.value
    found = [
        mm.users, mm.count, counter, mm.freed, len(host.configurations), len(host.leaked),
        mm.pv_sync_destroy, mm.torn_down, len(nodes), nodes[0].count if nodes else 0,
        # With a counter of zero, invariant 10 is about every page that is mapped.
        object() if counter < 1 and host.configurations else None,
    ]  # fmt: skip
    for vm in vms:
        gmap = vm.gmap
        found += (gmap.asce, mm.gmap_asce, gmap.table, len(gmap.crst_list), gmap.guest_handle, vm.kvm.pv.handle)
    return found


class OfAnAddressSpace(NamedTuple):
    """An invariant, and how to see that an address space breaks it: what is wrong, in words."""

    number: int
    broken: Callable[[Host, Mm], str | None]


class OfAVm(NamedTuple):
    """An invariant, and how to see that a VM breaks it."""

    number: int
    broken: Callable[[Vm], str | None]


def _counter_covers(host: Host, mm: Mm) -> str | None:
    counter = mm.protected.value
    exist = list(host.configurations.values()).count(mm) + sum(lost is mm for lost, _, _ in host.leaked.values())
    if not host.series.count_configurations or counter >= exist:
        return None
    return f"the protected counter is {counter}, but {exist} configurations of the address space exist"


def _hooks_are_on(host: Host, mm: Mm) -> str | None:
    counter = mm.protected.value
    if counter >= 1 or not host.configurations or not (owned := mapped_and_owned(host, mm)):
        return None
    return f"the protected counter is {counter}, but {owned} mapped pages belong to a configuration"


def _not_negative(_host: Host, mm: Mm) -> str | None:
    return None if mm.protected.value >= 0 else f"the protected counter is {mm.protected.value}"


def _references_add_up(_host: Host, mm: Mm) -> str | None:
    if mm.users >= 0 and mm.count >= 0 and (mm.count == 0) == mm.freed:
        return None
    return f"mm_users is {mm.users}, mm_count {mm.count}"


def _list_is_sound(_host: Host, mm: Mm) -> str | None:
    aside = mm.set_aside
    frames = [node.frames for node in aside.nodes]
    if any(part.size > aside.node_capacity for part in frames):
        return f"a node of the list holds more than {aside.node_capacity} pages"
    twice = sum(part.size for part in frames) - (np.unique(np.concatenate(frames)).size if frames else 0)
    return f"{twice} pages are on the list twice" if twice else None


def _table_is_listed_once(vm: Vm) -> str | None:
    gmap = vm.gmap
    return "the top table is on the list of tables twice" if gmap.crst_list.count(gmap.table) > 1 else None


def _asce_names_the_table(vm: Vm) -> str | None:
    gmap = vm.gmap
    alone = len(vm.process.vms) == 1
    if gmap.asce & ASCE_ORIGIN != gmap.table.origin or (alone and gmap.asce != vm.mm.gmap_asce):
        return f"ASCE {gmap.asce:#x} does not name the top table at {gmap.table.origin:#x}"
    return f"the top table's index is {gmap.table.index}" if gmap.table.index else None


def _handle_is_the_vms_or_none(vm: Vm) -> str | None:
    handle = vm.gmap.guest_handle
    return None if handle in (0, vm.kvm.pv.handle) else f"the gmap says handle {handle:#x}, the VM has another one"


_OF_AN_ADDRESS_SPACE = (
    OfAnAddressSpace(9, _counter_covers),
    OfAnAddressSpace(10, _hooks_are_on),
    OfAnAddressSpace(11, _not_negative),
    OfAnAddressSpace(25, _references_add_up),
    OfAnAddressSpace(26, _list_is_sound),
)
_OF_A_VM = (
    OfAVm(17, _table_is_listed_once),
    OfAVm(18, _asce_names_the_table),
    OfAVm(20, _handle_is_the_vms_or_none),
)
