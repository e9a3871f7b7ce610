"""Serve snapshots over Arrow Flight: bytes as they are, without a key, hence without any judgement of them.

Who pulls verifies. Files stay open from the beginning on, so a snapshot that is replaced meanwhile is served as it was.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lazypv.errors import UsageError
from lazypv.snapshot import layout
from lazypv.snapshot.errors import DamagedSnapshotError
from lazypv.snapshot.flight import (
    END_PIECE,
    MESSAGE,
    Address,
    Extent,
    Token,
    is_loopback,
    message_of,
    read_file,
    read_ticket,
    ticket_of,
)
from lazypv.snapshot.reader import Unverified, data_of, read_header
from lazypv.snapshot.store import Source, Target, is_uri, open_source

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Served:
    """One snapshot that is served."""

    name: str
    source: Source
    found: Unverified
    size: int

    @property
    def batches(self) -> int:
        """As its header says."""
        return self.found.layout.batches

    def head(self) -> Iterator[list[Extent]]:
        """The header, then in pieces what stands behind the last batch."""
        yield [(0, np.frombuffer(self.found.message, np.uint8))]
        for start in range(self.found.layout.offset(self.batches), self.size, END_PIECE):
            yield [(start, self._read(start, min(END_PIECE, self.size - start)))]

    def batch(self, index: int) -> list[Extent]:
        """Batch `index` but for pages of zeroes, be they holes of the file or not."""
        header, start = self.found.header, self.found.layout.offset(index)
        at = layout.columns(layout.rows_of(header.rows, index), header.metadata_size)
        buffer = self._read(start, int(at[5]))
        kept = np.ones(at[5] // 8, np.bool_)
        stored = data_of(buffer, at).view(np.uint64).any(axis=1)
        kept[at[0] // 8 : at[1] // 8] = np.repeat(stored, 512)
        edges = np.flatnonzero(np.diff(kept)) + 1
        bounds = (8 * np.concatenate([[0], edges, [kept.size]])).tolist()
        # It begins with metadata, so every other run is one that is sent.
        return [(start + first, buffer[first:last]) for first, last in zip(bounds[::2], bounds[1::2], strict=True)]

    def _read(self, start: int, size: int) -> NDArray[np.uint8]:
        buffer = np.empty(size, np.uint8)
        if self.source.read_into(buffer, start) < size:
            raise DamagedSnapshotError(self.name, f"byte {start}", "the file has become shorter")
        return buffer


class Shelf:
    """The snapshots of one server, by name.

    Raises
    ------
    UsageError
        Not to be read, or two of the same name.
    NotAnArrowFileError, DamagedSnapshotError
        Not whole, as far as that can be seen without a key.
    """

    def __init__(self, targets: list[Target]) -> None:
        self.by_name: dict[str, Served] = {}
        self.stopping = False
        try:
            for target in targets:
                self._add(target)
        except BaseException:
            self.close()
            raise

    def _add(self, target: Target) -> None:
        name = os.fspath(target).rpartition("/")[2] if is_uri(target) else Path(target).name
        if name in self.by_name:
            raise UsageError(f"{target}: another snapshot with the name {name} is served already")
        source = open_source(target)
        try:
            found, size = read_header(source), source.size
            if size <= found.layout.offset(found.layout.batches):
                raise DamagedSnapshotError(source.name, "footer", f"the file ends at byte {size}: truncated")
        except BaseException:
            source.close()
            raise
        self.by_name[name] = Served(name, source, found, size)

    def close(self) -> None:
        """Let go of all files."""
        for served in self.by_name.values():
            served.source.close()

    def stream(self, ticket: bytes) -> Iterator[list[Extent]]:
        """What a ticket asks for, message by message.

        Raises
        ------
        ValueError, KeyError
            It asks for nothing that is served.
        """
        file_id, first = read_ticket(ticket)
        served = next((each for each in self.by_name.values() if each.found.header.file_id == file_id), None)
        if served is None or first > served.batches:
            raise KeyError(file_id)
        return self._stream(served, first)

    def _stream(self, served: Served, first: int) -> Iterator[list[Extent]]:
        yield from served.head()
        for index in range(first, served.batches):
            if self.stopping:
                raise InterruptedError
            yield served.batch(index)


class Stoppable(Protocol):
    """The server underneath, as far as it is used here."""

    port: int

    def shutdown(self) -> None:
        """Take no more calls, and return when all have ended."""


class Server:
    """A server that listens.

    Attributes
    ----------
    address : Address
    """

    def __init__(self, shelf: Shelf, flight: Stoppable, address: Address) -> None:
        self.shelf = shelf
        self.address = address
        self._flight = flight

    def close(self, seconds: float = 5.0) -> bool:
        """Stop listening and end streams; whether all threads have ended in that time.

        A client that takes no bytes keeps the thread of its stream: the library underneath cannot cut it off.
        """
        self.shelf.stopping = True
        ending = threading.Thread(target=self._flight.shutdown, name="lazypv-serve-end", daemon=True)
        ending.start()
        ending.join(seconds)
        if ending.is_alive():
            return False
        self.shelf.close()
        return True


def listen(
    shelf: Shelf,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    tls: tuple[Path, Path] | None = None,
    token: Token | None = None,
    insecure: bool = False,
) -> Server:
    """Serve what is on the shelf, in threads of its own.

    Parameters
    ----------
    port : int
        0 chooses one.
    tls : (Path, Path), optional
        Certificate and its key, PEM.
    insecure : bool
        Also on an address that others reach, without TLS and a token.

    Raises
    ------
    UsageError
        The address is one that others reach, is taken, or the certificate does not do.
    """
    if not is_loopback(host) and not insecure and (tls is None or token is None):
        raise UsageError(
            f"{host}: others reach this address: that takes --tls-cert, --tls-key and --token-file; --insecure"
            " overrides that"
        )
    certificates = None if tls is None else [(read_file(tls[0], "certificate"), read_file(tls[1], "its key"))]
    if port:
        _check_free(host, port)
    wanted = Address(host, port, tls is not None)
    import pyarrow as pa

    try:
        made = _flight_server(shelf, wanted.server, certificates, token)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{wanted.server}: cannot listen: the address, or certificate and key, do not do") from error
    return Server(shelf, made, Address(host, made.port, wanted.tls))


def _check_free(host: str, port: int) -> None:
    """A second server would share the port otherwise, and each get some of the calls."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(f"{host}:{port}: {error.strerror}") from error


def _flight_server(
    shelf: Shelf, location: str, certificates: list[tuple[bytes, bytes]] | None, token: Token | None
) -> Stoppable:
    from pyarrow import flight

    class Gate(flight.ServerMiddlewareFactory):  # type: ignore[misc]
        """Refuses calls without the token."""

        def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
            offered = headers.get("authorization", [""])
            if token is not None and (len(offered) != 1 or not token.fits(str(offered[0]))):
                raise flight.FlightUnauthenticatedError("no token, or a wrong one")

    class FlightServer(flight.FlightServerBase):  # type: ignore[misc]
        """Calls as they come in; what goes wrong is told without a path of this computer."""

        def list_flights(self, context: Any, criteria: bytes) -> Iterator[Any]:
            for served in shelf.by_name.values():
                yield self._info(served)

        def get_flight_info(self, context: Any, descriptor: Any) -> Any:
            names = [each.decode("utf-8", "replace") for each in descriptor.path or []]
            if len(names) != 1 or names[0] not in shelf.by_name:
                raise flight.FlightServerError("no such snapshot is served")
            return self._info(shelf.by_name[names[0]])

        def do_get(self, context: Any, ticket: Any) -> Any:
            try:
                parts = shelf.stream(ticket.ticket)
            except (ValueError, KeyError):
                raise flight.FlightServerError("the ticket is for nothing that is served") from None
            return flight.GeneratorStream(MESSAGE, self._messages(context, parts))

        @staticmethod
        def _messages(context: Any, parts: Iterator[list[Extent]]) -> Iterator[Any]:
            try:
                for extents in parts:
                    if context.is_cancelled():
                        return
                    yield message_of(extents)
            except InterruptedError:
                raise flight.FlightUnavailableError("the server ends") from None
            except (DamagedSnapshotError, OSError):
                raise flight.FlightServerError("the snapshot cannot be read any more") from None

        @staticmethod
        def _info(served: Served) -> Any:
            ticket = flight.Ticket(ticket_of(served.found.header.file_id, 0))
            descriptor = flight.FlightDescriptor.for_path(served.name)
            endpoints = [flight.FlightEndpoint(ticket, [])]
            return flight.FlightInfo(MESSAGE, descriptor, endpoints, served.batches, served.size)

    made: Stoppable = FlightServer(
        location, tls_certificates=certificates, middleware={"token": Gate()} if token is not None else None
    )
    return made
