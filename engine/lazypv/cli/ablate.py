"""`lazypv ablate`: what each patch is for."""

from __future__ import annotations

import json as json_text
from typing import Annotated

import typer


def ablate(json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Take each of the eleven patches away in turn, and show what breaks, or what it costs. A minute or two.

    Exit status: 0 it ran through, 3 the series with all patches breaks an invariant, 130 interrupted.
    """
    from lazypv.cli.progress import Progress
    from lazypv.explore.ablate import ablate

    with Progress() as progress:
        found = ablate(progress)
    typer.echo(json_text.dumps(found.as_object(), indent=2) if json else found.as_text())
