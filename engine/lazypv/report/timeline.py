"""The timeline of a comparison as an Arrow table: one row for each bulk step and call."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lazypv.errors import UsageError

if TYPE_CHECKING:
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


def check_writable(path: Path) -> None:
    """Say now rather than after the runs that `path` cannot be written.

    Raises
    ------
    UsageError
        Its folder does not exist or may not be written, or it is a folder itself.
    """
    folder = path.resolve().parent
    if path.is_dir():
        raise UsageError(f"{path}: is a folder")
    if not folder.is_dir():
        raise UsageError(f"{path}: its folder does not exist")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: its folder may not be written")


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
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.resolve().parent)
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_table(table)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
