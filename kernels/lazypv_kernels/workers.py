"""One range over many cores: nogil kernels on our own threads.

Numba's own threading aborts the process when two Python threads enter parallel kernels; nogil kernels on a pool are as
fast, and can be stopped between chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lazypv_kernels.layout import COUNTS

CHUNK: Final = 4096
"""Pages of one piece of work: small enough that a slow core does not hold up the rest."""
ALONE: Final = 16
"""With one core a piece is so many chunks: nobody is held up, and there is a place to stop every few milliseconds."""


class CancelledError(RuntimeError):
    """A run was stopped between two pieces.

    Attributes
    ----------
    done : int
        Pieces that were done, each whole.
    pieces : int
        Pieces of the run.
    """

    def __init__(self, done: int, pieces: int) -> None:
        super().__init__(f"stopped after {done} of {pieces} pieces")
        self.done = done
        self.pieces = pieces


class Workers:
    """A pool of threads for bulk kernels.

    Parameters
    ----------
    threads : int
        How many cores one bulk operation may use. With one, everything runs in the calling thread.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self.threads - 1, "lazypv-bulk") if self.threads > 1 else None
        self._runs: set[_Run] = set()
        self._lock = threading.Lock()

    def run(
        self,
        size: int,
        work: Callable[[int, int], Any],
        chunk: int = CHUNK,
        stop: threading.Event | None = None,
    ) -> list[Any]:
        """Call ``work(first, last)`` over pieces of ``range(size)``; the answers in order of the pieces.

        The calling thread takes part, and a single piece runs in it. Each core takes the next piece when it is done
        with one: a slow core does fewer. `work` must be safe beside itself on other pieces.

        Parameters
        ----------
        stop : threading.Event, optional
            Once it is set no further piece is begun.

        Raises
        ------
        CancelledError
            `stop` was set, or :meth:`cancel` called, before all pieces were begun; those that were are done.
        Exception
            What `work` raised first; no further piece is begun then.
        """
        if size <= 0:
            return []
        if self._pool is None:
            chunk *= ALONE
        if size <= chunk and stop is None:
            return [work(0, size)]  # small batches are many: what follows takes longer than clearing a few pages
        run = _Run(size, work, chunk, stop)
        with self._lock:
            self._runs.add(run)
        try:
            helpers = [] if self._pool is None else self._call_helpers(run)
            run.take_part()
            for helper in helpers:
                # One that has not begun, since the pool is busy with other runs, is not waited for.
                if not helper.cancel():
                    helper.result()
        finally:
            with self._lock:
                self._runs.discard(run)
        return run.answers()

    def _call_helpers(self, run: _Run) -> list[Future[None]]:
        assert self._pool is not None
        return [self._pool.submit(run.take_part) for _ in range(min(self.threads, run.pieces) - 1)]

    def cancel(self) -> None:
        """Stop all runs that are under way between two pieces; each raises :class:`CancelledError` in its caller."""
        with self._lock:
            for run in self._runs:
                run.cancelled = True

    def add_up(
        self,
        size: int,
        work: Callable[..., Any],
        *columns: NDArray[Any],
        stop: threading.Event | None = None,
    ) -> NDArray[np.int64]:
        """Run ``work(first, last, *columns, counts)`` in pieces and add the counts up (int64[4]).

        Cores share no counter.
        """
        if 0 < size <= CHUNK and stop is None:
            counts = np.zeros(COUNTS, np.int64)
            work(0, size, *columns, counts)  # one piece, without the detour
            return counts

        def piece(first: int, last: int) -> NDArray[np.int64]:
            counts = np.zeros(COUNTS, np.int64)
            work(first, last, *columns, counts)
            return counts

        pieces = self.run(size, piece, stop=stop)
        if len(pieces) == 1:
            only: NDArray[np.int64] = pieces[0]
            return only
        return np.sum(pieces, axis=0, dtype=np.int64) if pieces else np.zeros(COUNTS, np.int64)

    def close(self) -> None:
        """Join the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


class _Run:
    """One range in pieces, and whoever takes part in it."""

    def __init__(self, size: int, work: Callable[[int, int], Any], chunk: int, stop: threading.Event | None) -> None:
        self.pieces = -(-size // chunk)
        self.cancelled = False
        self._size, self._work, self._chunk, self._stop = size, work, chunk, stop
        self._next = count()  # taking from it is one step for all threads
        self._answers: list[Any] = [_NOTHING] * self.pieces
        self._error: BaseException | None = None

    def take_part(self) -> None:
        """Do pieces until none is left, or there is a reason to stop."""
        while not self._is_stopped():
            piece = next(self._next)
            if piece >= self.pieces:
                return
            first = piece * self._chunk
            try:
                self._answers[piece] = self._work(first, min(first + self._chunk, self._size))
            except BaseException as error:
                self._error = self._error or error
                return

    def _is_stopped(self) -> bool:
        return self.cancelled or self._error is not None or (self._stop is not None and self._stop.is_set())

    def answers(self) -> list[Any]:
        """Of all pieces, in order; raises what was raised, or that pieces are missing."""
        if self._error is not None:
            raise self._error
        missing = sum(answer is _NOTHING for answer in self._answers)
        if missing:
            raise CancelledError(self.pieces - missing, self.pieces)
        return self._answers


_NOTHING: Final = object()
