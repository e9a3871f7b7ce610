"""The whole of a small machine, for those who explore it: what no step may break, and everything that decides.

What comes out of here is taken down, put back and compared, never asked by a text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.invariants.violation import Violation
from lazypv.ultravisor import vault
from lazypv_kernels import scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypv.hardware import Machine
    from lazypv.host.host import Host


def firmware_state(machine: Machine) -> object:
    """The firmware's own objects and arrays."""
    return vault.firmware_of(machine.ultravisor)


def is_known(machine: Machine, handle: int) -> bool:
    """Whether the Ultravisor still has a configuration of that handle."""
    return handle in vault.firmware_of(machine.ultravisor).configurations


def content_hashes(machine: Machine) -> NDArray[np.uint64]:
    """A hash of each frame's content: uint64[n]."""
    hashes = np.empty(machine.pages, np.uint64)
    scan.hash_frames(vault.firmware_of(machine.ultravisor).storage.words, 0, machine.pages, hashes)
    return hashes


def frames_state(machine: Machine) -> NDArray[np.uint8]:
    """What Ultravisor and host say of each frame, side by side: uint8[n, 8]."""
    firmware = vault.firmware_of(machine.ultravisor)
    columns = (firmware.state, machine.frames.byte, firmware.owner, firmware.guest_page)
    return np.concatenate([column.view(np.uint8).reshape(machine.pages, -1) for column in columns], axis=1)


def step_check(host: Host) -> Callable[[], Violation | None]:
    """A look after every step, whatever runs: invariants 1 and 2, and what a text itself saw broken."""
    firmware = vault.firmware_of(host.machine.ultravisor)
    state, owner, frames = firmware.state, firmware.owner, host.machine.frames.byte
    counts: NDArray[np.int64] = np.zeros(4, np.int64)
    count_broken_frames, ledger, pages = scan.count_broken_frames, host.ledger, frames.size

    def look() -> Violation | None:
        counts[:] = 0
        count_broken_frames(state, owner, frames, 0, pages, counts)
        if counts[0]:
            return Violation(1, f"{counts[0]} frames are free for the host but not non-secure")
        if counts[1]:
            return Violation(2, f"{counts[1]} frames are secure but bear no mark")
        return Violation(*ledger.broken[0]) if ledger.broken else None

    return look
