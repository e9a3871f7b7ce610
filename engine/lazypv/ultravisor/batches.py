"""Many calls on gathered frames in one piece, the host's books of these frames included.

What stands behind :meth:`lazypv.hardware.Machine.destroy_batches`: neither side could do it alone, since gathering and
putting are the host's business, and destroying is the firmware's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypv.ultravisor import vault
from lazypv.ultravisor.answers import BulkAnswer
from lazypv.ultravisor.interface import RC_CPUS_ALIVE, UVC
from lazypv_kernels import batches
from lazypv_kernels.layout import COUNTS, FRAME_DTYPE, RC_BUSY, RC_DONE, RC_DTYPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.ultravisor.door import Door
    from lazypv_kernels.arrays import Table


@dataclass(frozen=True)
class BatchRun:
    """Batches of a walk that were done as one.

    Attributes
    ----------
    at : int
        Next entry of the table.
    batches, pages, largest : int
        How many were done, the pages of all of them, and those of the largest.
    done : int
        Pages that were destroyed.
    frames : int64[k]
        The last batch, where it is not through; one reference on each.
    answer : BulkAnswer or None
        What the call on `frames` gave back, if it was made.
    settled : int
        How many of `frames` have been settled.
    """

    at: int
    batches: int
    pages: int
    largest: int
    done: int
    frames: NDArray[np.int64]
    answer: BulkAnswer | None
    settled: int


def destroy_batches(
    ultravisor: Door,
    host: NDArray[np.uint8],
    pte: Table,
    at: int,
    end: int,
    batch: int,
    limit: int,
    clear_mark: bool,
    refused_stay: bool,
    stop: NDArray[np.uint8],
    gate: NDArray[np.uint8],
) -> tuple[BatchRun, NDArray[np.int64]]:
    """As :meth:`lazypv.hardware.Machine.destroy_batches`; host : uint8[n], its byte of each frame.

    Also gives the frames that have a reference too many, which only the host's side table can drop.
    """
    firmware = vault.firmware_of(ultravisor)
    frames, rc = np.empty(batch, FRAME_DTYPE), np.empty(batch, RC_DTYPE)
    counts, tally = np.zeros(COUNTS, np.int64), np.zeros(batches.TALLY, np.int64)
    how, next_entry, left, settled = batches.destroy_batches(
        firmware.storage.contents, firmware.state, firmware.owner, firmware.directory, RC_CPUS_ALIVE, host, pte, at,
        end, limit, clear_mark, refused_stay, stop, gate, frames, rc, counts, tally,
    )  # fmt: skip
    count, pages, largest = tally.tolist()
    done, noop, _, _ = counts.tolist()
    ultravisor.count(UVC.DESTR_SEC_STOR, pages, noop, done)
    answer = None
    owed = frames[left : left + settled] if how == batches.GATHERED else frames[:0]
    frames = frames[:left]
    if how == batches.DESTROYED:
        rc = rc[:left]
        busy, refused = int(np.count_nonzero(rc == RC_BUSY)), int(np.count_nonzero(rc > RC_DONE))
        # What of it is done, and what needed nothing, is in the sums already.
        answer = BulkAnswer(rc, 0, 0, busy, refused)
    through = int(settled) if how == batches.DESTROYED else 0
    return BatchRun(int(next_entry), count, pages, largest, done, frames, answer, through), owed
