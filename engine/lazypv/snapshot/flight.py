"""What a server and a puller of snapshots agree on: names, tickets, messages and tokens, over Arrow Flight.

A stream has the header, then what stands behind the last batch, then batches from the ticket's on. A message is a
record batch of extents: where in the file, and the bytes; pages of zeroes are not sent. The format is described in
docs/snapshots-serve.md.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pyarrow as pa

from lazypv.errors import LazyPVError, UsageError
from lazypv.snapshot.errors import KeyFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Extent = tuple[int, "NDArray[np.uint8]"]
"""First byte in the file, and the bytes."""

MESSAGE = pa.schema([pa.field("offset", pa.uint64(), nullable=False), pa.field("data", pa.binary(), nullable=False)])
END_PIECE = 1 << 20
"""Bytes of a message with what stands behind the last batch."""
MOST_EXTENTS = 512
"""Extents of a message: a batch has at most a run of pages for every second row, and its metadata and columns."""
TICKET = "lazypv.snapshot-ticket/1"
PLAIN, TLS = "grpc", "grpc+tls"
_SHORTEST_TOKEN = 16
_KEY_FILE = "lazypv-key"
_BEARER = "Bearer "


class TransferError(LazyPVError):
    """A server that is not there, does not answer, or does not have what was asked for.

    Attributes
    ----------
    passing : bool
        Another try may well succeed: the connection broke off, or nobody answered.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


# --- messages ----------------------------------------------------------------------------------------------------


def message_of(extents: list[Extent]) -> pa.RecordBatch:
    """Extents as a message; one extent's bytes are not copied."""
    pieces = [data for _, data in extents]
    ends = np.cumsum([0, *(piece.size for piece in pieces)], dtype=np.int32)
    data = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    columns = [
        pa.array([offset for offset, _ in extents], pa.uint64()),
        pa.Array.from_buffers(pa.binary(), len(pieces), [None, pa.py_buffer(ends), pa.py_buffer(data)]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGE)


def extents_of(message: pa.RecordBatch, first: int, last: int) -> list[Extent]:
    """Extents of a message from a stranger: ascending, apart, and within bytes ``[first, last)`` of the file.

    Raises
    ------
    ValueError
        It is anything else; says what.
    """
    if not message.schema.equals(MESSAGE):
        raise ValueError("a message of another form")
    if not 0 < message.num_rows <= MOST_EXTENTS:
        raise ValueError(f"a message of {message.num_rows} extents")
    try:
        message.validate(full=True)  # offsets within it may point anywhere before
    except pa.ArrowInvalid as error:
        raise ValueError("a message that is no Arrow record batch") from error
    if any(column.null_count for column in message.columns):
        raise ValueError("a message with holes")
    extents, at = [], first
    for offset, data in zip(message.column(0).to_pylist(), message.column(1), strict=True):
        piece = np.frombuffer(data.as_buffer(), np.uint8)
        if offset < at or offset + piece.size > last:
            raise ValueError(f"bytes of another place of the file ({offset}): moved or altered")
        extents.append((offset, piece))
        at = offset + piece.size
    return extents


def ticket_of(file_id: str, batch: int) -> bytes:
    """Asks for a snapshot from `batch` on."""
    return json.dumps({"schema": TICKET, "file_id": file_id, "batch": batch}).encode()


def read_ticket(ticket: bytes) -> tuple[str, int]:
    """File id, and first batch.

    Raises
    ------
    ValueError
        It is no ticket of ours.
    """
    told = json.loads(ticket)
    if not isinstance(told, dict) or told.get("schema") != TICKET:
        raise ValueError("no ticket")
    file_id, batch = told.get("file_id"), told.get("batch")
    if not isinstance(file_id, str) or type(batch) is not int or batch < 0:
        raise ValueError("no ticket")
    return file_id, batch


# --- addresses ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Address:
    """Where a server is, and which of its snapshots is meant.

    Attributes
    ----------
    name : str
        Empty for the only one that is served.
    """

    host: str
    port: int
    tls: bool
    name: str = ""

    @classmethod
    def parse(cls, uri: str) -> Address:
        """From ``grpc://HOST:PORT/NAME`` or ``grpc+tls://HOST:PORT/NAME``.

        Raises
        ------
        UsageError
        """
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{uri}: {error}") from error
        if parts.username is not None or parts.password is not None:
            raise UsageError("a URI has no user or password: a token comes in a file (--token-file)")
        if parts.scheme not in (PLAIN, TLS) or not host or not port or parts.query or parts.fragment:
            raise UsageError(f"{uri}: is not {PLAIN}://HOST:PORT/NAME or {TLS}://HOST:PORT/NAME")
        return cls(host, port, parts.scheme == TLS, unquote(parts.path.removeprefix("/")))

    @property
    def server(self) -> str:
        """URI of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{TLS if self.tls else PLAIN}://{host}:{self.port}"

    def uri(self, name: str) -> str:
        """URI of one of its snapshots."""
        return f"{self.server}/{quote(name, safe='')}"


def is_loopback(host: str) -> bool:
    """Whether nobody but this computer can be behind `host`: all that it stands for is loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)


def read_file(path: Path, what: str) -> bytes:
    """A certificate or the like.

    Raises
    ------
    UsageError
        It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {what}: {error.strerror}") from error


def printable(text: object, most: int = 160) -> str:
    """What a stranger said, so that a terminal can show it: one line, nothing but printable characters."""
    words = " ".join(str(text).split())
    return "".join(each if each.isprintable() else "?" for each in words)[:most]


# --- tokens ------------------------------------------------------------------------------------------------------


class Token:
    """What a server lets pull: a secret that both sides have in a file. It is never shown."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "Token()"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a token is not written anywhere")

    @classmethod
    def load(cls, path: Path) -> Token:
        """The token in `path`: one word of at least 16 characters.

        Raises
        ------
        KeyFileError
            Not there, not a token, a key, or others than its owner may read or write it.
        """
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(4096).decode("ascii", "replace").strip()
        except OSError as error:
            raise KeyFileError(f"{path}: {error.strerror}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyFileError(f"{path}: mode {stat.S_IMODE(mode):04o} lets others at the token; it has to be 0600")
        if text.startswith(_KEY_FILE):
            raise KeyFileError(f"{path}: is a key file: a token is told to the server, a key to nobody")
        if len(text) < _SHORTEST_TOKEN or not all("!" <= each <= "~" for each in text):
            raise KeyFileError(f"{path}: a token is one word of at least {_SHORTEST_TOKEN} printable characters")
        return cls(text)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What a call carries."""
        return [(b"authorization", (_BEARER + self._secret).encode())]

    def fits(self, offered: str) -> bool:
        """Whether a call carried it; takes as long whatever was offered, and however long that was."""
        digests = [hashlib.sha256(each.encode()).digest() for each in (offered, _BEARER + self._secret)]
        return hmac.compare_digest(*digests)
