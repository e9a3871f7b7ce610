"""`lazypv snapshot`: a protected guest's memory in Arrow files that only their owner can read or alter."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lazypv.cli.snapshot_flight import pull, serve

if TYPE_CHECKING:
    from lazypv.snapshot.keys import SnapshotKey
    from lazypv.snapshot.ledger import Ledger
    from lazypv.snapshot.save import Saved

snapshot_app = typer.Typer(
    help="Snapshots of a protected guest in Arrow files: encrypted, verified, incremental, opened at once.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[str, typer.Argument(metavar="FILE", help="A snapshot: a path, or a URI of a pyarrow file system.")]
Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Snapshots: paths or URIs.")]
Key = Annotated[Path, typer.Option("--key", metavar="KEY", help="Key file, as `lazypv key new` writes it.")]
Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where the result goes.")]
LedgerFile = Annotated[
    Path | None,
    typer.Option("--ledger", metavar="FILE", help="The ledger. [default: beside the key file]", show_default=False),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads. [default: all cores]", show_default=False)]
Vcpus = Annotated[int, typer.Option(min=1, max=248, help="CPUs of the guest.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else.")]
AllowFork = Annotated[
    bool, typer.Option("--allow-fork", help="Override a ledger that knows another child of the parent.")
]
AllowRollback = Annotated[
    bool, typer.Option("--allow-rollback", help="Override a ledger that knows a newer snapshot of the guest.")
]


@snapshot_app.command("save")
def save(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="ELF dump or raw memory, also .zst.")],
    output: Output,
    key: Key,
    memory: Annotated[
        str | None, typer.Option(help="Size of the guest. [default: the image's]", show_default=False)
    ] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="FILE", help="Save only what changed since this one.", show_default=False)
    ] = None,
    vcpus: Vcpus = 2,
    allow_fork: AllowFork = False,
    ledger: LedgerFile = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Boot IMAGE as a protected guest and save it.

    With --parent that guest is restored, writes the pages in which IMAGE differs, and what dirty tracking then says is
    saved. Exit status: 0 fine, 2 bad use, input or store, 4 integrity refused.
    """
    from lazypv.cli.progress import Progress
    from lazypv.scenario.snapshot_jobs import save_image

    opened, book = _key_and_ledger(key, ledger)
    with Progress() as progress:
        saved = save_image(
            image, output, opened, memory=memory, parent=parent, vcpus=vcpus, ledger=book, allow_fork=allow_fork,
            threads=threads, progress=progress,
        )  # fmt: skip
    _tell_saved("save", saved, json)


@snapshot_app.command("restore")
def restore(
    file: File,
    key: Key,
    lazy: Annotated[bool, typer.Option("--lazy", help="Run at once, and import pages when they are touched.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also an incomplete one, which was recovered.")] = False,
    allow_rollback: AllowRollback = False,
    ledger: LedgerFile = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Restore the guest of FILE, with the snapshots it builds on, and let it have all of its memory.

    Exit status: 0 fine, 2 bad use or input, 4 integrity refused.
    """
    from lazypv.cli.progress import Progress
    from lazypv.scenario.snapshot_jobs import restore_and_run
    from lazypv.sizes import PAGE_SIZE, format_size

    opened, book = _key_and_ledger(key, ledger)
    if allow_rollback:
        _say_override(file, opened, book)
    with Progress() as progress:
        done = restore_and_run(
            file, opened, lazy=lazy, ledger=book, allow_rollback=allow_rollback, force=force, threads=threads,
            progress=progress,
        )  # fmt: skip
    told = {"file": file, "lazy": lazy, **vars(done)}
    size = format_size(done.pages * PAGE_SIZE)
    _tell(
        "restore", told, json,
        f"{file}: a guest of {size} runs; its first page after {done.first_page_s * 1e3:.1f} ms, all after"
        f" {done.all_s * 1e3:.1f} ms",
    )  # fmt: skip


@snapshot_app.command("info")
def info(file: File, json: Json = False) -> None:
    """What FILE says of itself. Nothing is verified, and no key is needed.

    Exit status: 0 fine, 2 no Arrow file, 4 damaged.
    """
    from lazypv.snapshot.verify import info as look

    told = look(file)
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in told.items() if value is not None]
    _tell("info", told, json, "\n".join([*lines, "nothing of this was verified"]))


@snapshot_app.command("verify")
def verify(
    files: Files,
    key: Key,
    alone: Annotated[bool, typer.Option("--alone", help="Not the snapshots that they build on.")] = False,
    ledger: LedgerFile = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Check every byte of each FILE, and of the snapshots that it builds on, without restoring anything.

    Exit status: 0 all is as it was sealed, 2 bad use or input, 4 integrity refused.
    """
    from lazypv.cli.progress import Progress
    from lazypv.snapshot.verify import verify as check

    opened, book = _key_and_ledger(key, ledger)
    found = []
    for file in files:
        with Progress() as progress:
            found.append(check(file, opened, ledger=book, alone=alone, progress=progress, threads=threads))
    lines = [
        f"{file}: {one.rows} rows in {one.batches} batches are what was sealed"
        f"{'; incomplete' if one.incomplete else ''}; number {one.sequence}, root {one.root[:16]}, ledger: {one.ledger}"
        for file, one in zip(files, found, strict=True)
    ]
    _tell("verify", {"snapshots": [vars(one) for one in found]}, json, "\n".join(lines))


@snapshot_app.command("diff")
def diff(
    one: Annotated[str, typer.Argument(metavar="FILE", help="A snapshot.")],
    other: Annotated[str, typer.Argument(metavar="FILE", help="Another, of a guest of the same size.")],
    key: Key,
    json: Json = False,
) -> None:
    """In which guest pages two states differ, each with the snapshots that it builds on.

    Exit status: 0 fine, 2 bad use or input, 4 integrity refused.
    """
    from lazypv.cli.progress import Progress
    from lazypv.snapshot.verify import diff as compare

    opened, _ = _key_and_ledger(key, None)
    with Progress() as progress:
        found = compare(one, other, opened, progress)
    runs = found.runs()
    told = {"pages": found.pages, "changed": int(found.changed.size), "compared": found.compared, "runs": runs}
    shown = "\n".join(f"{first:#x} {count}" for first, count in runs)
    _tell("diff", told, json, shown, f"{found.changed.size} of {found.pages} guest pages differ")


@snapshot_app.command("merge")
def merge(files: Files, output: Output, key: Key, json: Json = False) -> None:
    """Make one file of a snapshot and of those that it builds on; it stands for the newest of them.

    Exit status: 0 fine, 2 bad use, input or store, 4 integrity refused.
    """
    from lazypv.cli.progress import Progress
    from lazypv.snapshot.rewrite import merge as join

    opened, _ = _key_and_ledger(key, None)
    with Progress() as progress:
        saved = join(list(files), output, opened, progress=progress)
    _tell_saved("merge", saved, json)


@snapshot_app.command("recover")
def recover(file: File, output: Output, key: Key, json: Json = False) -> None:
    """Make a snapshot, marked incomplete, of the complete batches of an unfinished or damaged FILE.

    Exit status: 0 fine, 2 bad use, input or store, 4 nothing can be recovered.
    """
    from lazypv.cli.progress import Progress
    from lazypv.snapshot.rewrite import recover as salvage

    opened, _ = _key_and_ledger(key, None)
    with Progress() as progress:
        found = salvage(file, output, opened, progress=progress)
    told = {**vars(found.saved), "complete_batches": found.batches, "batches": found.of}
    _tell("recover", told, json, f"{output}: {found.batches} of {found.of} batches, marked incomplete")


@snapshot_app.command("export")
def export(file: File, output: Output, key: Key, json: Json = False) -> None:
    """Write an ELF core: shared pages as they are, secure ones as cipher text.

    Exit status: 0 fine, 2 bad use, input or store, 4 integrity refused.
    """
    from lazypv.cli.progress import Progress
    from lazypv.snapshot.elf_core import export_core

    opened, _ = _key_and_ledger(key, None)
    with Progress() as progress:
        done = export_core(file, output, opened, progress)
    _tell("export", {"file": output, **vars(done)}, json, f"{output}: {done.stored} pages in {done.segments} segments")


@snapshot_app.command("import")
def import_dump(
    dump: Annotated[str, typer.Argument(metavar="DUMP", help="ELF dump as QEMU writes it, or raw memory, also .zst.")],
    output: Output,
    key: Key,
    vcpus: Vcpus = 2,
    ledger: LedgerFile = None,
    json: Json = False,
) -> None:
    """Make a snapshot of a protected guest whose memory is that of DUMP; no guest runs.

    Exit status: 0 fine, 2 bad use, input or store.
    """
    from lazypv.cli.progress import Progress
    from lazypv.image import open_image
    from lazypv.snapshot.rewrite import import_image

    opened, book = _key_and_ledger(key, ledger)
    with Progress() as progress:
        saved = import_image(open_image(dump), output, opened, vcpus=vcpus, ledger=book, progress=progress)
    _tell_saved("import", saved, json)


snapshot_app.command("serve")(serve)
snapshot_app.command("pull")(pull)


def _key_and_ledger(key: Path, ledger: Path | None) -> tuple[SnapshotKey, Ledger]:
    from lazypv.snapshot.keys import SnapshotKey
    from lazypv.snapshot.ledger import Ledger

    opened = SnapshotKey.load(key)
    return opened, Ledger.beside(opened) if ledger is None else Ledger(opened, ledger)


def _say_override(file: str, key: SnapshotKey, ledger: Ledger) -> None:
    """Say on standard error what an override overrides, before it does."""
    from lazypv.snapshot.reader import SnapshotFile

    opened = SnapshotFile(file, key)
    opened.close()
    header = opened.header
    standing = ledger.standing(header.guest_id, header.sequence, opened.root, header.equals)
    if standing.refused and standing.known is not None:
        typer.echo(
            f"lazypv: overriding the ledger: it knows number {standing.known.sequence} of this guest, this is number"
            f" {header.sequence} ({standing.verdict})",
            err=True,
        )


def _tell_saved(command: str, saved: Saved, json: bool) -> None:
    if saved.overridden:
        typer.echo(f"lazypv: overriding the ledger: {saved.overridden}", err=True)
    line = f"{saved.target}: {saved.pages} rows, number {saved.sequence} of its guest, root {saved.root[:16]}"
    _tell(command, vars(saved), json, line)


def _tell(command: str, told: dict[str, Any], json: bool, text: str, remark: str = "") -> None:
    """One JSON object, or text for people; a remark goes to standard error."""
    if json:
        typer.echo(json_text.dumps({"schema": f"lazypv.snapshot-{command}/1", **told}))
        return
    if text:
        typer.echo(text)
    if remark:
        typer.echo(remark, err=True)
