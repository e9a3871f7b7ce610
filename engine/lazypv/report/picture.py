"""The picture of a result: the very table, as a drawing for documents."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console

from lazypv.files import replaced_atomically
from lazypv.report.table import print_table

if TYPE_CHECKING:
    from pathlib import Path

    from lazypv.scenario.compare import Comparison

WIDTH = 84


def save_picture(comparison: Comparison, path: Path) -> None:
    """Draw what :func:`print_table` prints, as SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    print_table(comparison, console)
    with replaced_atomically(path) as file:
        file.write(console.export_svg(title=f"lazypv {comparison.kind}").encode())
