"""Where firmware is kept: out of reach of every object that the host holds.

An :class:`~lazypv.ultravisor.calls.Ultravisor` has no attribute that leads to its arrays. Only this module's table
does, and only firmware, hardware and :mod:`lazypv.invariants` import it; a test walks the host's objects and imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from lazypv.ultravisor.door import Door
    from lazypv.ultravisor.firmware import Firmware

_FIRMWARE: WeakKeyDictionary[Door, Firmware] = WeakKeyDictionary()


def put(ultravisor: Door, firmware: Firmware) -> None:
    """Keep `firmware` for `ultravisor`."""
    _FIRMWARE[ultravisor] = firmware


def firmware_of(ultravisor: Door) -> Firmware:
    """The firmware behind `ultravisor`."""
    return _FIRMWARE[ultravisor]
