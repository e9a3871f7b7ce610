"""`lazypv snapshot serve` and `lazypv snapshot pull`: snapshots over Arrow Flight."""

from __future__ import annotations

import json as json_text
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="A token in a file of mode 0600.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else.")]


def serve(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Snapshots: paths or URIs.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 chooses one.")] = 0,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate, PEM.", show_default=False)] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's key, PEM.", show_default=False)
    ] = None,
    token_file: TokenFile = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Also where others reach it, without TLS and a token.")
    ] = False,
    json: Json = False,
) -> None:
    """Serve snapshots over Arrow Flight until interrupted or terminated. No key is needed, and nothing is verified.

    Standard output has one line when it listens: the server's URI. Exit status: 0 terminated, 2 bad use or input, 4
    damaged, 130 interrupted.
    """
    from lazypv.errors import UsageError
    from lazypv.snapshot.flight import Token
    from lazypv.snapshot.serve import Shelf, listen

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together")
    tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    token = None if token_file is None else Token.load(token_file)
    with _asked_to_end() as wait:
        server = listen(Shelf(list(files)), host, port, tls=tls, token=token, insecure=insecure)
        _tell_listening(server, json)
        number = wait()
        if not server.close():
            # Its thread stands in the library until the client takes bytes, and would keep the process.
            typer.echo("lazypv: a client that takes nothing was cut off", err=True)
            sys.stdout.flush()
            os._exit(128 + number if number == signal.SIGINT else 0)
    if number == signal.SIGINT:
        raise KeyboardInterrupt


@contextmanager
def _asked_to_end() -> Iterator[Callable[[], int]]:
    """Waits for SIGINT or SIGTERM, whichever thread they reach; which it was."""
    end, begin = os.pipe()
    os.set_blocking(begin, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    woken = signal.set_wakeup_fd(begin, warn_on_full_buffer=False)

    def wait() -> int:
        while True:
            number = os.read(end, 1)[0]
            if number in before:
                return number

    try:
        yield wait
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(end)
        os.close(begin)


def _tell_listening(server: Any, json: bool) -> None:
    snapshots = [
        {
            "name": name,
            "uri": server.address.uri(name),
            "file_id": served.found.header.file_id,
            "batches": served.batches,
            "file_bytes": served.size,
        }
        for name, served in server.shelf.by_name.items()
    ]
    if json:
        told = {"schema": "lazypv.snapshot-serve/1", "uri": server.address.server, "snapshots": snapshots}
        typer.echo(json_text.dumps(told))
        return
    typer.echo(server.address.server)
    for each in snapshots:
        typer.echo(f"lazypv: serving {each['uri']}", err=True)


def pull(
    uri: Annotated[str, typer.Argument(metavar="URI", help="grpc://HOST:PORT/NAME or grpc+tls://HOST:PORT/NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the snapshot goes.")],
    key: Annotated[Path, typer.Option("--key", metavar="KEY", help="Key file, as `lazypv key new` writes it.")],
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificates to trust, PEM.", show_default=False)
    ] = None,
    token_file: TokenFile = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Send the token also where others can read it.")] = False,
    allow_rollback: Annotated[
        bool, typer.Option("--allow-rollback", help="Override a ledger that knows a newer snapshot of the guest.")
    ] = False,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The ledger. [default: beside the key file]", show_default=False),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, max=1000, help="How often to take up a stream that breaks off and brings nothing.")
    ] = 5,
    json: Json = False,
) -> None:
    """Pull a snapshot from a server that nobody has to trust; every batch is verified when it comes.

    A stream that breaks off is taken up again behind the last batch that verified. An interrupted pull leaves
    FILE.part, and the same command goes on likewise. Exit status: 0 fine, 2 bad use, server or disk, 4 integrity
    refused.
    """
    from lazypv.cli.progress import Progress
    from lazypv.snapshot.flight import Token
    from lazypv.snapshot.keys import SnapshotKey
    from lazypv.snapshot.ledger import Ledger
    from lazypv.snapshot.pull import pull as fetch

    opened = SnapshotKey.load(key)
    book = None if ledger is None else Ledger(opened, ledger)
    token = None if token_file is None else Token.load(token_file)
    with Progress() as progress:
        done = fetch(
            uri, output, opened, ca=tls_ca, token=token, insecure=insecure, ledger=book,
            allow_rollback=allow_rollback, progress=progress, retries=retries,
        )  # fmt: skip
    if done.overridden:
        typer.echo(f"lazypv: overriding the ledger: {done.overridden}", err=True)
    if json:
        typer.echo(json_text.dumps({"schema": "lazypv.snapshot-pull/1", **vars(done)}))
        return
    kept = f", {done.kept} of them left by an earlier pull" if done.kept else ""
    typer.echo(f"{done.file}: {done.batches} batches{kept}; number {done.sequence} of its guest, root {done.root[:16]}")
