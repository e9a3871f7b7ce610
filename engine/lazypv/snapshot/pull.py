"""Pull a snapshot from a server that is not trusted: every batch is verified when it comes, before it is written.

An interrupted pull leaves FILE.part, whose batches are verified again before the next pull goes on behind them. FILE
itself appears when all of it is there.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import IntegrityError, UsageError
from lazypv.files import check_writable
from lazypv.snapshot.arriving import Arrived, Arriving, check_batch
from lazypv.snapshot.chain import Chain
from lazypv.snapshot.client import Connection, Messages
from lazypv.snapshot.errors import DamagedSnapshotError
from lazypv.snapshot.flight import Address, Extent, Token, TransferError, extents_of, is_loopback, printable
from lazypv.snapshot.keys import SnapshotKey
from lazypv.snapshot.layout import MOST_HEADER
from lazypv.snapshot.ledger import Ledger
from lazypv.snapshot.part import Part
from lazypv.snapshot.reader import SnapshotFile
from lazypv.snapshot.restore import ask_ledger
from lazypv.snapshot.store import Target, is_uri
from lazypv.snapshot.writer import NoProgress, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray


FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds before a stream that broke off is taken up again."""


class OtherSnapshotError(IntegrityError):
    """The server has another snapshot under that name than the one whose beginning FILE.part is."""


@dataclass(frozen=True)
class Pulled:
    """What was pulled.

    Attributes
    ----------
    parent : str
        Name of the snapshot that it builds on, empty for none: pull that too.
    batches, kept : int
        All batches, and how many of them an earlier pull had left.
    overridden : str
        What of the ledger was overridden.
    """

    file: str
    uri: str
    root: str
    guest_id: str
    sequence: int
    parent: str
    batches: int
    kept: int
    file_bytes: int
    incomplete: bool = False
    overridden: str = ""


def pull(
    uri: str,
    output: Target,
    key: SnapshotKey,
    *,
    ca: Path | None = None,
    token: Token | None = None,
    insecure: bool = False,
    ledger: Ledger | None = None,
    allow_rollback: bool = False,
    progress: Progress | None = None,
    patience: float = 60.0,
    retries: int = 0,
    pause: float = FIRST_PAUSE,
) -> Pulled:
    """Pull one snapshot, or go on with a pull that was interrupted.

    Parameters
    ----------
    ca : Path, optional
        Certificates to trust, PEM.
    insecure : bool
        Send the token also where others can read it.
    patience : float
        Seconds without a message after which the server counts as gone.
    retries : int
        How often a stream that breaks off is taken up again without a single batch coming meanwhile.
    pause : float
        Seconds before the first of these; each takes twice as long as the one before, 30 at most.

    Raises
    ------
    TransferError
        The server is not there, has not what was asked for, or went away: the same pull goes on later.
    DamagedSnapshotError
        Names the batch, or header or footer, that is not what was sealed.
    OtherSnapshotError, RollBackError
        It is not the snapshot that was begun; the ledger knows a newer one.
    UsageError, SnapshotWriteError
    """
    address = Address.parse(uri)
    if is_uri(output):
        raise UsageError(f"{output}: a snapshot is pulled into a file of this computer")
    path = Path(output)
    check_writable(path)
    if token is not None and not address.tls and not is_loopback(address.host) and not insecure:
        raise UsageError(f"{uri}: the token would be sent in the clear; --insecure overrides that")
    with Part(path) as part:
        job = _Pull(key, part, progress or NoProgress())
        book = ledger or Ledger.beside(key)
        tried = before = 0
        while True:
            try:
                with Connection(address, ca, token) as connection:
                    job.take(connection, address, book, allow_rollback, patience)
                break
            except TransferError as error:
                tried = tried if job.there == before else 0
                before = job.there
                # Who was never there is not waited for, and what a server says on purpose it says again.
                if not error.passing or not job.streaming or tried >= retries:
                    raise
                time.sleep(min(pause * 2**tried, LONGEST_PAUSE))
                tried += 1
        return job.finish(path)


class _Pull:
    """One pull, step by step.

    Attributes
    ----------
    kept, there : int
        Batches that an earlier pull had left, and that are there now.
    streaming : bool
        The server has begun to send: it was there once.
    """

    def __init__(self, key: SnapshotKey, part: Part, progress: Progress) -> None:
        self.uri = ""
        self.key = key
        self.part = part
        self.progress = progress
        self.kept = self.there = 0
        self.streaming = False
        self._overridden = ""
        self._file_id = ""
        self._begun: SnapshotFile | None = None
        self._arriving: Arriving

    def take(
        self, connection: Connection, address: Address, ledger: Ledger, allow_rollback: bool, patience: float
    ) -> None:
        """Everything that is not there yet, over one connection; what came before it broke off stays."""
        name, file_id, size = connection.look_up()
        self.uri = address.uri(name)
        if not self._file_id:
            self._file_id = file_id
            self.keep_what_is_there(file_id)
        elif file_id != self._file_id:
            raise self._another()
        with connection.stream(file_id, self.there, patience) as messages:
            self.take_head(messages, file_id, size)
            self._overridden = self.ask_ledger(ledger, allow_rollback)
            self.take_batches(messages)

    def keep_what_is_there(self, file_id: str) -> None:
        """Verify what an earlier pull left, up to the first batch that is not whole."""
        begun = self._begun = self.part.begun(self.key)
        if begun is None:
            return
        if begun.header.file_id != file_id:
            raise self._another()
        self.progress.expect(begun.layout.batches + 1)
        buffer = begun.new_buffer()
        with contextlib.suppress(DamagedSnapshotError):
            while self.kept < begun.layout.batches:
                check_batch(begun, self.kept, buffer)
                self.kept = self.there = self.kept + 1
                self.progress(f"batch {self.kept} was there")

    def take_head(self, messages: Messages, file_id: str, size: int) -> None:
        """Header, root and list of batches: verified, and equal to those of what is there."""
        ((_, header),) = self._extents(messages, "header", 0, MOST_HEADER)
        self.streaming = True
        arrived = Arrived(self.uri, size, header)
        arriving = self._arriving = Arriving(arrived, self.key)
        if arriving.header.file_id != file_id:
            raise DamagedSnapshotError(self.uri, "header", "of another snapshot than the one that was asked for")
        arrived.end = self._end(messages, arriving, size)
        arriving.check_end()
        if self._begun is None and not self.there:
            self.part.begin(arrived)

    def _end(self, messages: Messages, arriving: Arriving, size: int) -> NDArray[np.uint8]:
        """What stands behind the last batch of a file that is said to have `size` bytes."""
        at = arriving.layout.offset(arriving.layout.batches)
        if not at < size <= at + arriving.most_end:
            raise DamagedSnapshotError(self.uri, "footer", f"a file of {size} bytes: truncated or altered")
        pieces = []
        while at < size:
            ((_, piece),) = self._extents(messages, "footer", at, size)
            if not piece.size:
                raise DamagedSnapshotError(self.uri, "footer", "a message without bytes")
            pieces.append(piece)
            at += piece.size
        return np.concatenate(pieces)

    def _extents(self, messages: Messages, part: str, first: int, last: int, batch: int | None = None) -> list[Extent]:
        """The next message; but for a batch it has one extent."""
        try:
            extents = extents_of(messages.next(part, batch), first, last)
            if batch is None and [offset for offset, _ in extents] != [first]:
                raise ValueError("bytes are missing, moved or altered")
        except ValueError as error:
            raise DamagedSnapshotError(self.uri, part, printable(error), batch=batch) from error
        return extents

    def ask_ledger(self, ledger: Ledger, allow_rollback: bool) -> str:
        """What of it was overridden; nothing of a snapshot that it refuses is asked for."""
        return ask_ledger(_Alone(self._arriving), ledger, allow_rollback)

    def take_batches(self, messages: Messages) -> None:
        """Verify every batch that is not there yet, then write it."""
        arriving, batches = self._arriving, self._arriving.layout.batches
        self.progress.expect(batches + 1)
        buffer = arriving.new_buffer()
        for index in range(self.there, batches):
            start, size = arriving.layout.offset(index), int(arriving.columns(index)[5])
            extents = self._extents(messages, f"batch {index}", start, start + size, index)
            arriving.arrived.set_batch(start, size, extents)
            check_batch(arriving, index, buffer)
            self.part.write(extents, f"batch {index} of {batches}")
            self.there = index + 1
            self.progress(f"batch {index}")

    def finish(self, path: Path) -> Pulled:
        """Everything is there: under its name, when it is safe."""
        header, root = self._arriving.header, self._arriving.root
        self.part.finish(path, self.key, root)
        return Pulled(
            file=str(path), uri=self.uri, root=root, guest_id=header.guest_id, sequence=header.sequence,
            parent=header.parent_name, batches=self._arriving.layout.batches, kept=self.kept,
            file_bytes=self._arriving.arrived.size, incomplete=bool(header.incomplete),
            overridden=self._overridden,
        )  # fmt: skip

    def _another(self) -> OtherSnapshotError:
        return OtherSnapshotError(
            f"{self.uri}: is another snapshot than the one that {self.part.path} is the beginning of; remove that to"
            " begin anew"
        )


class _Alone(Chain):
    """One file without its parents."""

    def __init__(self, file: SnapshotFile) -> None:
        self.files = [file]
