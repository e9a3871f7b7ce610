"""How fast a protected guest is saved and restored, and how soon a lazily restored one has its first page.

Limits do what cannot be left out, on the same threads and the same store: seal every page and write it, or read every
page and unseal it, fsync included. On a disk both wait for it most of the time, so each is measured in memory too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lazypv.errors import ModelError
from lazypv.scenario import VM, Host
from lazypv.sizes import PAGE_SIZE
from lazypv.snapshot.keys import SnapshotKey
from lazypv.snapshot.reader import SnapshotFile, private_copy
from lazypv.snapshot.writer import save_threads
from lazypv.ultravisor import vault
from lazypv_bench.harness import Work, benchmark, seconds_of
from lazypv_bench.rig import Rig, frames_of, free_contents
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import KEY_SIZE, KIND_SEALED, NONCE_SIZE, SCRATCH_SIZE, TAG_SIZE
from lazypv_kernels.native import address_of, aegis256_decrypt, aegis256_encrypt
from lazypv_kernels.rows import AD_WORDS, DOMAIN_SNAPSHOT, copy_words
from lazypv_kernels.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEMORY_FOLDER: Final = Path("/dev/shm")
BATCH: Final = 256
DIRTY_SHARE: Final = 100
"""One page in so many is dirty."""


def _folder(rig: Rig, memory: bool) -> Path:
    """A folder for the files of one benchmark; in memory where there is such a place."""
    where = MEMORY_FOLDER if memory and MEMORY_FOLDER.is_dir() else None
    return Path(rig.closing.enter_context(tempfile.TemporaryDirectory(prefix="lazypv-bench-", dir=where)))


# --- limits ------------------------------------------------------------------------------------------------------


def seal_and_write(rig: Rig, subject: Work) -> Work:
    """The same pages sealed by libsodium's AEGIS-256 and written with pwrite, 1 MiB at a time, then fsync."""
    contents = _contents(subject)
    path = _beside(rig, subject, "bare")
    key, workers = _key(), rig.workers(subject.threads)

    def run() -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def some(first: int, last: int) -> None:
            out = np.empty(BATCH * PAGE_SIZE + SCRATCH_SIZE, np.uint8)
            nonce = np.zeros(NONCE_SIZE // 8, np.uint64)
            for row in range(first, last, BATCH):
                end = min(row + BATCH, last)
                _seal_some(contents, row, end, key, nonce, out)
                os.pwrite(handle, out.data[: (end - row) * PAGE_SIZE], row * PAGE_SIZE)

        _in_pieces(workers, contents.shape[0], some)
        os.fsync(handle)
        os.close(handle)

    return Work(run=run, bytes=contents.nbytes, threads=subject.threads, finish=lambda: os.unlink(path))


def read_and_unseal(rig: Rig, subject: Work) -> Work:
    """The batches of the very file read with pread, one by one, and each row unsealed into the frames the guest gets.

    The same file, since where a store in memory has its pages decides how fast they are read: of two copies one took
    twice as long as the other. And the same place for the private copy, by which alone the kernel takes from three
    quarters to one and a half times as long.
    """
    contents = _contents(subject)
    file = SnapshotFile(_beside(rig, subject, "guest.arrow"), _KEPT[id(rig)].key)
    rig.closing.callback(file.close)
    workers, positions, handle = rig.workers(subject.threads), file.layout, file.reader.arguments[1]
    words, keys = file.keys.row_words(), file.keys.rows
    words[7], words[8] = KIND_SEALED, file.header.sequence

    def run() -> None:
        def some(first: int, last: int) -> None:
            buffer, once = private_copy(positions.stride), np.empty((BATCH, AD_WORDS + NONCE_SIZE // 8), np.uint64)
            for row in range(first, last, BATCH):
                at = file.columns(row // BATCH)
                os.preadv(handle, [buffer.data[: at[5]]], positions.offset(row // BATCH))
                if not _open_batch(contents, row, min(row + BATCH, last), keys, words, once, buffer, at):
                    raise ModelError("the bare loop cannot unseal what was saved")

        _in_pieces(workers, contents.shape[0], some)

    return Work(run=run, bytes=contents.nbytes, threads=subject.threads)


def full_save(rig: Rig, subject: Work) -> Work:
    """The whole guest, saved anew."""
    del subject
    return _KEPT[id(rig)].full()


def bare_open_and_read(rig: Rig, subject: Work) -> Work:
    """The snapshot opened, and one batch of it read."""
    path = _beside(rig, subject, "guest.arrow")

    def run() -> None:
        handle = os.open(path, os.O_RDONLY)
        os.pread(handle, BATCH * PAGE_SIZE, 0)
        os.close(handle)

    return Work(run=run)


def _contents(subject: Work) -> NDArray[np.uint8]:
    if subject.contents is None:
        raise ModelError("the subject has not said which bytes it goes over")
    return subject.contents


def _key() -> NDArray[np.uint8]:
    return np.frombuffer(os.urandom(KEY_SIZE), np.uint8).copy()


def _in_pieces(workers: Workers, rows: int, some: Callable[[int, int], None]) -> None:
    workers.run(rows, some, chunk=4 * BATCH)


# --- kernels of the limits -----------------------------------------------------------------------------------------


def _seal(contents: Any, first: int, last: int, key: Any, nonce: Any, out: Any) -> None:
    for row in range(first, last):
        nonce[0] = row
        aegis256_encrypt(
            address_of(out, (row - first) * PAGE_SIZE), 0, address_of(contents, row), PAGE_SIZE, 0, 0, 0,
            address_of(nonce, 0), address_of(key, 0),
        )  # fmt: skip


def _open(contents: Any, first: int, last: int, key: Any, words: Any, once: Any, buffer: Any, at: Any) -> bool:
    """once : uint64[rows, 13], associated data and nonce of each row, written."""
    for i in range(last - first):
        for k in range(AD_WORDS):
            once[i, k] = words[k]
        once[i, 5], once[i, 6] = first // BATCH, first + i
        once[i, 9], once[i, 10], once[i, 11], once[i, 12] = first + i, 0, DOMAIN_SNAPSHOT, 0
    good = True
    kept = np.empty(TAG_SIZE, np.uint8)
    for i in range(last - first):
        # The tag has to stand behind the text, which is where the next row's begins.
        spill, tag = address_of(buffer, at[0] + PAGE_SIZE * (i + 1)), address_of(buffer, at[3] + TAG_SIZE * i)
        copy_words(address_of(kept, 0), spill, TAG_SIZE // 8)
        copy_words(spill, tag, TAG_SIZE // 8)
        good &= aegis256_decrypt(
            address_of(contents, first + i), 0, 0, address_of(buffer, at[0] + PAGE_SIZE * i), SCRATCH_SIZE,
            address_of(once, i), AD_WORDS * 8, address_of(once, i) + np.uint64(AD_WORDS * 8), address_of(key, 0),
        ) == 0  # fmt: skip
        copy_words(spill, address_of(kept, 0), TAG_SIZE // 8)
    return good


_seal_some = kernel(_seal)
_open_batch = kernel(_open)


# --- subjects ----------------------------------------------------------------------------------------------------


class _Guest:
    """A protected guest with all of its memory, and a folder for its snapshots."""

    def __init__(self, rig: Rig, memory: bool) -> None:
        self.folder = _folder(rig, memory)
        self.threads = save_threads()
        machine = rig.make_machine(rig.size, threads=self.threads)
        self.host = Host(machine)
        rig.closing.callback(self.host.close)
        self.vm: VM = self.host.create_vm(rig.size, vcpus=1, image=rig.image(rig.size))
        self.vm.protect()
        self.vm.populate()
        self.key = SnapshotKey.random()
        self.path = self.folder / "guest.arrow"
        _FOLDERS[id(rig)] = self.folder
        _KEPT[id(rig)] = self
        rig.closing.callback(_FOLDERS.pop, id(rig))
        rig.closing.callback(_KEPT.pop, id(rig))

    def save(self) -> None:
        """All of it."""
        self.vm.snapshot(self.path, key=self.key, threads=self.threads)

    def full(self) -> Work:
        """A full save, as something to compare with."""
        path = self.folder / "full.arrow"

        def run() -> None:
            self.vm.snapshot(path, key=self.key, threads=self.threads)

        return Work(run=run, bytes=self.vm.pages * PAGE_SIZE, threads=self.threads, finish=path.unlink)

    def contents(self) -> NDArray[np.uint8]:
        """As many bytes as it has, from its first frame on: a limit need not go around the few that are not its."""
        first = int(frames_of(self.vm).min())
        return vault.firmware_of(self.host.machine.ultravisor).storage.contents[first : first + self.vm.pages]


_FOLDERS: dict[int, Path] = {}
_KEPT: dict[int, _Guest] = {}


def _beside(rig: Rig, subject: Work, name: str) -> Path:
    del subject
    return _FOLDERS[id(rig)] / name


def _save(rig: Rig, memory: bool) -> Work:
    guest = _Guest(rig, memory)
    return Work(
        run=guest.save,
        bytes=guest.vm.pages * PAGE_SIZE,
        contents=guest.contents(),
        threads=guest.threads,
        finish=guest.path.unlink,
    )


def _restore(rig: Rig, memory: bool) -> Work:
    guest = _Guest(rig, memory)
    guest.save()
    guest.vm.shutdown()
    guest.host.drain()
    restored: list[VM] = []

    def run() -> None:
        restored.append(guest.host.restore(guest.path, key=guest.key))

    def finish() -> None:
        vm = restored.pop()
        if vm.kernel_vm.gmap.pte.count() != vm.pages:
            raise ModelError("the guest that was restored has not all of its pages")
        vm.shutdown()
        guest.host.drain()

    return Work(
        run=run,
        bytes=guest.vm.pages * PAGE_SIZE,
        contents=free_contents(guest.host.machine, guest.vm.pages),
        threads=guest.threads,
        finish=finish,
    )


@benchmark("snapshot.save", limit=seal_and_write, bar=0.8)
def snapshot_save(rig: Rig) -> Work:
    """A protected guest saved to a file, fsync and rename included."""
    return _save(rig, memory=False)


@benchmark("snapshot.save.in-memory", limit=seal_and_write, bar=0.8)
def snapshot_save_in_memory(rig: Rig) -> Work:
    """The same, to a store in memory."""
    return _save(rig, memory=True)


@benchmark("snapshot.restore", limit=read_and_unseal, bar=0.8)
def snapshot_restore(rig: Rig) -> Work:
    """A protected guest restored eagerly from a file: every row verified before it runs."""
    return _restore(rig, memory=False)


@benchmark("snapshot.restore.in-memory", limit=read_and_unseal, bar=0.8)
def snapshot_restore_in_memory(rig: Rig) -> Work:
    """The same, from a store in memory."""
    return _restore(rig, memory=True)


@benchmark("snapshot.dirty", limit=full_save, better="lower", bar=0.05, unit="ms")
def snapshot_dirty(rig: Rig) -> Work:
    """An incremental save of a guest with one page in a hundred dirty, over the time of a full one."""
    guest = _Guest(rig, memory=True)
    guest.save()
    path = guest.folder / "child.arrow"
    some = np.arange(0, guest.vm.pages, DIRTY_SHARE, dtype=np.int64)
    content = np.random.default_rng(0).integers(0, 256, (1, PAGE_SIZE)).astype(np.uint8)

    def run() -> None:
        saved = guest.vm.snapshot(path, key=guest.key, parent=guest.path, threads=guest.threads)
        if saved.pages != some.size:
            raise ModelError(f"{saved.pages} pages were saved, but {some.size} are dirty")

    guest.vm.write_pages(some, np.repeat(content, some.size, axis=0))
    return Work(run=run, bytes=guest.vm.pages * PAGE_SIZE, threads=guest.threads, finish=path.unlink)


@benchmark("snapshot.first-page", limit=bare_open_and_read, better="lower", unit="ms", share=2)
def snapshot_first_page(rig: Rig) -> Work:
    """From opening a large snapshot lazily to the guest's first page read, in a process that did so before."""
    guest = _Guest(rig, memory=False)
    guest.save()
    guest.vm.shutdown()
    guest.host.drain()
    restored: list[VM] = []

    def run() -> None:
        vm = guest.host.restore(guest.path, key=guest.key, lazy=True, prefetch=False)
        restored.append(vm)
        vm.read(np.zeros(1, np.int64))

    def finish() -> None:
        restored.pop().shutdown()
        guest.host.drain()

    work = Work(run=run, finish=finish)
    seconds_of(work)
    return work
