"""How a benchmark is timed, written once for all.

A benchmark declares what is done, against which limit, beside which rivals. Subject, limit and rivals are set up once
on one rig, run once each to warm up, and then take turns, A B B A ..., so that whatever else the computer does meets
all of them alike. Each turn gives one ratio; reported are the median of these, the lowest and the highest.

This room knows callables, seconds and ratios. It knows nothing of machines, pages or guests.
"""

from __future__ import annotations

import difflib
import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from lazypv.errors import ModelError, UsageError
from lazypv.sizes import PAGE_SIZE, format_size, parse_pages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lazypv_bench.rig import Rig

Better = Literal["higher", "lower"]
BarOf = Literal["ratio", "value"]
Role = Literal["subject", "limit", "rival"]

DEFAULT_SIZE: Final = 4 << 30
QUICK_SIZE: Final = 1 << 30
PAIRS: Final = 7
QUICK_PAIRS: Final = 3


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Work:
    """Something that is set up, and can be done again and again.

    Attributes
    ----------
    run : callable
        What is timed. It gives back the seconds itself where only a part of it counts.
    bytes : int
        What one run goes over; 0 where only time counts.
    prepare, finish : callable
        Before and after each run, not timed. `finish` raises if the run did not do its work.
    contents : uint8[n, 4096] or None
        Where those bytes lie, for limits and rivals that go over the same ones.
    source : uint8[m, 4096] or None
        Where they come from, again and again from its first row, if they come from somewhere.
    columns : tuple of arrays
        One-dimensional arrays that a run reads, where it goes over these instead of pages.
    threads : int
        Cores that a run uses; limits and rivals use as many.
    warm : bool
        It needs no run before the first that counts: it has had one when it was set up, or warms itself.
    value : callable or None
        What is reported in the benchmark's unit beside the ratio; None where the harness knows it from time and bytes.
    """

    run: Callable[[], float | None]
    bytes: int = 0
    prepare: Callable[[], None] = _nothing
    finish: Callable[[], None] = _nothing
    contents: NDArray[np.uint8] | None = None
    source: NDArray[np.uint8] | None = None
    columns: tuple[NDArray[Any], ...] = ()
    threads: int = 1
    warm: bool = False
    value: Callable[[], float] | None = None


Limit = Callable[["Rig", Work], Work]
"""Sets up on the subject's rig what the subject, which is given, is compared with."""


@dataclass(frozen=True)
class Benchmark:
    """A declaration: what is done, against which limit, beside which rivals.

    Attributes
    ----------
    better : {"higher", "lower"}
        Whether the ratio is one of speeds (the subject's over the limit's) or one of times.
    bar : float or None
        What the ratio should reach, or stay below.
    bar_of : {"ratio", "value"}
        What is held against the bar: a value is judged at the full size only, since it grows with it.
    unit : str
        Of the value beside the ratio: ``"GB/s"`` and ``"ms"`` are the harness's, others the subject's own.
    share : float
        Size of the largest guest that it needs, as a share of the size that was asked for.
    quick : bool
        Whether a quick run of everything includes it.
    """

    name: str
    subject: Callable[[Rig], Work]
    limit: Limit
    rivals: tuple[Limit, ...] = ()
    better: Better = "higher"
    bar: float | None = None
    unit: str = "GB/s"
    share: float = 1.0
    quick: bool = True
    bar_of: BarOf = "ratio"

    @property
    def summary(self) -> str:
        """What is done, in one line."""
        return (self.subject.__doc__ or "").strip().split("\n", 1)[0]

    def guest_size(self, size: int) -> int:
        """Bytes of its guest, whole pages, if walks go over `size` bytes."""
        return int(size * self.share) // PAGE_SIZE * PAGE_SIZE

    def bar_at(self, guest: int) -> float | None:
        """The bar for a guest of `guest` bytes, if there is one for that size."""
        return self.bar if self.bar_of == "ratio" or guest == self.guest_size(DEFAULT_SIZE) else None


@dataclass(frozen=True)
class Runs:
    """All timed runs of one who took part.

    Attributes
    ----------
    role : {"subject", "limit", "rival"}
    label : str
        What people call it.
    bytes : int
        What one run went over.
    seconds : tuple of float
        Of each turn.
    ratios : tuple of float
        The subject's ratio to it in each turn; empty for the subject itself.
    """

    role: Role
    label: str
    bytes: int
    seconds: tuple[float, ...]
    ratios: tuple[float, ...] = ()


@dataclass(frozen=True)
class Result:
    """What came out: `ratio` is the median over all turns, `low` and `high` are the lowest and the highest."""

    name: str
    ratio: float
    low: float
    high: float
    better: Better
    bar: float | None
    limit: str
    unit: str
    value: float
    rivals: Mapping[str, float]
    bar_of: BarOf = "ratio"
    runs: tuple[Runs, ...] = ()

    @property
    def turns(self) -> tuple[float, ...]:
        """The ratio of each turn; where these are not known, what is known of them: lowest, median and highest."""
        limits = [runs.ratios for runs in self.runs if runs.role == "limit"]
        return limits[0] if limits else (self.low, self.ratio, self.high)

    @property
    def met(self) -> bool | None:
        """Whether the ratio, or the value, is on the right side of the bar; None without a bar."""
        if self.bar is None:
            return None
        judged = self.value if self.bar_of == "value" else self.ratio
        return judged >= self.bar if self.better == "higher" else judged <= self.bar

    @property
    def limit_over_rivals(self) -> dict[str, float]:
        """The limit's own ratio to each rival: how far a rival can be left behind on this computer at all."""
        return {name: ratio / self.ratio for name, ratio in self.rivals.items()}

    @property
    def bar_text(self) -> str:
        """The bar as people read it; empty without one."""
        if self.bar is None:
            return ""
        unit = f" {self.unit}" if self.bar_of == "value" else ""
        return f"{'≥' if self.better == 'higher' else '≤'} {self.bar:g}{unit}"

    @property
    def bar_ratio(self) -> float | None:
        """The bar as a ratio: for one of values, the ratio at which it is reached."""
        if self.bar is None or self.bar_of == "ratio":
            return self.bar
        return self.bar * self.ratio / self.value


@dataclass(frozen=True)
class Settings:
    """How large and how often.

    Attributes
    ----------
    size : int
        Bytes that a walk goes over; guests of other benchmarks are in proportion.
    pairs : int
        Turns of subject and limit.
    quick : bool
        For regressions: what takes long however small the size is left out, unless it is asked for by name.
    """

    size: int = DEFAULT_SIZE
    pairs: int = PAIRS
    quick: bool = False

    @classmethod
    def of(cls, size: str | None, quick: bool) -> Settings:
        """What a person asked for.

        Raises
        ------
        SizeError, UsageError
            Not a size, not in whole pages, or too small for anything to be measured.
        """
        wanted = (QUICK_SIZE if quick else DEFAULT_SIZE) if size is None else parse_pages(size) * PAGE_SIZE
        if wanted < SMALLEST_SIZE:
            raise UsageError(f"a benchmark over {format_size(wanted)} is refused: {format_size(SMALLEST_SIZE)} or more")
        return cls(wanted, QUICK_PAIRS if quick else PAIRS, quick)


SMALLEST_SIZE: Final = 16 << 20


# --- the registry ------------------------------------------------------------------------------------------------

REGISTRY: dict[str, Benchmark] = {}
"""Every declared benchmark by its name, in order of declaration."""


def benchmark(
    name: str,
    *,
    limit: Limit,
    rivals: Iterable[Limit] = (),
    better: Better = "higher",
    bar: float | None = None,
    unit: str = "GB/s",
    share: float = 1.0,
    quick: bool = True,
    bar_of: BarOf = "ratio",
) -> Callable[[Callable[[Rig], Work]], Callable[[Rig], Work]]:
    """Declare a benchmark; parameters as the attributes of :class:`Benchmark`.

    Raises
    ------
    ModelError
        The name is taken.
    """

    def declare(subject: Callable[[Rig], Work]) -> Callable[[Rig], Work]:
        if name in REGISTRY:
            raise ModelError(f"two benchmarks are called {name}")
        REGISTRY[name] = Benchmark(name, subject, limit, tuple(rivals), better, bar, unit, share, quick, bar_of)
        return subject

    return declare


def select(patterns: Iterable[str], registry: Mapping[str, Benchmark], *, quick: bool = False) -> list[Benchmark]:
    """Benchmarks whose names are, begin with, or match (``*``, ``?``) one of `patterns`; all of them if there is none.

    In order of declaration. A pattern that is a whole name means that benchmark only. With `quick`, all of them are
    those that a quick run includes.

    Raises
    ------
    UsageError
        A pattern fits no name.
    """
    patterns = list(patterns)
    chosen = {name for pattern in patterns for name in _fitting(pattern, registry)}
    if patterns:
        return [benchmark for name, benchmark in registry.items() if name in chosen]
    return [benchmark for benchmark in registry.values() if benchmark.quick or not quick]


def _fitting(pattern: str, registry: Mapping[str, Benchmark]) -> list[str]:
    if pattern in registry:
        return [pattern]
    if not pattern:
        raise UsageError("an empty name fits no benchmark")
    found = [name for name in registry if name.startswith(pattern) or fnmatchcase(name, pattern)]
    if not found:
        nearest = difflib.get_close_matches(pattern, registry, n=1, cutoff=0.0)
        hint = f"; the nearest is {nearest[0]}" if nearest else ""
        raise UsageError(f"no benchmark is called {pattern!r}{hint}")
    return found


# --- timing ------------------------------------------------------------------------------------------------------


class Progress(Protocol):
    """Who wants to know how far it is."""

    def expect(self, phases: int) -> None:
        """How many phases there will be."""

    def __call__(self, phase: str) -> None:
        """The next phase begins."""


def phases(pairs: int) -> int:
    """How often :func:`measure` tells its progress."""
    return pairs + 1


def measure(benchmark: Benchmark, rig: Rig, pairs: int, progress: Callable[[str], Any]) -> Result:
    """Set the benchmark up on `rig`, warm up, and let subject, limit and rivals take `pairs` turns."""
    progress(f"{benchmark.name}: set up")
    subject = benchmark.subject(rig)
    cast: list[tuple[Role, str, Work]] = [
        ("subject", benchmark.name, subject),
        ("limit", called(benchmark.limit), benchmark.limit(rig, subject)),
        *[("rival", called(rival), rival(rig, subject)) for rival in benchmark.rivals],
    ]
    everybody = [work for _, _, work in cast]
    for work in everybody:
        if not work.warm:
            seconds_of(work)
    turns: list[list[float]] = []
    for turn in range(pairs):
        progress(f"{benchmark.name}: {turn + 1} of {pairs}")
        turns.append(take_turns(everybody, backwards=turn % 2 == 1))
    own = tuple(turn[0] for turn in turns)
    runs = [Runs("subject", benchmark.name, subject.bytes, own)]
    for at, (role, label, other) in enumerate(cast[1:], start=1):
        seconds = tuple(turn[at] for turn in turns)
        ratios = (_ratio(benchmark.better, subject, other, mine, its) for mine, its in zip(own, seconds, strict=True))
        runs.append(Runs(role, label, other.bytes, seconds, tuple(ratios)))
    ratios_to_limit = runs[1].ratios
    return Result(
        name=benchmark.name,
        ratio=median(ratios_to_limit),
        low=min(ratios_to_limit),
        high=max(ratios_to_limit),
        better=benchmark.better,
        bar=benchmark.bar_at(rig.size) if benchmark.bar_of == "value" else benchmark.bar,
        limit=runs[1].label,
        unit=benchmark.unit,
        value=_value(benchmark.unit, subject, median(own)),
        rivals={each.label: median(each.ratios) for each in runs[2:]},
        bar_of=benchmark.bar_of,
        runs=tuple(runs),
    )


def take_turns(everybody: list[Work], *, backwards: bool) -> list[float]:
    """Run each once, in order or the other way round; the seconds of each, in the order of `everybody`."""
    seconds = [0.0] * len(everybody)
    order = range(len(everybody))
    for at in reversed(order) if backwards else order:
        seconds[at] = seconds_of(everybody[at])
    return seconds


def seconds_of(work: Work) -> float:
    """Seconds of one run, prepared before and finished after; Python collects no garbage meanwhile."""
    work.prepare()
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        part = work.run()
        seconds = time.perf_counter() - start
    finally:
        if was_enabled:
            gc.enable()
    work.finish()
    return seconds if part is None else part


def called(limit: Limit) -> str:
    """Name of a limit or rival as people read it."""
    name: str = limit.__name__
    return name.replace("_", " ")


def _ratio(better: Better, subject: Work, other: Work, subject_seconds: float, other_seconds: float) -> float:
    if better == "lower":
        return subject_seconds / other_seconds
    return (subject.bytes / subject_seconds) / (other.bytes / other_seconds)


def _value(unit: str, subject: Work, seconds: float) -> float:
    if subject.value is not None:
        return subject.value()
    if unit == "GB/s":
        return subject.bytes / seconds / 1e9
    if unit == "ms":
        return seconds * 1e3
    raise ModelError(f"the subject of a benchmark in {unit!r} has to say its value itself")
