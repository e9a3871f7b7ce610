"""What all Ultravisor calls share: finding the configuration, running kernels over many cores, counting."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypv.errors import FrameError
from lazypv.ultravisor import vault
from lazypv.ultravisor.answers import BulkAnswer
from lazypv.ultravisor.firmware import Configuration, Firmware
from lazypv.ultravisor.interface import UVC
from lazypv_kernels import scan
from lazypv_kernels.layout import RC_BUSY, RC_DTYPE
from lazypv_kernels.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frames = NDArray[np.int64]

MAX_CPU_ID = 247


class Door:
    """The firmware's door. Every call may be issued from any thread.

    Attributes
    ----------
    issued : Counter of str
        Calls issued so far, by interface name; a bulk call over k pages counts k.
    useless, done : Counter of str
        Those among them that found nothing to do, and those that changed a page.
    refuse : int
        If it is not 0, the next call on pages changes nothing and is answered with this code: a fault that somebody
        injects.
    stall : bool
        The next call on pages changes nothing and is answered with condition code 2: another fault.
    fault_at : tuple of str
        Interface names of the calls that `refuse` and `stall` mean; empty for any.
    """

    def __init__(self, firmware: Firmware, workers: Workers) -> None:
        vault.put(self, firmware)
        self.feature_bits = firmware.feature_bits
        self.max_cpu_id = MAX_CPU_ID
        self.issued: Counter[str] = Counter()
        self.useless: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.refuse = 0
        self.stall = False
        self.fault_at: tuple[str, ...] = ()
        self._count_lock = threading.Lock()
        self._workers = workers
        self._initialised = False

    def _configuration(self, handle: int) -> Configuration | None:
        found = vault.firmware_of(self).configurations.get(handle)
        return None if found is None or found.dying else found

    def _checked(self, frames: Frames) -> Firmware:
        firmware = vault.firmware_of(self)
        bad = scan.first_outside(frames, firmware.state.size)
        if bad >= 0:
            raise FrameError(f"frame {frames[bad]} lies outside a machine of {firmware.state.size} frames")
        return firmware

    def _bulk(
        self,
        command: UVC,
        column: NDArray[np.int64],
        work: Callable[[int, int, NDArray[np.uint16], NDArray[np.int64]], Any],
    ) -> BulkAnswer:
        if (self.refuse or self.stall) and (not self.fault_at or command.name in self.fault_at):
            return self._faulted(command, column.size)
        rc = np.empty(column.size, RC_DTYPE)
        done, noop, busy, refused = self._workers.add_up(column.size, work, rc).tolist()
        self.count(command, column.size, noop, done)
        return BulkAnswer(rc, done, noop, busy, refused)

    def _faulted(self, command: UVC, size: int) -> BulkAnswer:
        code, self.refuse, self.stall = self.refuse, 0, False
        self.count(command, size)
        if code:
            return all_refused(size, code)
        return BulkAnswer(np.full(size, RC_BUSY, RC_DTYPE), 0, busy=size)

    @property
    def faulty(self) -> bool:
        """Whether a fault is due at one of the next calls."""
        return self.refuse != 0 or self.stall

    def count(self, command: UVC, pages: int = 1, useless: int = 0, done: int = 0) -> None:
        """Enter calls that were issued, over `pages` pages, and how many found nothing to do or changed a page."""
        with self._count_lock:
            name = command._name_  # `name` is a property written in Python, and calls are many
            self.issued[name] += pages
            if useless:
                self.useless[name] += useless
            if done:
                self.done[name] += done


def all_refused(size: int, code: int) -> BulkAnswer:
    return BulkAnswer(np.full(size, code, RC_DTYPE), 0, refused=size)
