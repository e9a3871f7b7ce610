"""`lazypv key`: keys for snapshots."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

key_app = typer.Typer(help="Keys for snapshots.", no_args_is_help=True, rich_markup_mode=None)


@key_app.callback()
def _keys() -> None:
    """Keys for snapshots."""


@key_app.command("new")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where it is written; never over another file.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Write a fresh random key to FILE, which only its owner may read.

    Who loses it loses every snapshot sealed with it. Exit status: 0 fine, 2 bad use.
    """
    from lazypv.snapshot.keys import SnapshotKey

    SnapshotKey.create(file)
    if json:
        typer.echo(json_text.dumps({"schema": "lazypv.key-new/1", "file": str(file)}))
    else:
        typer.echo(f"{file}: a new key", err=True)
