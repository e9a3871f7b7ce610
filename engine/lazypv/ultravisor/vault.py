"""Where firmware is kept: out of reach of every object that the host holds.

An :class:`~lazypv.ultravisor.calls.Ultravisor` has no attribute that leads to its arrays. Only this module's table
does, and only firmware, hardware and :mod:`lazypv.invariants` import it; a test walks the host's objects and imports.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazypv.ultravisor.door import Door
    from lazypv.ultravisor.firmware import Firmware

_FIRMWARE: dict[int, Firmware] = {}
"""By identity of its door, for as long as that lives: every call looks here, and a weak dictionary takes 0.6 us."""


def put(ultravisor: Door, firmware: Firmware) -> None:
    """Keep `firmware` for `ultravisor`."""
    _FIRMWARE[id(ultravisor)] = firmware
    weakref.finalize(ultravisor, _FIRMWARE.pop, id(ultravisor)).atexit = False


def firmware_of(ultravisor: Door) -> Firmware:
    """The firmware behind `ultravisor`."""
    return _FIRMWARE[id(ultravisor)]
