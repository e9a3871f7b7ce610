"""What a second core gives: two threads against one, over what it gives the limit.

One turn is done with one thread and with two; its time is the second over the first, and so is the limit's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Final

import numpy as np

from lazypv_bench.ciphers import Sealed
from lazypv_bench.destroy import destroy
from lazypv_bench.harness import Limit, Work, benchmark
from lazypv_bench.limits import cipher, streaming_fill
from lazypv_bench.rig import Rig
from lazypv_kernels.workers import Workers

THREADS: Final = 2
UNIT: Final = "times as fast with two threads"


def scaling_of(limit: Limit) -> Limit:
    """How the limit itself scales."""

    def scaled(rig: Rig, subject: Work) -> Work:
        ways = [limit(rig, replace(subject, threads=threads)) for threads in (1, THREADS)]
        return Work(run=lambda: _seconds(ways[1].run) / _seconds(ways[0].run), bytes=1)

    scaled.__name__ = f"{limit.__name__}_scaling"
    return scaled


@benchmark("scaling.destroy", limit=scaling_of(streaming_fill), unit=UNIT, bar=0.9)
def scaling_destroy(rig: Rig) -> Work:
    """Destroy with two threads against one."""
    return _scaling(rig, destroy(rig, lambda pages: np.arange(pages), THREADS))


@benchmark("scaling.export", limit=scaling_of(cipher), unit=UNIT, bar=0.9)
def scaling_export(rig: Rig) -> Work:
    """Export with two threads against one."""
    return _scaling(rig, Sealed(rig, THREADS).export())


def _scaling(rig: Rig, work: Work) -> Work:
    """`work` of the rig's machine, once with one thread and once with two, each prepared and finished."""
    ultravisor = rig.machine.ultravisor
    many, one = ultravisor._workers, Workers(1)
    times: list[float] = []

    def run() -> float:
        ultravisor._workers = one
        alone = _seconds(work.run)
        work.finish()
        work.prepare()
        ultravisor._workers = many
        together = _seconds(work.run)
        times.append(alone / together)
        return together / alone

    return replace(work, run=run, bytes=1, value=lambda: median(times[1:]))


def _seconds(run: Callable[[], float | None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
