"""What the figures mean, in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypv.report.statistics import speedup, spread
from lazypv.sizes import format_size

if TYPE_CHECKING:
    from lazypv.scenario.compare import Comparison

NOTEWORTHY = 1.25
"""A ratio below this is not worth a claim on a shared computer."""


def sentence(comparison: Comparison) -> str:
    """Above all: when the guest is too small for lazy destroy to matter."""
    size, limit = format_size(comparison.memory), format_size(comparison.sync_below)
    ratio = speedup(comparison)
    down = {policy: spread(runs, lambda run: run.downtime_s).median for policy, runs in comparison.runs.items()}
    if not comparison.runs.keys() <= {"eager", "lazy"}:
        times = ", ".join(f"{seconds_text(seconds)} under {policy}" for policy, seconds in down.items())
        return f"The guest of {size} was down for {times}."
    if comparison.memory <= comparison.sync_below:
        return (
            f"This guest ends at {size}, not above the limit of {limit} below which nothing is destroyed lazily: both"
            " policies do the same work, and lazy destroy does not matter for it."
        )
    if ratio is None:
        policy, seconds = next(iter(down.items()))
        return f"Under the {policy} policy the guest of {size} was down for {seconds_text(seconds)}."
    if comparison.kind == "shutdown":
        what = f"the process of this {size} guest is gone after {seconds_text(down['lazy'])} instead of"
        why = "pages are set aside and destroyed behind its back instead of exported one by one"
    else:
        what = f"this {size} guest is down for {seconds_text(down['lazy'])} instead of"
        why = f"only what lies below {limit} is destroyed before it comes back"
    if ratio < NOTEWORTHY:
        return (
            f"With lazy destroy {what} {seconds_text(down['eager'])}: at this size, with a limit of {limit}, it makes"
            " little difference."
        )
    return f"With lazy destroy {what} {seconds_text(down['eager'])}, {ratio:.1f} times less: {why}."


def seconds_text(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
