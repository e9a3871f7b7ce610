"""`lazypv warm`: nobody waits for a compiler afterwards."""

from __future__ import annotations

import json as json_text
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else.")]


def warm(json: Json = False) -> None:
    """Compile every kernel now, which takes a minute or two, instead of each on its first call.

    What is compiled is kept for later processes. Exit status: 0 fine, 130 interrupted.
    """
    from lazypv.cli.progress import Progress
    from lazypv.upkeep.warm import warm as compile_all

    with Progress() as progress:
        done = compile_all(progress)
    if json:
        told = {"schema": "lazypv.warm/1", **vars(done), "folder": str(done.folder)}
        typer.echo(json_text.dumps(told, indent=2))
        return
    typer.echo(
        f"{done.kernels} kernels in {done.seconds:.1f} s: {done.compiled} signatures compiled, {done.loaded} kept from"
        f" before, in {done.folder}"
    )
