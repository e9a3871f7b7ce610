"""`lazypv doctor`: does it run here, and as fast as it could?"""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lazypv.errors import EXIT_BAD_INPUT

if TYPE_CHECKING:
    from lazypv.upkeep.doctor import Finding

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else.")]


def doctor(json: Json = False) -> None:
    """Report what decides here how fast lazypv is: processor, cipher, cores, compiled kernels, huge pages, versions.

    Exit status: 0 fine, also with warnings; 2 if lazypv cannot be used here, with one line that says why.
    """
    try:
        from lazypv.upkeep.doctor import examine
    except (ImportError, AttributeError) as error:
        # A part that kernels need is missing or too old: the very thing that one asks a doctor about.
        typer.echo(f"lazypv: cannot be used here: {error}", err=True)
        raise typer.Exit(EXIT_BAD_INPUT) from None

    found = examine()
    if json:
        told = {"schema": "lazypv.doctor/1", "usable": found.fatal is None, "fatal": found.fatal}
        typer.echo(json_text.dumps(told | found.facts | {"warnings": found.warnings}, indent=2))
    else:
        _print(found)
    if found.fatal is not None:
        typer.echo(f"lazypv: cannot be used here: {found.fatal}", err=True)
        raise typer.Exit(EXIT_BAD_INPUT)


def _print(found: Finding) -> None:
    for subject, facts in found.facts.items():
        typer.echo(subject)
        for name, value in facts.items():
            typer.echo(f"  {name.replace('_', ' '):18} {_readable(name, value)}")
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _readable(name: str, value: Any) -> str:
    from lazypv.sizes import format_size

    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("bytes"):
        return format_size(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(key, each)}" for key, each in value.items())
    if isinstance(value, list):
        return " ".join(value) or "none"
    return "unknown" if value is None else str(value)
