"""The final table, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lazypv.report.sentence import seconds_text, sentence
from lazypv.report.statistics import Spread, speedup, spread, typical
from lazypv.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazypv.scenario.compare import Comparison
    from lazypv.scenario.measure import Measured

NOTE = "Seconds of this model on this computer, not of a mainframe: read the ratio."
_ACCOUNTS = {
    "destroyed_sync": "destroyed while it was down",
    "destroyed_background": "destroyed behind its back",
    "destroyed_on_fault": "destroyed when it was touched",
    "exported": "exported",
    "cleaned_by_configuration": "cleaned with the configuration",
    "leaked": "leaked",
}


def print_table(comparison: Comparison, console: Console | None = None) -> None:
    """Print the comparison on standard output."""
    console = console or Console(soft_wrap=False)
    table = Table(title=_title(comparison), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("")
    for policy in comparison.runs:
        table.add_column(policy.replace(":", ":\n"), justify="right", overflow="fold")
    for name, figure in _rows(comparison):
        cells = [figure(runs) for runs in comparison.runs.values()]
        if any(cell not in ("", "0", "0 µs", "0 B") for cell in cells):
            table.add_row(name, *cells)
    console.print(table)
    ratio = speedup(comparison)
    if ratio is not None:
        console.print(f"\neager / lazy downtime: {ratio:.2f}", highlight=False)
    console.print(f"\n{sentence(comparison)}", highlight=False)
    console.print(f"{NOTE} {_checked(comparison)}", highlight=False)


def _title(comparison: Comparison) -> str:
    runs = sum(len(runs) for runs in comparison.runs.values())
    return (
        f"{comparison.kind} of a protected guest, {format_size(comparison.memory)}, {comparison.vcpus} CPUs,"
        f" {comparison.image}: {runs} runs"
    )


def _checked(comparison: Comparison) -> str:
    violated = len(set(comparison.violations))
    return f"{violated} invariants violated." if violated else "Every page accounted for, no invariant violated."


Row = tuple[str, "Callable[[list[Measured]], str]"]


def _rows(comparison: Comparison) -> list[Row]:
    rows: list[Row] = [
        ("downtime", lambda runs: seconds_text(spread(runs, lambda run: run.downtime_s).median)),
        ("  lowest to highest", lambda runs: _range(spread(runs, lambda run: run.downtime_s))),
        ("all memory back after", lambda runs: seconds_text(spread(runs, lambda run: run.complete_s).median)),
        ("held back at most", lambda runs: format_size(max(run.held_back_bytes for run in runs))),
        ("pages owned at the last instruction", lambda runs: f"{typical(runs).owned_pages:,}"),
    ]
    rows += [(f"  {name}", _account(account)) for account, name in _ACCOUNTS.items()]
    if comparison.kind == "shutdown":
        rows.append(("  passed through the list", _account("set_aside")))
    for code in sorted({code for runs in comparison.runs.values() for code in typical(runs).exceptions}):
        rows.append((f"exceptions {code:#04x}", _counted("exceptions", code)))
    for call in sorted({call for runs in comparison.runs.values() for call in typical(runs).uvcs}):
        rows.append((f"UVC {call}", _counted("uvcs", call)))
    rows += [
        ("longest hold of the mmap lock, pages", lambda runs: f"{typical(runs).longest_hold.pages:,}"),
        ("  calls made under it", lambda runs: f"{typical(runs).longest_hold.calls:,}"),
        ("  seconds", lambda runs: seconds_text(typical(runs).longest_hold.seconds)),
        ("next run slower while cleaning went on", _slowdown),
        ("background threads", lambda runs: str(typical(runs).threads)),
        ("set-up, not counted", lambda runs: seconds_text(spread(runs, lambda run: run.setup_s).median)),
    ]
    return rows


def _account(account: str) -> Callable[[list[Measured]], str]:
    return lambda runs: f"{getattr(typical(runs).accounts, account):,}"


def _counted(which: str, key: object) -> Callable[[list[Measured]], str]:
    return lambda runs: f"{getattr(typical(runs), which).get(key, 0):,}"


def _range(figure: Spread) -> str:
    return "" if figure.low == figure.high else f"{seconds_text(figure.low)} to {seconds_text(figure.high)}"


def _slowdown(runs: list[Measured]) -> str:
    slowdowns = [run.slowdown for run in runs if run.slowdown is not None]
    return f"{max(slowdowns):.2f} times" if slowdowns else "-"
