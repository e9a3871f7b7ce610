"""The host's books: pages by how they became clean, exceptions by kind, what was put off.

Only sums: who wants to know about one configuration asks the firmware's own counts (:mod:`lazypv.invariants`).
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Ledger:
    """Counters that several actors add to.

    Attributes
    ----------
    pages : Counter of str
        Pages by account.
    exceptions : Counter of int
        Program interruptions that the host took, by code; one per page.
    broken : list of (int, str)
        Invariants that a text itself saw broken.
    leaks : list of (str, int64[k])
        What was leaked on purpose, and why it may never be free again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pages: Counter[str] = Counter()
        self.exceptions: Counter[int] = Counter()
        self.broken: list[tuple[int, str]] = []
        self.leaks: list[tuple[str, NDArray[np.int64]]] = []

    def add(self, account: str, pages: int) -> None:
        """Enter `pages`."""
        if pages:
            with self._lock:
                self.pages[account] += pages

    def exception(self, code: int, pages: int) -> None:
        """Enter exceptions of `pages` pages."""
        with self._lock:
            self.exceptions[code] += pages

    def leak(self, what: str, frames: NDArray[np.int64]) -> None:
        """`frames` will never be free again in this boot, and that is intended (invariants 14, 15)."""
        with self._lock:
            self.leaks.append((what, frames))

    @property
    def leaked_frames(self) -> int:
        """Frames that are lost until the machine is started anew."""
        return sum(frames.size for _, frames in self.leaks)

    def broke(self, invariant: int, text: str) -> None:
        """A text met what an invariant rules out."""
        with self._lock:
            self.broken.append((invariant, text))
