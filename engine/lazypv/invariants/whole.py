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


def broken_by_a_step(host: Host) -> Violation | None:
    """Invariants 1 and 2, and what a text itself saw broken: looked at after every step, whatever runs."""
    firmware = vault.firmware_of(host.machine.ultravisor)
    counts = np.zeros(4, np.int64)
    frames = host.machine.frames.byte
    scan.count_broken_frames(firmware.state, firmware.owner, frames, 0, frames.size, counts)
    if counts[0]:
        return Violation(1, f"{counts[0]} frames are free for the host but not non-secure")
    if counts[1]:
        return Violation(2, f"{counts[1]} frames are secure but bear no mark")
    return Violation(*host.ledger.broken[0]) if host.ledger.broken else None
