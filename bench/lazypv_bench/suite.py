"""The whole suite: every declared benchmark, and how they are run one after the other.

A new benchmark is a function in the module of its subject; a new module is named here.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Final

from lazypv.errors import MemoryShortageError
from lazypv.machine.storage import available_memory
from lazypv.scenario.compare import machine_size
from lazypv.sizes import PAGE_SIZE, format_size
from lazypv_bench.harness import REGISTRY, Benchmark, Progress, Result, Settings, measure, phases
from lazypv_bench.rig import Memory, Rig

if TYPE_CHECKING:
    from collections.abc import Iterable

SUBJECTS: Final = (
    "destroy",
    "walks",
    "ciphers",
    "scaling",
    "scans",
    "throttled",
    "metadata",
    "downtime",
    "boot",
    "snapshots",
    "startup",
    "exploring",
)
"""Modules that declare benchmarks, in the order in which they are listed."""

for _subject in SUBJECTS:
    import_module(f"lazypv_bench.{_subject}")

__all__ = ["REGISTRY", "SUBJECTS", "run"]


def run(benchmarks: Iterable[Benchmark], settings: Settings, progress: Progress) -> list[Result]:
    """Measure `benchmarks`, each on a rig of its own.

    Raises
    ------
    MemoryShortageError
        The computer has less memory than the largest guest takes; nothing has been measured then.
    """
    chosen = list(benchmarks)
    for benchmark in chosen:
        _expect_memory(benchmark, settings)
    progress.expect(len(chosen) * phases(settings.pairs))
    results = []
    largest = max((benchmark.guest_size(settings.size) for benchmark in chosen if benchmark.quick), default=0)
    # A short run touches its memory once. A long one is to have no more of it than it needs for each benchmark.
    memory = Memory(machine_size(largest, 1) // PAGE_SIZE if settings.quick and largest else 0)
    gc.collect()
    gc.freeze()  # modules: else each of the many collections between runs goes through all of them again
    try:
        for benchmark in chosen:
            results.append(measure_alone(benchmark, settings, progress, memory))
            gc.collect()  # the machine's memory, before the next one is made
    finally:
        gc.unfreeze()
    return results


def measure_alone(benchmark: Benchmark, settings: Settings, progress: Progress, memory: Memory | None = None) -> Result:
    """Measure one, on a rig that is closed afterwards."""
    with Rig(benchmark.guest_size(settings.size), memory) as rig:
        return measure(benchmark, rig, settings.pairs, progress)


def _expect_memory(benchmark: Benchmark, settings: Settings) -> None:
    guest, available = benchmark.guest_size(settings.size), available_memory()
    if guest > available:
        raise MemoryShortageError(
            f"{benchmark.name} takes a guest of {format_size(guest)}, but {format_size(available)} of memory are"
            " available: choose other benchmarks, or a smaller --size"
        )
