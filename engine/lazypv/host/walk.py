"""The reset walk: gather pages under the lock, destroy them without it (patch 05)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazypv.steps import Wait

if TYPE_CHECKING:
    from lazypv.host.mm import Mm
    from lazypv.host.secure_pages import SecurePages
    from lazypv.steps import Lock

DESTROY_LOOP_THRESHOLD: Final = 32
"""Pages of a batch, as posted."""
LIVE_BATCH: Final = 512
"""Pages of a batch of the live clock: 32 costs two to three times the downtime, since a step costs more than it does."""


class Throttle:
    """How fast a background walk may go, and whether it may go at all.

    Attributes
    ----------
    open : bool
        False holds every walk back at its next batch.
    pages_per_second : float or None
        The clock lets so many pass; None for no limit.
    """

    def __init__(self, pages_per_second: float | None = None) -> None:
        self.open = True
        self.pages_per_second = pages_per_second
        self.passed = 0
        self.ready = _always

    def may_pass(self) -> bool:
        """Whether the next batch may go."""
        return self.open and self.ready()


def _always() -> bool:
    return True


async def destroy_range(
    pages: SecurePages,
    mm: Mm,
    users: int,
    start: int,
    end: int,
    batch: int,
    account: str,
    throttle: Throttle | None = None,
) -> None:
    """Destroy what is mapped in ``[start, end)`` of `mm`; stop when only `users` users are left.

    One batch holds the mmap lock while it takes at most `batch` references, and issues its calls without any lock, so
    that the guest's faults never wait longer than for one batch.

    Source: semantics 4.5; invariants 33, 39.
    """
    if not pages.series.batched_walk:
        await _destroy_under_the_lock(pages, mm, start, end, account)
        return
    at = start
    while at < end and await mm.read_users() > users:
        if throttle is not None:
            await Wait(throttle.may_pass, "the throttle", outside=True)
        async with mm.mmap_lock.shared():
            frames, at = await mm.gather(at, end, batch)
        if frames.size:
            await pages.destroy_and_put(frames, account)
            if throttle is not None:
                throttle.passed += frames.size


async def _destroy_under_the_lock(pages: SecurePages, mm: Mm, start: int, end: int, account: str) -> None:
    """The walk before patch 05: all pages with one hold of the lock."""
    lock: Lock = mm.mmap_lock
    async with lock.shared():
        frames, _ = await mm.gather(start, end, end - start)
        await pages.destroy_and_put(frames, account)
