"""`lazypv bench`: what each operation reaches of what this computer could do at most."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lazypv_bench.harness import Result, Settings

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...",
        help="Benchmarks, by name, beginning of a name, or pattern such as 'destroy.*'. None: all of them.",
        show_default=False,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        help="Memory that a walk goes over; other guests are in proportion, the largest takes 2.25 times as much."
        " [default: 4GiB, or 1GiB with --quick]",
        show_default=False,
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick", help="For regressions: less memory, three turns instead of seven, and not what takes minutes."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else.")]
List = Annotated[bool, typer.Option("--list", help="Name the benchmarks, and run none.")]


Save = Annotated[
    Path | None,
    typer.Option(metavar="OUT.arrow", help="Write every turn of every run as an Arrow table.", show_default=False),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        metavar="OLD.json", help="Say of each benchmark: faster, slower or noise, against that run.", show_default=False
    ),
]
Picture = Annotated[
    Path | None, typer.Option(metavar="OUT.svg", help="Draw the results; takes matplotlib.", show_default=False)
]


def bench(
    names: Names = None,
    size: Size = None,
    quick: Quick = False,
    json: Json = False,
    save: Save = None,
    compare: Compare = None,
    picture: Picture = None,
    show_list: List = False,
) -> None:
    """Measure operations against the limits of this computer; ratios, since seconds mean little on a shared one.

    Neither a bar that was missed nor a benchmark that has become slower changes the exit status. Exit status: 0 fine, 2
    bad use or input, 130 interrupted.
    """
    from lazypv.cli.progress import Progress
    from lazypv.files import check_writable
    from lazypv_bench.comparison import load
    from lazypv_bench.harness import Settings, select
    from lazypv_bench.picture import require_matplotlib
    from lazypv_bench.report import print_list
    from lazypv_bench.suite import REGISTRY, run

    settings = Settings.of(size, quick)
    chosen = select(names or [], REGISTRY, quick=quick)
    if show_list:
        print_list(chosen)
        return
    older = None if compare is None else load(compare)
    for path in filter(None, (save, picture)):
        check_writable(path)
    if picture is not None:
        require_matplotlib()
    with Progress() as progress:
        results = run(chosen, settings, progress)
    _hand_out(results, settings, json, save, older, picture)


def _hand_out(
    results: list[Result],
    settings: Settings,
    json: bool,
    save: Path | None,
    older: dict[str, Any] | None,
    picture: Path | None,
) -> None:
    from lazypv_bench import comparison
    from lazypv_bench.picture import save_plot
    from lazypv_bench.report import as_object, print_changes, print_table
    from lazypv_bench.saved import save_turns

    document = as_object(results, settings)
    changes = None if older is None else comparison.compare(older, results)
    if older is not None and changes is not None:
        document["compared"] = comparison.as_object(changes)
        for difference in comparison.differences(older, document):
            typer.echo(f"note: the older run had another {difference}", err=True)
    if save is not None:
        save_turns(results, document, save)
    if picture is not None:
        save_plot(results, document["machine"], picture)
    if json:
        typer.echo(json_text.dumps(document, indent=2))
        return
    print_table(results, settings)
    if changes is not None:
        print_changes(changes)
