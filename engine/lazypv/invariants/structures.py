"""Invariants of counters, tables and lists. Nothing may be running.

Source: semantics 9, invariants 5, 9-11, 13, 14, 17, 18, 20, 26, 27, 34.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.host.gmap import ASCE_ORIGIN
from lazypv.host.loose_ends import loose_ends
from lazypv.invariants.violation import Violation
from lazypv.ultravisor import vault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazypv.host.host import Host
    from lazypv.host.mm import Mm
    from lazypv.host.vm import Process, Vm


def check_structures(host: Host, *, drained: bool) -> list[Violation]:
    """Look at every address space, VM and configuration; `drained`: no background thread has anything left to do."""
    found: list[Violation] = []
    seen: set[int] = set()
    for process in host.processes:
        if id(process.mm) not in seen:
            seen.add(id(process.mm))
            found += _address_space(host, process.mm)
        found += _mappings(process)
        for vm in process.vms:
            found += _vm(vm)
    found += _configurations(host, drained)
    if drained:
        found += [Violation(number, text) for number, text in loose_ends(host)]
    found += [Violation(number, text) for number, text in host.ledger.broken]
    return found


def _mappings(process: Process) -> Iterator[Violation]:
    """Page cache and drivers hold the pages of files and special mappings, and no others: what a freeze expects."""
    for vma in process.mm.vmas if process.tasks else ():
        held = mapped = 0
        for frames in vma.pte.mapped_frames():
            mapped += frames.size
            held += int(np.count_nonzero(np.isin(frames, process.cached)))
        if held != vma.backing.cache_references * mapped:
            yield Violation(5, f"{held} of {mapped} mapped pages are held beside their mapping: {vma.backing.value}")


def _address_space(host: Host, mm: Mm) -> Iterator[Violation]:
    counter = mm.protected.value
    leaked = sum(1 for lost, _, _ in host.leaked.values() if lost is mm)
    exist = sum(1 for owner in host.configurations.values() if owner is mm) + leaked
    if host.series.count_configurations and counter != exist:
        yield Violation(9, f"the protected counter is {counter}, but {exist} configurations of the address space exist")
    if counter < 0:
        yield Violation(11, f"the protected counter is {counter}")
    if counter < 1 and (owned := mapped_and_owned(host, mm)):
        yield Violation(10, f"the protected counter is {counter}, but {owned} mapped pages belong to a configuration")
    if mm.users < 0 or mm.count < 0 or (mm.count == 0) != mm.freed:
        yield Violation(25, f"mm_users is {mm.users}, mm_count {mm.count}")
    if mm.torn_down and mm.users > 0:
        yield Violation(25, f"the address space was torn down, but mm_users is {mm.users}")
    frames = [node.frames for node in mm.set_aside.nodes]
    if any(part.size > mm.set_aside.node_capacity for part in frames):
        yield Violation(26, f"a node of the list holds more than {mm.set_aside.node_capacity} pages")
    on_list = np.concatenate(frames) if frames else np.empty(0, np.int64)
    if np.unique(on_list).size != on_list.size:
        yield Violation(26, f"{on_list.size - np.unique(on_list).size} pages are on the list twice")
    if mm.pv_sync_destroy and on_list.size and mm.torn_down:
        yield Violation(27, f"{on_list.size} pages are on a list that nobody will work off")


def mapped_and_owned(host: Host, mm: Mm) -> int:
    """Pages that are mapped in `mm` and belong to a configuration."""
    owner = vault.firmware_of(host.machine.ultravisor).owner
    return sum(int(np.count_nonzero(owner[frames])) for vma in mm.vmas for frames in vma.pte.mapped_frames())


def _vm(vm: Vm) -> Iterator[Violation]:
    gmap, pv = vm.gmap, vm.kvm.pv
    if gmap.guest_handle != pv.handle:
        yield Violation(20, f"the gmap says handle {gmap.guest_handle:#x}, the VM {pv.handle:#x}")
    alone = len(vm.process.vms) == 1
    if gmap.asce & ASCE_ORIGIN != gmap.table.origin or (alone and gmap.asce != vm.mm.gmap_asce):
        yield Violation(18, f"ASCE {gmap.asce:#x} does not name the top table at {gmap.table.origin:#x}")
    if gmap.table.index:
        yield Violation(18, f"the top table's index is {gmap.table.index}")
    if gmap.crst_list.count(gmap.table) > 1:
        yield Violation(17, "the top table is on the list of tables twice")


def _configurations(host: Host, drained: bool) -> Iterator[Violation]:
    firmware = vault.firmware_of(host.machine.ultravisor)
    tables = [int(configuration.table[0]) for configuration in firmware.configurations.values()]
    if len(set(tables)) != len(tables):
        yield Violation(13, "two configurations have the same top table")
    dead = np.delete(firmware.keys, [each.slot for each in firmware.configurations.values()], axis=0)
    if dead.any():
        yield Violation(30, "a key has outlived its configuration")
    for handle, (_, pv, _) in host.leaked.items():
        kept = [frames for frames in (pv.base, pv.variable) if np.any(host.machine.frames.byte[frames] == 0)]
        if kept:
            yield Violation(14, f"storage donated to handle {handle:#x}, whose destruction failed, is free")
    if drained:
        if host.put_off_pages:
            yield Violation(34, f"{host.put_off_pages} donated pages are still said to be put off, but nobody has them")
        live = {vm.kvm.pv.handle for process in host.processes for vm in process.vms}
        forgotten = [handle for handle in host.configurations if handle not in live]
        if forgotten:
            yield Violation(
                34, f"handles {', '.join(map(hex, forgotten))} were neither destroyed nor counted as leaked"
            )
        unknown = [h for h in firmware.configurations if h not in live and h not in host.leaked]
        if unknown:
            yield Violation(34, f"the Ultravisor still has handles {', '.join(map(hex, unknown))}")


def check_wound_up(host: Host) -> list[Violation]:
    """Every process has ended and nothing runs: each handle was destroyed, or is accounted for (invariant 34)."""
    found = check_structures(host, drained=True)
    configurations = vault.firmware_of(host.machine.ultravisor).configurations
    forgotten = [handle for handle in configurations if handle not in host.leaked]
    if forgotten:
        text = f"handles {', '.join(map(hex, forgotten))} outlived everybody, and nobody counts them as leaked"
        found.append(Violation(34, text))
    return found
