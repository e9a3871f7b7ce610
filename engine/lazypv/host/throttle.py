"""How fast the background may clean: in pages a second, or as a share of what it could."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import UsageError
from lazypv.steps import Wait

if TYPE_CHECKING:
    from numpy.typing import NDArray

AT_ONCE_SECONDS: Final = 0.004
"""Cleaning goes on until it owes so much rest, then rests until it owes none: sleeping costs half a millisecond."""
AT_ONCE_PAGES: Final = 1 << 18
"""Without a limit, too, a walk looks up from its batches now and then: after 1 GiB."""


class Throttle:
    """How fast background cleaning may go, and whether it may go at all.

    Parameters
    ----------
    pages_per_second : float or None
        So many pass in a second of the clock, after a burst of one batch or 4 ms; None for no such limit.
    share : float or None
        Part of the time in which cleaning goes on, hence of the speed that it would have without a throttle: above 0
        and below 1. None for no such limit.

    Attributes
    ----------
    gate : uint8[1]
        Not 0 while the throttle is closed; batches that are done as one look at it.
    now : callable
        The clock's seconds; who drives the texts sets it.

    Raises
    ------
    UsageError
        A limit that is none, or both.
    """

    def __init__(self, pages_per_second: float | None = None, *, share: float | None = None) -> None:
        if pages_per_second is not None and share is not None:
            raise UsageError(f"a throttle of {pages_per_second} pages a second and of a share of {share} is refused")
        if pages_per_second is not None and not pages_per_second > 0:
            raise UsageError(f"a throttle of {pages_per_second} pages a second is refused: it has to be above 0")
        if share is not None and not 0 < share < 1:
            raise UsageError(f"a throttle of a share of {share} is refused: it has to be above 0 and below 1")
        self.pages_per_second = pages_per_second
        self.share = share
        self.gate: NDArray[np.uint8] = np.zeros(1, np.uint8)
        self.now = _no_time
        self._owed_then = 0.0
        self._since = 0.0
        self._resting = False
        self._began = 0.0
        self._speed = 1.0

    @property
    def open(self) -> bool:
        """False holds all cleaning back at its next batch."""
        return not self.gate[0]

    @open.setter
    def open(self, is_open: bool) -> None:
        self.gate[0] = not is_open

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.pages_per_second is not None or self.share is not None

    def may_pass(self) -> bool:
        """Whether the next batch may go."""
        return self.open and (not self._resting or self._owed() <= 0)

    async def wait(self) -> None:
        """Until the next batch may go, which begins then."""
        if not self.may_pass():
            await Wait(self.may_pass, "the throttle", outside=True)
        self.begin()

    def room(self) -> int:
        """How many pages may go before it is asked again."""
        if not self.limited:
            return AT_ONCE_PAGES
        left = AT_ONCE_SECONDS - self._owed()
        return max(0, min(AT_ONCE_PAGES, int(left / self._rest_for(1, 1 / self._speed))))

    def begin(self) -> None:
        """A batch begins."""
        if self.limited:
            self._began = self.now()
            self._resting = self._resting and self._owed() > 0

    def passed(self, pages: int) -> None:
        """A batch of `pages`, or several, have gone since the last began or passed."""
        if not self.limited or not pages:
            return
        now = self.now()
        seconds = now - self._began
        if seconds > 0:
            self._speed = pages / seconds
        # To work is no rest; but pages a second are counted against all of the time.
        left = self._owed_at(now if self.share is None else self._began)
        self._owed_then = left + self._rest_for(pages, seconds)
        self._since = self._began = now
        self._resting = self._resting or self._owed_then > AT_ONCE_SECONDS

    def _rest_for(self, pages: int, seconds: float) -> float:
        """Seconds to rest after `pages` that have taken `seconds`."""
        if self.pages_per_second is not None:
            return pages / self.pages_per_second
        assert self.share is not None
        return seconds * (1 / self.share - 1)

    def _owed(self) -> float:
        """Seconds of rest that are owed now."""
        return self._owed_at(self.now())

    def _owed_at(self, time: float) -> float:
        return max(0.0, self._owed_then - (time - self._since))


def _no_time() -> float:
    return 0.0


UNLIMITED: Final = Throttle()
"""For cleaning that nobody holds back."""
