"""`lazypv defects`: which known defects of the series exploring finds."""

from __future__ import annotations

import json as json_text
from typing import Annotated

import typer


def defects(json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Search the series as posted for its known defects, and show each one alone. A minute or two.

    Exit status: 0 it ran through, 3 the repaired series breaks an invariant, 130 interrupted.
    """
    from lazypv.cli.progress import Progress
    from lazypv.explore.defects import find_defects

    with Progress() as progress:
        found = find_defects(progress)
    typer.echo(json_text.dumps(found.as_object(), indent=2) if json else found.as_text())
