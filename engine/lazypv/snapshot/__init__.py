"""Snapshots of a protected guest: Arrow files, encrypted, verified, incremental, opened at once.

Beside the tower: it uses guests and their Ultravisor, and nothing of them knows it. Store and wire are hostile, this
process is trusted. The format is described in docs/snapshot-format.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lazypv.snapshot.keys import SnapshotKey
    from lazypv.snapshot.ledger import Ledger
    from lazypv.snapshot.save import Saved

_HOME = {"SnapshotKey": "keys", "Ledger": "ledger", "Saved": "save"}

__all__ = ["Ledger", "Saved", "SnapshotKey"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
