"""`lazypv trace` and `lazypv check`: what real threads did, and whether the model allows it."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from lazypv.errors import EXIT_VIOLATION

Without = Annotated[
    list[str] | None, typer.Option(metavar="PATCH", help="Take a patch out, such as 07.", show_default=False)
]
WithDefect = Annotated[
    list[str] | None, typer.Option(metavar="DEFECT", help="Bring a defect back, such as D17.", show_default=False)
]


def trace(
    scenario: Annotated[str, typer.Argument(help="A scenario of `lazypv explore`.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="[default: standard output]", show_default=False),
    ] = None,
    pages: Annotated[
        int | None, typer.Option(min=2, max=8, help="Pages of a guest. [default: the scenario's]", show_default=False)
    ] = None,
    preset: Annotated[str, typer.Option(help="repaired, or posted: the series exactly as mailed.")] = "repaired",
    without: Without = None,
    with_defect: WithDefect = None,
    seed: Annotated[int, typer.Option(help="Of the moments at which threads are held back.")] = 0,
) -> None:
    """Run a scenario on real threads and write down every step, for `lazypv check`.

    The order is that of the computer's threads: the same seed does not make the same trace.

    Exit status: 0 fine, 2 bad use or input, 3 the run broke down (its trace is written all the same).
    """
    from lazypv.explore.scenarios import scenario as scenario_of
    from lazypv.explore.switches import Switches
    from lazypv.files import check_writable
    from lazypv.trace.file import Setting
    from lazypv.trace.record import record

    if output is not None:
        check_writable(output)
    size = scenario_of(scenario).shape.pages if pages is None else pages
    switches = Switches(preset, tuple(without or ()), tuple(with_defect or ()))
    recorded, broken = record(Setting(scenario, size, switches), seed)
    if output is None:
        typer.echo(recorded.text(), nl=False)
    else:
        recorded.save(output)
    if broken is not None:
        typer.echo(f"lazypv: the run broke down: {broken}", err=True)
        raise typer.Exit(EXIT_VIOLATION)


def check(
    trace: Annotated[Path, typer.Argument(help="A file written by `lazypv trace`, or by anybody else.")],
    preset: Annotated[
        str | None, typer.Option(help="Check against another series than the trace names.", show_default=False)
    ] = None,
    without: Without = None,
    with_defect: WithDefect = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Replay a trace against the model: which is the first step that the model does not allow?

    With --preset, --without or --with-defect it is replayed against that series, whatever the trace names.

    Exit status: 0 all steps are allowed, 2 bad use or input, 3 one is not.
    """
    from dataclasses import replace

    from lazypv.explore.switches import Switches
    from lazypv.trace.check import check as check_trace
    from lazypv.trace.file import TraceFile

    found = TraceFile.load(trace)
    if preset or without or with_defect:
        switches = Switches(preset or "repaired", tuple(without or ()), tuple(with_defect or ()))
        found = replace(found, setting=replace(found.setting, switches=switches))
    checked = check_trace(found)
    typer.echo(json_text.dumps(checked.as_object(), indent=2) if json else checked.as_text())
    if checked.refusal is not None:
        raise typer.Exit(EXIT_VIOLATION)
