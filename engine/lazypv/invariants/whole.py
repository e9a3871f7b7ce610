"""The whole of a small machine, for those who explore it: everything that decides how it goes on.

What comes out of here is taken down, put back and compared, never asked by a text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.ultravisor import vault
from lazypv.ultravisor.firmware import Configuration
from lazypv_kernels import scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.hardware import Machine


FLEETING: Final = (Configuration,)
"""What comes and goes among the firmware's objects."""


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
