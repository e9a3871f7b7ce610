"""The timeline of a comparison as an Arrow table: one row for each bulk step and call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from lazypv.files import replaced_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from lazypv.scenario.compare import Comparison

SCHEMA = pa.schema(
    [
        ("policy", pa.string()),
        ("run", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("actor", pa.string()),
        ("step", pa.string()),
        ("pages", pa.int64()),
        ("done", pa.int64()),
        ("noop", pa.int64()),
        ("refused", pa.int64()),
    ],
    metadata={"schema": "lazypv.timeline/1"},
)


def save_timeline(comparison: Comparison, path: Path) -> None:
    """Write the timeline; the file is replaced atomically, or not at all."""
    rows = [
        (policy, number, *event)
        for policy, runs in comparison.runs.items()
        for number, run in enumerate(runs)
        for event in run.timeline
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)
    order = ("policy", "run", "start_s", "end_s", "actor", "step", "pages", "done", "noop", "refused")
    table = pa.table(dict(zip(order, columns, strict=True)), schema=SCHEMA)
    with replaced_atomically(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(table)
