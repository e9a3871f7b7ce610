"""Batches of a walk, one after the other, without coming back to Python between them.

Each batch is what :func:`references.gather`, :func:`sweep.destroy_pages` and :func:`references.settle` do for it. After
each one the flags are looked at, so that whoever has to be heard waits for one batch at most.
"""

from __future__ import annotations

import numpy as np

from lazypv_kernels.arrays import I64, U8, U16, U64, Integer, Table
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import COUNT_BUSY, COUNT_REFUSED
from lazypv_kernels.native import load_acquire
from lazypv_kernels.references import gather, settle
from lazypv_kernels.sweep import destroy_pages

BATCHES = 0
PAGES = 1
LARGEST = 2
TALLY = 3
"""What is counted of whole batches: how many, their pages, the pages of the largest."""

WHOLE = 0
"""Nothing is left over: flags, limit or the end of the range ended the run."""
GATHERED = 1
"""The last batch is gathered only: it has fewer pages than it may have, or something is left to the side table."""
DESTROYED = 2
"""The last batch is destroyed, but a page of it was busy or refused, or cannot be settled here."""


@kernel
def destroy_batches(
    contents: U8, state: U8, owner: U16, directory: U64, refused_rc: Integer, host: U8, pte: Table, at: Integer,
    end: Integer, limit: Integer, clear_mark: bool, refused_stay: bool, stop: U8, gate: U8, frames: I64, rc: U16,
    counts: I64, tally: I64,
) -> tuple[int, Integer, int, Integer]:  # fmt: skip
    """Gather, destroy and settle ``pte[at:end]`` in batches of ``frames.size``, at most `limit` pages or one batch.

    stop, gate : uint8[1], not 0: no further batch; frames : int64[batch], rc : uint16[batch], written: the last batch
    and its answers; counts : int64[4], tally : int64[3], added to; refused_stay : a refused page needs nothing more.
    Returns (WHOLE, GATHERED or DESTROYED; next entry; pages of a batch that is left over, and how many are settled). Of
    a batch that is gathered only, the last is how many frames behind it have a reference too many, as `gather` says.
    """
    batch = frames.size
    while at < end and tally[PAGES] + batch <= limit:
        if load_acquire(stop, 0) != 0 or load_acquire(gate, 0) != 0:
            break
        count, at, left = gather(pte, at, end, host, batch, frames)
        if count < batch:
            return (GATHERED if count or left != 0 else WHOLE), at, count, np.int64(max(left, 0))
        busy, refused = counts[COUNT_BUSY], counts[COUNT_REFUSED]
        destroy_pages(contents, state, owner, directory, refused_rc, frames, 0, count, rc, counts)
        tally[BATCHES] += 1
        tally[PAGES] += count
        tally[LARGEST] = max(tally[LARGEST], count)
        if counts[COUNT_BUSY] > busy or (counts[COUNT_REFUSED] > refused and not refused_stay):
            return DESTROYED, at, count, np.int64(0)
        _, settled, _ = settle(host, frames, 0, count, rc, clear_mark, True)
        if settled < count:
            return DESTROYED, at, count, np.int64(settled)
    return WHOLE, np.int64(at), 0, np.int64(0)
