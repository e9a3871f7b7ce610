"""`lazypv explain`: a paragraph, and the place in the code."""

from __future__ import annotations

import json as json_text
from typing import Annotated

import typer


def explain(
    topic: Annotated[
        str, typer.Argument(help='A patch, defect, exception or invariant: 07, D17, 0x3f, "invariant 22".')
    ],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Explain a patch, a defect, an exception or an invariant, and say where it lives in the code."""
    from lazypv.explain import locate, lookup, render

    entry = lookup(topic)
    if not json:
        typer.echo(render(entry))
        return
    typer.echo(
        json_text.dumps(
            {
                "schema": "lazypv.explain/1",
                "id": entry.id,
                "title": entry.title,
                "text": entry.text,
                "place": entry.place,
                "location": locate(entry.place) if entry.place else None,
                "see": list(entry.see),
            },
            indent=2,
        )
    )
