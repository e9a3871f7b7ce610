"""Every timed run as an Arrow table: one row for each turn of each who took part, the whole document as metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lazypv.files import replaced_atomically
from lazypv_bench.comparison import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lazypv_bench.harness import Result

COLUMNS = pa.schema(
    [
        ("benchmark", pa.string()),
        ("turn", pa.int32()),
        ("role", pa.string()),
        ("label", pa.string()),
        ("seconds", pa.float64()),
        ("bytes", pa.int64()),
        ("ratio", pa.float64()),
    ]
)
"""`ratio`: the subject's to this limit or rival in this turn; null for the subject itself."""


def save_turns(results: Iterable[Result], document: Mapping[str, Any], path: Path) -> None:
    """Write every turn of `results`, and the `document` that says the rest; the file is replaced atomically."""
    rows = [
        {
            "benchmark": result.name,
            "turn": turn,
            "role": runs.role,
            "label": runs.label,
            "seconds": seconds,
            "bytes": runs.bytes,
            "ratio": runs.ratios[turn] if runs.ratios else None,
        }
        for result in results
        for runs in result.runs
        for turn, seconds in enumerate(runs.seconds)
    ]
    schema = COLUMNS.with_metadata({"schema": SCHEMA, "document": json.dumps(document)})
    with replaced_atomically(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
