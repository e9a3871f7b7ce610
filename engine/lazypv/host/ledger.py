"""The host's books: pages by how they became clean, exceptions by kind, what was put off.

Only sums: who wants to know about one configuration asks the firmware's own counts (:mod:`lazypv.invariants`).
"""

from __future__ import annotations

import threading
from collections import Counter

ACCOUNTS = ("destroyed_sync", "destroyed_background", "destroyed_on_fault", "set_aside")
"""How a page of an old run became clean, as far as the host's texts know; `set_aside` is entered beside another."""


class Ledger:
    """Counters that several actors add to.

    Attributes
    ----------
    pages : Counter of str
        Pages by account.
    exceptions : Counter of int
        Program interruptions that the host took, by code; one per page.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pages: Counter[str] = Counter()
        self.exceptions: Counter[int] = Counter()
        self.broken: list[tuple[int, str]] = []

    def add(self, account: str, pages: int) -> None:
        """Enter `pages`."""
        if pages:
            with self._lock:
                self.pages[account] += pages

    def exception(self, code: int, pages: int) -> None:
        """Enter exceptions of `pages` pages."""
        with self._lock:
            self.exceptions[code] += pages

    def broke(self, invariant: int, text: str) -> None:
        """A text met what an invariant rules out."""
        with self._lock:
            self.broken.append((invariant, text))
