"""The ledger: which snapshot of each guest is the newest that this place knows.

It lies beside the key file, is authenticated under the key, and is written after the snapshot, so that a crash between
the two leaves a snapshot that is newer than the ledger, which is accepted. It refuses an older snapshot, and another
one of the same age, which is a second child of the same parent.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazypv.errors import IntegrityError
from lazypv.files import replaced_atomically
from lazypv.snapshot.errors import RollBackError
from lazypv.snapshot.keys import SnapshotKey

_SALT = b"lazypv ledger 1"
SUFFIX = ".ledger"


@dataclass(frozen=True)
class Entry:
    """The newest snapshot of one guest: its place in the sequence, and its root."""

    sequence: int
    root: str


@dataclass(frozen=True)
class Standing:
    """What the ledger says of a snapshot: ``unknown``, ``newest``, ``newer``, ``older`` or ``second child``."""

    verdict: str
    known: Entry | None

    @property
    def refused(self) -> bool:
        """Whether it takes an override to go on."""
        return self.verdict in ("older", "second child")


class Ledger:
    """The ledger of one key.

    Parameters
    ----------
    path : Path or None
        None keeps no ledger: nothing is refused.
    """

    def __init__(self, key: SnapshotKey, path: Path | None) -> None:
        self.path = path
        self._key = key.derive(_SALT, "ledger")
        self._lock_path = key.path

    @classmethod
    def beside(cls, key: SnapshotKey) -> Ledger:
        """The ledger that lies beside the key's file; none for a key that is in no file."""
        return cls(key, None if key.path is None else key.path.with_name(key.path.name + SUFFIX))

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})"

    def known(self) -> dict[str, Entry]:
        """By guest id.

        Raises
        ------
        IntegrityError
            The ledger was altered, or is of another key.
        """
        if self.path is None or not self.path.exists():
            return {}
        try:
            text = json.loads(self.path.read_text(encoding="utf-8"))
            guests, mac = text["guests"], text["mac"]
            if not hmac.compare_digest(self._mac(guests), str(mac)):
                raise ValueError
            return {guest: Entry(int(each["sequence"]), str(each["root"])) for guest, each in guests.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{self.path}: the ledger was altered, or belongs to another key") from error

    def standing(self, guest: str, sequence: int, root: str, equals: str = "") -> Standing:
        """What it says of the snapshot with this place and root; `equals` is a root with the same content."""
        entry = self.known().get(guest)
        if entry is None:
            return Standing("unknown", None)
        if sequence != entry.sequence:
            return Standing("newer" if sequence > entry.sequence else "older", entry)
        same = entry.root in (root, equals)
        return Standing("newest" if same else "second child", entry)

    def next_sequence(self, guest: str, after: int) -> int:
        """The place of a new snapshot of `guest` that builds on one in place `after` (0: on none)."""
        entry = self.known().get(guest)
        return max(after, entry.sequence if entry else 0) + 1

    def enter(self, guest: str, sequence: int, root: str) -> None:
        """Write a snapshot down as the newest, unless a newer one stands there."""
        if self.path is None:
            return
        with self._alone():
            guests = self.known()
            entry = guests.get(guest)
            if entry is not None and entry.sequence > sequence:
                return
            guests[guest] = Entry(sequence, root)
            self._write(guests)

    def _write(self, guests: dict[str, Entry]) -> None:
        assert self.path is not None
        plain = {guest: {"sequence": entry.sequence, "root": entry.root} for guest, entry in sorted(guests.items())}
        text = json.dumps({"schema": "lazypv.ledger/1", "guests": plain, "mac": self._mac(plain)}, indent=1)
        with replaced_atomically(self.path) as file:
            file.write(text.encode() + b"\n")
        sync_folder(self.path)

    def _mac(self, guests: Any) -> str:
        return hmac.new(self._key, json.dumps(guests, sort_keys=True).encode(), "sha256").hexdigest()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process writes at a time: the key file is what all of them lock."""
        if self._lock_path is None:
            yield
            return
        with open(self._lock_path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def sync_folder(path: Path) -> None:
    """Let the name of `path` survive a crash."""
    folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def refuse(path: object, standing: Standing, sequence: int, what: str, override: str) -> RollBackError:
    """The error that says what the ledger knows, and how to override it."""
    assert standing.known is not None
    known = standing.known
    return RollBackError(
        f"{path}: {what}: the ledger knows number {known.sequence} (root {known.root[:16]}) of this guest, this is "
        f"number {sequence}; {override} overrides that"
    )
