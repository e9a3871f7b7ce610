"""What came out: a table for people, one JSON object for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lazypv._version import __version__
from lazypv.scenario.compare import describe_computer
from lazypv.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lazypv_bench.harness import Benchmark, Result, Settings

SCHEMA = "lazypv.bench/1"
NOTE = (
    "ratio: speed over the limit's speed, or time over the limit's time; the median of all turns, then the lowest and"
    " the highest. A bar is the ratio to reach, or to stay below."
)
VERDICTS = {None: "", True: "met", False: "missed"}


def as_json(results: list[Result], settings: Settings) -> str:
    """The results as text."""
    return json.dumps(as_object(results, settings), indent=2)


def as_object(results: list[Result], settings: Settings) -> dict[str, Any]:
    """The results as nested objects."""
    computer = describe_computer(1)
    del computer["threads"]  # every benchmark has its own
    return {
        "schema": SCHEMA,
        "version": __version__,
        "machine": computer,
        "size_bytes": settings.size,
        "pairs": settings.pairs,
        "results": [asdict(result) for result in results],
    }


def print_table(results: list[Result], settings: Settings, console: Console | None = None) -> None:
    """Print the results on standard output."""
    console = console or Console(soft_wrap=False)
    title = f"benchmarks at {format_size(settings.size)}, {settings.pairs} turns each"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    for heading in ("ratio", "low..high", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results:
        spread = f"{result.low:.3g}..{result.high:.3g}"
        table.add_row(result.name, f"{result.ratio:.3g}", spread, _bar(result), VERDICTS[result.met])
        table.add_row(f"  limit: {result.limit}")
        table.add_row(f"  {result.value:.3g} {result.unit}")
        for rival, ratio in result.rivals.items():
            table.add_row(f"  rival: {rival}", f"{ratio:.3g}")
    console.print(table)
    console.print(f"\n{NOTE}", highlight=False)


def _bar(result: Result) -> str:
    if result.bar is None:
        return ""
    return f"{'≥' if result.better == 'higher' else '≤'} {result.bar:g}"


def print_list(benchmarks: Iterable[Benchmark]) -> None:
    """One line a benchmark: its name, and what is done."""
    chosen = list(benchmarks)
    width = max((len(benchmark.name) for benchmark in chosen), default=0)
    for benchmark in chosen:
        print(f"{benchmark.name:{width}}  {benchmark.summary}")
