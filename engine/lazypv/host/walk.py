"""The reset walk: gather pages under the lock, destroy them without it (patch 05)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.host.mm import MM_USERS
from lazypv.host.throttle import UNLIMITED, Throttle
from lazypv.steps import Batches, Several
from lazypv_kernels.layout import FRAME_DTYPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.mm import Mm
    from lazypv.host.secure_pages import SecurePages

    Left = tuple[NDArray[np.int64], int, int]

__all__ = ["DESTROY_LOOP_THRESHOLD", "LIVE_BATCH", "Throttle", "destroy_range"]

DESTROY_LOOP_THRESHOLD: Final = 32
"""Pages of a batch, as posted."""
LIVE_BATCH: Final = 512
"""Pages of a batch of the live clock: 32 costs two to three times the downtime, since steps cost more than pages."""


_NO_FRAMES = np.empty(0, FRAME_DTYPE)


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
    throttle = UNLIMITED if throttle is None else throttle
    at = start
    while at < end and await mm.read_users() > users:
        await throttle.wait()
        async with mm.mmap_lock.shared():
            frames, at = await mm.gather(at, end, batch)
        while frames.size:
            await pages.destroy_and_put(frames, account, or_export=or_export)
            throttle.passed(frames.size)
            frames, at, gone = await _further_batches(pages, mm, users, at, end, batch, account, throttle, or_export)
            throttle.passed(gone)


def _further_batches(
    pages: SecurePages,
    mm: Mm,
    users: int,
    at: int,
    end: int,
    batch: int,
    account: str,
    throttle: Throttle,
    or_export: bool,
) -> Several[Left]:
    """The batches of the walk that follow, as one: what the last has left over, where to go on, pages that are gone."""

    def may_begin() -> bool:
        wanted = at < end and not mm.freed and mm.users > users and throttle.may_pass()
        return wanted and mm.range_at(at) is not None and pages.machine.does_batches(batch)

    def run(stop: NDArray[np.uint8]) -> Batches[Left]:
        vma = mm.range_at(at)
        assert vma is not None
        return pages.destroy_batches(
            vma.pte, at - vma.start, min(end, vma.end) - vma.start, batch, throttle.room(), account,
            stop, throttle.gate, base=vma.start, or_export=or_export,
        )  # fmt: skip

    return Several(run, may_begin, mm.mmap_lock, (mm, MM_USERS), (_NO_FRAMES, at, 0))


async def _destroy_under_the_lock(
    pages: SecurePages, mm: Mm, start: int, end: int, account: str, throttle: Throttle | None, or_export: bool
) -> None:
    """The walk before patch 05: all pages with one hold of the lock, one batch as far as a throttle is concerned."""
    if throttle is not None:
        await throttle.wait()
    async with mm.mmap_lock.shared():
        frames, _ = await mm.gather(start, end, end - start)
        await pages.destroy_and_put(frames, account, or_export=or_export)
