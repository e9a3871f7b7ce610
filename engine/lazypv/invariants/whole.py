"""The whole of a small machine, for those who explore it: everything that decides how it goes on.

What comes out of here is taken down, put back and compared, never asked by a text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

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


def cpus_of_configurations(machine: Machine) -> list[tuple[int, int]]:
    """Of each configuration its handle, and how many CPUs it has."""
    configurations = vault.firmware_of(machine.ultravisor).configurations
    return [(handle, len(configuration.cpus)) for handle, configuration in configurations.items()]


def content_hashes(machine: Machine) -> NDArray[np.uint64]:
    """A hash of each frame's content: uint64[n]."""
    hashes = np.empty(machine.pages, np.uint64)
    scan.hash_frames(vault.firmware_of(machine.ultravisor).storage.words, 0, machine.pages, hashes)
    return hashes


def frame_arrays(machine: Machine) -> tuple[NDArray[Any], ...]:
    """What Ultravisor and host say of each frame: its state, the host's byte, its owner, its guest page."""
    firmware = vault.firmware_of(machine.ultravisor)
    return firmware.state, machine.frames.byte, firmware.owner, firmware.guest_page


def frames_state(machine: Machine) -> NDArray[np.uint8]:
    """What Ultravisor and host say of each frame, side by side: uint8[n, 8]."""
    columns = [column.view(np.uint8).reshape(machine.pages, -1) for column in frame_arrays(machine)]
    return np.concatenate(columns, axis=1)
