"""What came out: a table for people, one JSON object for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lazypv._version import __version__
from lazypv.sizes import format_size
from lazypv.upkeep.computer import describe
from lazypv_bench.comparison import SCHEMA
from lazypv_bench.harness import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lazypv_bench.comparison import Change
    from lazypv_bench.harness import Benchmark, Settings

NOTE = (
    "ratio: speed over the limit's speed, or time over the limit's time; the median of all turns, then the lowest and"
    " the highest. A bar is the ratio to reach, or to stay below; with a unit, it is one of the value. Beside a"
    " rival's ratio stands what the limit itself reaches."
)
VERDICTS = {None: "", True: "met", False: "missed"}


FIELDS = ("name", "ratio", "low", "high", "better", "bar", "limit", "unit", "value", "rivals", "bar_of")
"""Of a result, in the JSON document, as it is kept."""
DERIVED = ("limit_over_rivals",)
"""What the document says beside that."""


def as_object(results: list[Result], settings: Settings) -> dict[str, Any]:
    """The results as nested objects; `turns` has the ratios of all turns by name."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "machine": describe(),
        "size_bytes": settings.size,
        "pairs": settings.pairs,
        "results": [{field: getattr(result, field) for field in FIELDS + DERIVED} for result in results],
        "turns": {result.name: list(result.turns) for result in results},
    }


def results_of(document: Mapping[str, Any]) -> list[Result]:
    """The results in a document, as far as it has them: runs themselves are in the Arrow table only."""
    return [Result(**{field: each[field] for field in FIELDS if field in each}) for each in document["results"]]


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
        table.add_row(result.name, f"{result.ratio:.3g}", spread, result.bar_text, VERDICTS[result.met])
        table.add_row(f"  limit: {result.limit}")
        table.add_row(f"  {result.value:.3g} {result.unit}")
        for rival, ratio in result.rivals.items():
            table.add_row(f"  rival: {rival}", f"{ratio:.3g}", f"limit {result.limit_over_rivals[rival]:.3g}")
    console.print(table)
    console.print(f"\n{NOTE}", highlight=False)


def print_changes(changes: Iterable[Change], console: Console | None = None) -> None:
    """Print what has become of each benchmark since an older run."""
    table = Table(title="against the older run", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    for heading in ("before", "now", "change", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for each in changes:
        before = "" if each.before is None else f"{each.before:.3g}"
        change = "" if each.change is None else f"{each.change:+.1%}"
        p = "" if each.p is None else f"{each.p:.2g}"
        table.add_row(each.name, before, f"{each.after:.3g}", change, p, each.verdict)
    console = console or Console(soft_wrap=False)
    console.print()
    console.print(table)


def print_list(benchmarks: Iterable[Benchmark]) -> None:
    """One line a benchmark: its name, and what is done."""
    chosen = list(benchmarks)
    width = max((len(benchmark.name) for benchmark in chosen), default=0)
    for benchmark in chosen:
        print(f"{benchmark.name:{width}}  {benchmark.summary}")
