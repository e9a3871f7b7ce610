"""The reset walk: gather pages under the lock, destroy them without it (patch 05)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazypv.errors import UsageError
from lazypv.steps import Wait

if TYPE_CHECKING:
    from lazypv.host.mm import Mm
    from lazypv.host.secure_pages import SecurePages

DESTROY_LOOP_THRESHOLD: Final = 32
"""Pages of a batch, as posted."""
LIVE_BATCH: Final = 512
"""Pages of a batch of the live clock: 32 costs two to three times the downtime, since steps cost more than pages."""


class Throttle:
    """How fast background walks may go, and whether they may go at all.

    Attributes
    ----------
    open : bool
        False holds every walk back at its next batch.
    pages_per_second : float or None
        So many pass in a second of the clock, after a burst of one batch; None for no limit.
    now : callable
        The clock's seconds; who drives the texts sets it.
    """

    def __init__(self, pages_per_second: float | None = None) -> None:
        if pages_per_second is not None and pages_per_second <= 0:
            raise UsageError(f"a throttle of {pages_per_second} pages a second is refused: it has to be above 0")
        self.open = True
        self.pages_per_second = pages_per_second
        self.now = _no_time
        self._debt = 0.0
        self._since = 0.0

    def may_pass(self) -> bool:
        """Whether the next batch may go."""
        return self.open and self._owed() <= 0

    def passed(self, pages: int) -> None:
        """A batch of `pages` has gone."""
        if self.pages_per_second is not None:
            self._debt = self._owed() + pages
            self._since = self.now()

    def _owed(self) -> float:
        if self.pages_per_second is None:
            return 0.0
        return max(0.0, self._debt - self.pages_per_second * (self.now() - self._since))


def _no_time() -> float:
    return 0.0


async def destroy_range(
    pages: SecurePages,
    mm: Mm,
    users: int,
    start: int,
    end: int,
    batch: int,
    account: str,
    throttle: Throttle | None = None,
    *,
    or_export: bool = False,
) -> None:
    """Destroy what is mapped in ``[start, end)`` of `mm`; stop when only `users` users are left.

    One batch holds the mmap lock while it takes at most `batch` references, and issues its calls without any lock, so
    that the guest's faults never wait longer than for one batch. With `or_export` a page that cannot be destroyed is
    exported; otherwise it is left to DESTROY_SEC_CONF.

    Source: semantics 4.5; invariants 33, 39.
    """
    if not pages.series.batched_walk:
        await _destroy_under_the_lock(pages, mm, start, end, account, throttle, or_export)
        return
    at = start
    while at < end and await mm.read_users() > users:
        if throttle is not None and not throttle.may_pass():
            await Wait(throttle.may_pass, "the throttle", outside=True)
        async with mm.mmap_lock.shared():
            frames, at = await mm.gather(at, end, batch)
        if frames.size:
            await pages.destroy_and_put(frames, account, or_export=or_export)
            if throttle is not None:
                throttle.passed(frames.size)


async def _destroy_under_the_lock(
    pages: SecurePages, mm: Mm, start: int, end: int, account: str, throttle: Throttle | None, or_export: bool
) -> None:
    """The walk before patch 05: all pages with one hold of the lock, one batch as far as a throttle is concerned."""
    if throttle is not None:
        await Wait(throttle.may_pass, "the throttle", outside=True)
    async with mm.mmap_lock.shared():
        frames, _ = await mm.gather(start, end, end - start)
        await pages.destroy_and_put(frames, account, or_export=or_export)
