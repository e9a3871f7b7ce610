"""One range over many cores: nogil kernels on our own threads.

Numba's own threading aborts the process when two Python threads enter parallel kernels; nogil kernels on a pool are as
fast, and can be stopped between chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazypv_kernels.layout import COUNTS

CHUNK = 4096
"""Pages of one piece of work: small enough that a slow core does not hold up the rest."""


class Workers:
    """A pool of threads for bulk kernels.

    Parameters
    ----------
    threads : int
        How many cores one bulk operation may use. With one, everything runs in the calling thread.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self.threads, "lazypv-bulk") if self.threads > 1 else None

    def run(self, size: int, work: Callable[[int, int], Any], chunk: int = CHUNK) -> list[Any]:
        """Call ``work(first, last)`` over pieces of ``range(size)``; the answers in order of the pieces.

        A single piece runs in the calling thread. `work` must be safe beside itself on other pieces.
        """
        if self._pool is None or size <= chunk:
            return [work(0, size)] if size else []
        bounds = [(first, min(first + chunk, size)) for first in range(0, size, chunk)]
        return list(self._pool.map(lambda piece: work(*piece), bounds))

    def add_up(self, size: int, work: Callable[[int, int, NDArray[np.int64]], Any]) -> NDArray[np.int64]:
        """Run ``work(first, last, counts)`` in pieces and add the counts up (int64[4]): cores share no counter."""

        def piece(first: int, last: int) -> NDArray[np.int64]:
            counts = np.zeros(COUNTS, np.int64)
            work(first, last, counts)
            return counts

        pieces = self.run(size, piece)
        if len(pieces) == 1:
            only: NDArray[np.int64] = pieces[0]
            return only
        return np.sum(pieces, axis=0, dtype=np.int64) if pieces else np.zeros(COUNTS, np.int64)

    def close(self) -> None:
        """Join the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
