"""`lazypv bench`: what each operation reaches of what this computer could do at most."""

from __future__ import annotations

from typing import Annotated

import typer

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
Quick = Annotated[bool, typer.Option("--quick", help="Less memory, and three turns instead of seven.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else.")]
List = Annotated[bool, typer.Option("--list", help="Name the benchmarks, and run none.")]


def bench(
    names: Names = None,
    size: Size = None,
    quick: Quick = False,
    json: Json = False,
    show_list: List = False,
) -> None:
    """Measure operations against the limits of this computer; ratios, since seconds mean little on a shared one.

    A bar that was missed does not change the exit status. Exit status: 0 fine, 2 bad use or input, 130 interrupted.
    """
    from lazypv.cli.progress import Progress
    from lazypv_bench.harness import Settings, select
    from lazypv_bench.report import as_json, print_list, print_table
    from lazypv_bench.suite import REGISTRY, run

    settings = Settings.of(size, quick)
    chosen = select(names or [], REGISTRY)
    if show_list:
        print_list(chosen)
        return
    with Progress() as progress:
        results = run(chosen, settings, progress)
    if json:
        typer.echo(as_json(results, settings))
    else:
        print_table(results, settings)
