"""Scans over what there is of each frame, without its content: these decide the terabyte cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import ModelError
from lazypv.sizes import PAGE_SIZE
from lazypv_bench.harness import DEFAULT_SIZE, Work, benchmark
from lazypv_bench.limits import read
from lazypv_bench.rig import Rig
from lazypv_kernels import scan
from lazypv_kernels.layout import MARK_SECURE, SEC

if TYPE_CHECKING:
    from numpy.typing import NDArray

MACHINE: Final = 1 << 40
QUICK: Final = 1 << 30
"""From this size of walks on, the whole tebibyte; below, as a test has it, in proportion."""
GATHERED: Final = 0.01
SLOT: Final = 3


@benchmark("scan.1tib", limit=read, bar=0.6, share=0.5)
def scan_1tib(rig: Rig) -> Work:
    """Secure frames of one owner that bear the mark, 1 % of a machine of 1 TiB, gathered in one pass."""
    pages = (MACHINE if rig.size >= QUICK // 2 else rig.size * 2 * (MACHINE // DEFAULT_SIZE)) // PAGE_SIZE
    state, owner, host = np.full(pages, SEC, np.uint8), np.full(pages, SLOT, np.uint16), np.ones(pages, np.uint8)
    wanted = _spread(pages)
    host[wanted] |= MARK_SECURE
    frames = np.full(wanted.size, -1, np.int64)
    counts: list[int] = []

    def run() -> None:
        counts.append(int(scan.find_frames(state, owner, host, SEC, SLOT, MARK_SECURE, 0, pages, frames)[0]))

    def finish() -> None:
        if counts.pop() != wanted.size or not np.array_equal(frames, wanted):
            raise ModelError("the scan that was measured has not found the frames that are there")
        frames.fill(-1)

    columns = (state, owner, host)
    return Work(run=run, bytes=sum(each.nbytes for each in columns), finish=finish, columns=columns)


def _spread(pages: int) -> NDArray[np.int64]:
    """One frame in a hundred, at random in each hundred."""
    step = round(1 / GATHERED)
    first = np.arange(0, pages - step, step, dtype=np.int64)
    return first + np.random.default_rng(0).integers(0, step, first.size)
