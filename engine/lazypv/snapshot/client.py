"""The puller's end of the wire: one server, and a stream whose messages are taken while others are verified."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from lazypv.errors import UsageError
from lazypv.snapshot.errors import DamagedSnapshotError
from lazypv.snapshot.flight import Address, Token, TransferError, printable, read_file, read_ticket, ticket_of

MOST_MESSAGE = 8 << 20
"""Bytes of a message that are accepted; a header may have 4 MiB, a batch has one and a little."""
_AHEAD = 4
"""Messages that may have come and wait to be verified."""
_ANSWER_SECONDS = 30.0


class Connection:
    """A client of one server."""

    def __init__(self, address: Address, ca: Path | None, token: Token | None) -> None:
        from pyarrow import flight

        if ca is not None and not address.tls:
            raise UsageError(f"{address.server}: --tls-ca is for grpc+tls://")
        options: dict[str, Any] = {"generic_options": [("grpc.max_receive_message_length", MOST_MESSAGE)]}
        if ca is not None:
            options["tls_root_certs"] = read_file(ca, "certificates")
        self._address = address
        self._headers = [] if token is None else token.headers()
        with _told_by(address.server):
            self._client = flight.FlightClient(address.server, **options)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.close()

    def look_up(self) -> tuple[str, str, int]:
        """Name, file id and size of the snapshot that is meant, as the server says them.

        Raises
        ------
        TransferError, UsageError
        """
        from pyarrow import flight

        name, call = self._address.name, flight.FlightCallOptions(headers=self._headers, timeout=_ANSWER_SECONDS)
        with _told_by(self._address.server):
            if name:
                infos = [self._client.get_flight_info(flight.FlightDescriptor.for_path(name), call)]
            else:
                infos = [info for info, _ in zip(self._client.list_flights(b"", call), range(100), strict=False)]
        try:
            names = [name or info.descriptor.path[0].decode() for info in infos]
            tickets = [read_ticket(info.endpoints[0].ticket.ticket) for info in infos]
            sizes = [int(info.total_bytes) for info in infos]
        except (ValueError, LookupError, TypeError) as error:
            raise TransferError(f"{self._address.server}: is no server of snapshots") from error
        if len(names) != 1:
            known = ", ".join(printable(each, 64) for each in names) or "nothing"
            raise UsageError(f"{self._address.server}: name one of what it serves: {known}")
        return names[0], tickets[0][0], sizes[0]

    @contextlib.contextmanager
    def stream(self, file_id: str, batch: int, patience: float) -> Iterator[Messages]:
        """The messages of a snapshot from `batch` on."""
        from pyarrow import flight

        with _told_by(self._address.server):
            options = flight.FlightCallOptions(headers=self._headers)
            reader = self._client.do_get(flight.Ticket(ticket_of(file_id, batch)), options)
        messages = Messages(self._address.server, reader, patience)
        try:
            yield messages
        finally:
            messages.close()


@contextlib.contextmanager
def _told_by(server: str) -> Iterator[None]:
    """What Flight says, in a line."""
    from pyarrow import flight

    try:
        yield
    except flight.FlightUnauthenticatedError as error:
        raise TransferError(f"{server}: refuses the call: it takes a token (--token-file), or another one") from error
    except flight.FlightUnavailableError as error:
        raise TransferError(
            f"{server}: is not there, or its certificate is not trusted (--tls-ca)", passing=True
        ) from error
    except (flight.FlightError, pa.ArrowException, OSError) as error:
        raise TransferError(f"{server}: {printable(str(error).partition('. Detail')[0])}") from error


class Messages:
    """Messages of a stream, taken from the wire by a thread of their own while others are verified."""

    def __init__(self, server: str, reader: Any, patience: float) -> None:
        self._server = server
        self._reader = reader
        self._patience = patience
        self._waiting: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._take, name="lazypv-pull", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while not self._stop.is_set():
            try:
                told = self._reader.read_chunk().data
            except BaseException as error:  # whatever it is, the one who waits has to know
                told = error
            while not self._stop.is_set():
                with contextlib.suppress(queue.Full):
                    self._waiting.put(told, timeout=0.1)
                    break
            if isinstance(told, BaseException):
                return

    def next(self, part: str, batch: int | None = None) -> pa.RecordBatch:
        """The next message, which has to be `part`.

        Raises
        ------
        DamagedSnapshotError
            The stream has ended, or is none.
        TransferError
            The server has gone.
        """
        from pyarrow import flight

        where = f"{self._server}: {part}"
        try:
            told = self._waiting.get(timeout=self._patience)
        except queue.Empty:
            raise TransferError(
                f"{where}: nothing came for {self._patience:g} s; the same pull goes on later", passing=True
            ) from None
        if isinstance(told, StopIteration):
            raise DamagedSnapshotError(self._server, part, "the stream ends before it: truncated", batch=batch)
        if isinstance(told, flight.FlightError | OSError):
            raise TransferError(f"{where}: the stream broke off; the same pull goes on later", passing=True) from told
        if isinstance(told, BaseException):
            raise DamagedSnapshotError(self._server, part, "what came is no record batch", batch=batch) from told
        if told is None:
            raise DamagedSnapshotError(self._server, part, "a message without a record batch", batch=batch)
        return told

    def close(self) -> None:
        """Let the stream go, and wait for the thread."""
        self._stop.set()
        self._reader.cancel()
        self._thread.join(5.0)
