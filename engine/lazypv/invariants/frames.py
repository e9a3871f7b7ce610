"""Invariants that all frames can show, in kernels over the whole machine. Nothing may be running.

Source: semantics 9, invariants 1, 2, 4, 5, 14.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.invariants.violation import Violation
from lazypv.ultravisor import vault
from lazypv_kernels import scan
from lazypv_kernels.layout import ASCE, NS, STATE_MASK, STATE_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.hardware import Machine
    from lazypv.host.host import Host

_SHOWN = 4


def check_frames(host: Host) -> list[Violation]:
    """Look at every frame of the machine: states, owners, marks and references fit together."""
    machine = host.machine
    return [*_states(machine), *_double_owned(machine), *_references(host)]


def _states(machine: Machine) -> list[Violation]:
    firmware = vault.firmware_of(machine.ultravisor)
    counts = machine.workers.add_up(
        machine.pages,
        lambda first, last, into: scan.count_broken_frames(
            firmware.state, firmware.owner, machine.frames.byte, first, last, into
        ),
    )
    texts = (
        (2, "frames are secure but bear no mark"),
        (4, "frames have an owner without being owned, or are owned by nobody"),
        (4, "frames are claimed although nothing runs"),
    )
    found = [
        Violation(number, f"{int(count)} {text}")
        for (number, text), count in zip(texts, counts[1:], strict=True)
        if count
    ]
    early = free_too_early(machine, marked_tables_too=True) if counts[0] else None
    return found if early is None else [early, *found]


def free_too_early(machine: Machine, marked_tables_too: bool) -> Violation | None:
    """Frames that the host's allocator has although the Ultravisor has not let go of them (invariants 1, 14).

    A top table that is still marked does no harm by lying there, only by being handed out; `marked_tables_too` says
    whether it counts.
    """
    state = vault.firmware_of(machine.ultravisor).state & STATE_MASK
    early = state[(machine.frames.byte == 0) & (state != NS)]
    held = int(np.count_nonzero(early != ASCE))
    if held:
        return Violation(1, f"{held} frames are free for the host but not non-secure")
    if early.size and marked_tables_too:
        return Violation(14, f"{early.size} frames of a top table are free, but the Ultravisor still marks it")
    return None


def _double_owned(machine: Machine) -> list[Violation]:
    firmware = vault.firmware_of(machine.ultravisor)
    found = []
    for configuration in firmware.configurations.values():
        seen = np.zeros(configuration.pages, np.uint8)
        twice = scan.count_double_owned(
            firmware.state, firmware.owner, firmware.guest_page, configuration.slot, seen, 0, machine.pages
        )
        if twice:
            found.append(
                Violation(4, f"{twice} guest pages of handle {configuration.handle:#x} are held by two frames")
            )
    return found


def _references(host: Host) -> list[Violation]:
    """Every reference has somebody who holds it, and everybody who holds one finds it (invariants 5, 25, 26, 33)."""
    machine = host.machine
    expected = _expected_references(host)
    wrong: NDArray[np.int64] = np.empty(_SHOWN, np.int64)
    found = scan.compare_references(machine.frames.byte, expected, 0, machine.pages, wrong)
    if not found:
        return []
    firmware = vault.firmware_of(machine.ultravisor)
    shown = ", ".join(
        f"frame {frame} has {machine.frames.reference_count(int(frame))} references, {expected[frame]} are accounted"
        f" for ({STATE_NAMES[int(firmware.state[frame]) & 7]})"
        for frame in wrong[: min(found, _SHOWN)]
    )
    return [Violation(25, f"{found} frames with wrong reference counts: {shown}")]


def _expected_references(host: Host) -> NDArray[np.uint8]:
    machine = host.machine
    expected = np.zeros(machine.pages, np.uint8)

    def hold(frames: NDArray[np.int64]) -> None:
        np.add.at(expected, frames, np.uint8(1))

    hold(machine.reserved)
    mms = {id(process.mm): process.mm for process in host.processes}
    for mm in mms.values():
        for vma in mm.vmas:
            first, last = vma.pte.first, vma.pte.first + vma.pte.size
            scan.count_references(machine.frames.byte, vma.pte.arrays, expected, first, last)
        for node in mm.set_aside.nodes:
            hold(node.frames)
            hold(node.page)
    for process in host.processes:
        hold(process.cached)
        for vm in process.vms:
            for table in vm.gmap.crst_list:
                hold(table.frames)
            hold(vm.kvm.pv.base)
            hold(vm.kvm.pv.variable)
            for vcpu in vm.kvm.vcpus:
                for frames in (vcpu.storage, vcpu.sida):
                    if frames is not None:
                        hold(frames)
    for _, leaked in host.ledger.leaks:
        hold(leaked)
    return expected
