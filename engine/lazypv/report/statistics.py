"""Few runs, hence median, lowest and highest; never a mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazypv.scenario.compare import Comparison
    from lazypv.scenario.measure import Measured


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of a figure."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of one or more values."""
        return cls(median(values), min(values), max(values))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def spread(runs: list[Measured], figure: Callable[[Measured], float]) -> Spread:
    """A figure over all runs of a policy."""
    return Spread.of([figure(run) for run in runs])


def typical(runs: list[Measured]) -> Measured:
    """The run whose downtime is nearest to the median: counts are shown of one run, not of a mixture."""
    middle = median(run.downtime_s for run in runs)
    return min(runs, key=lambda run: abs(run.downtime_s - middle))


def speedup(comparison: Comparison) -> float | None:
    """Eager downtime over lazy downtime, medians; None for a single policy."""
    if not {"eager", "lazy"} <= comparison.runs.keys():
        return None
    eager, lazy = (spread(comparison.runs[policy], lambda run: run.downtime_s) for policy in ("eager", "lazy"))
    return eager.median / lazy.median
