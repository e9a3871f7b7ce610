"""The machine as the host sees it: storage that may refuse, frames it keeps books of, the Ultravisor's door.

Host accesses go by copy and meet the program interruptions of semantics 7; a guest's accesses go through its address
translation, as SIE does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import (
    FrameError,
    ModelError,
    ProgramInterruption,
    SizeError,
    UsageError,
)
from lazypv.machine import AbsoluteStorage, HostFrames
from lazypv.machine.storage import HUGE_PAGES
from lazypv.sizes import PAGE_SIZE, parse_pages
from lazypv.ultravisor import BulkAnswer, Ultravisor, vault
from lazypv.ultravisor.batches import BatchRun, destroy_batches
from lazypv.ultravisor.firmware import Firmware
from lazypv.ultravisor.interface import ICPT_VALIDITY, PGM_ADDRESSING
from lazypv.ultravisor.sealing import cipher_number
from lazypv_kernels import access, scan
from lazypv_kernels.layout import NO_OWNER, RC_BUSY, RC_DONE, RC_DTYPE
from lazypv_kernels.workers import CHUNK, Workers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from lazypv.machine import PageTable
    from lazypv_kernels.arrays import Table

UV_BASE_PAGES = 256
"""Storage that the Ultravisor takes at start-up; real sizes are not public."""
MAX_CONFIGURATIONS = 4095
_NO_SOURCE = np.zeros((1, PAGE_SIZE // 8), np.uint64)


@dataclass(frozen=True)
class GuestCpu:
    """What SIE is entered with: handles (0 for a guest that is not protected), and the guest's address space.

    Attributes
    ----------
    translation : uint32[m], or (uint64[s], uint32[m])
        Frame + 1 for each guest page, 0 where there is no mapping; or a page table of the other kind.
    """

    handle: int
    cpu_handle: int
    asce: int
    translation: Table


class Machine:
    """A modelled machine.

    Parameters
    ----------
    size : int or str
        Absolute storage, in bytes or as text such as ``"16GiB"``.
    contents : bool
        False for a machine of states only, for sizes beyond the computer's memory.
    threads : int
        Cores that one bulk operation may use.
    feature_bits : iterable of int
        Feature indications of the Ultravisor; bit 0 is off unless it is named (patch 11).
    uv_base_pages : int
        Frames that the Ultravisor takes for itself.
    slots : int
        Secure configurations that there can be at once.
    entropy : callable
        Where keys come from: the operating system. Only the explorer, which saves nothing, repeats them.
    cipher : str
        Of exported pages: ``"aegis256"``, or ``"aes256gcm"`` for people who must. Boot images and snapshots always have
        AEGIS-256.

    Raises
    ------
    SizeError
        Not a size, not in whole pages, or no larger than the Ultravisor's own storage and the host's prefix area.
    MemoryShortageError
        More than the computer has.
    CipherError
        No such cipher, or not on this computer.

    Warns
    -----
    SlowCipherWarning
        There are contents, and the CPU has no AES instructions.
    """

    def __init__(
        self,
        size: int | str,
        *,
        contents: bool = True,
        threads: int = 1,
        feature_bits: Iterable[int] = (),
        uv_base_pages: int = UV_BASE_PAGES,
        slots: int = MAX_CONFIGURATIONS,
        entropy: Callable[[int], bytes] = os.urandom,
        cipher: str = "aegis256",
    ) -> None:
        pages = parse_pages(size)
        _require_room(pages, uv_base_pages)
        workers = Workers(threads)
        storage = AbsoluteStorage.own(pages, workers) if contents else AbsoluteStorage.none(pages)
        self._assemble(storage, workers, frozenset(feature_bits), uv_base_pages, slots, entropy, cipher)

    @classmethod
    def attach(
        cls,
        buffer: Buffer,
        *,
        threads: int = 1,
        feature_bits: Iterable[int] = (),
        uv_base_pages: int = UV_BASE_PAGES,
        cipher: str = "aegis256",
    ) -> Machine:
        """A machine on somebody's writable memory, in place and without a copy.

        The buffer begins at a multiple of 64 bytes and has whole pages. Its owner can read all of it at any time: an
        attached buffer gives no secrecy from its owner.

        Raises
        ------
        SizeError
            The buffer cannot be used, or is too small.
        """
        storage = AbsoluteStorage.attach(buffer)
        return cls.on(storage, Workers(threads), feature_bits, uv_base_pages=uv_base_pages, cipher=cipher)

    @classmethod
    def on(
        cls,
        storage: AbsoluteStorage,
        workers: Workers,
        feature_bits: Iterable[int] = (),
        *,
        uv_base_pages: int = UV_BASE_PAGES,
        cipher: str = "aegis256",
    ) -> Machine:
        """A machine on storage that is there already, whatever is in it."""
        _require_room(storage.pages, uv_base_pages)
        machine = cls.__new__(cls)
        features = frozenset(feature_bits)
        machine._assemble(storage, workers, features, uv_base_pages, MAX_CONFIGURATIONS, os.urandom, cipher)
        return machine

    def _assemble(
        self,
        storage: AbsoluteStorage,
        workers: Workers,
        feature_bits: frozenset[int],
        uv_base_pages: int,
        slots: int,
        entropy: Callable[[int], bytes],
        cipher: str,
    ) -> None:
        number = cipher_number(cipher, storage.contents.shape[0] > 0)
        self.pages = storage.pages
        self.has_contents = storage.contents.shape[0] > 0
        self.workers = workers
        self.frames = HostFrames(storage.pages, segmented=not self.has_contents)
        self.ultravisor = Ultravisor(Firmware(storage, slots, feature_bits, entropy, number), workers)
        # Frame 0 is the host's own prefix area: never guest memory, never donated.
        prefix = self.frames.allocate_run(1)
        base = self.frames.allocate_run(uv_base_pages, start=storage.pages - uv_base_pages)
        if prefix is None or base is None or not self.ultravisor.init_uv(base).ok:
            raise ModelError("the Ultravisor did not get its storage although nobody else had any yet")
        self.reserved: NDArray[np.int64] = np.concatenate([prefix, base])

    @property
    def size(self) -> int:
        """Bytes of absolute storage."""
        return self.pages * PAGE_SIZE

    def close(self) -> None:
        """Join the threads of the machine."""
        self.workers.close()

    # --- the host's accesses -------------------------------------------------------------------------------------

    def load(self, address: int, length: int) -> bytes:
        """`length` bytes from absolute `address`, by copy.

        Raises
        ------
        ProgramInterruption
            0x05 outside the machine; 0x3d secure or donated storage.
        """
        frames, buffer = self._span(address, length)
        self._copy(frames, buffer, write=False)
        start = address % PAGE_SIZE
        return buffer.reshape(-1)[start : start + length].tobytes()

    def store(self, address: int, data: bytes) -> None:
        """Put `data` at absolute `address`.

        Raises
        ------
        ProgramInterruption
            0x05 outside the machine; 0x3d secure or donated storage, of which nothing was changed.
        """
        frames, buffer = self._span(address, len(data))
        # Whether all of it may be written is asked first, as an instruction of a CPU does.
        self._copy(frames, buffer, write=False)
        start = address % PAGE_SIZE
        end = start + len(data)
        buffer.reshape(-1)[start:end] = np.frombuffer(data, np.uint8)
        self._copy(frames, buffer, write=True, start=start, end=end)

    def _span(self, address: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        if address < 0 or length < 0 or address + length > self.size or not self.has_contents:
            raise ProgramInterruption(PGM_ADDRESSING, address)
        first, last = address // PAGE_SIZE, -(-(address + length) // PAGE_SIZE)
        frames = np.arange(first, last, dtype=np.int64)
        return frames, np.empty((frames.size, PAGE_SIZE), np.uint8)

    def _copy(
        self, frames: NDArray[np.int64], buffer: NDArray[np.uint8], write: bool, start: int = 0, end: int | None = None
    ) -> None:
        code = self._copy_bytes(frames, buffer, write, start, buffer.size if end is None else end)
        bad = np.flatnonzero(code != RC_DONE)
        if bad.size:
            raise ProgramInterruption(int(code[bad[0]]), int(frames[bad[0]]) * PAGE_SIZE)

    def copy_pages(self, frames: NDArray[np.int64], buffer: NDArray[np.uint8], *, write: bool) -> NDArray[np.uint16]:
        """Copy whole pages out of `frames` into `buffer` (uint8[k, 4096]) or, with `write`, into them; codes per page.

        A frame that is changing hands is waited for; one that may not be touched is left out, with code 0x3d. In a
        machine without contents the codes are all there is.

        Raises
        ------
        FrameError
            A frame lies outside the machine.
        """
        self._require_frames(frames)
        return self._copy_bytes(frames, buffer, write, 0, buffer.size)

    def _copy_bytes(
        self, frames: NDArray[np.int64], buffer: NDArray[np.uint8], write: bool, start: int, end: int
    ) -> NDArray[np.uint16]:
        """Copy bytes ``[start, end)`` of the whole; of the pages beside them, others may be writing the rest."""
        firmware = vault.firmware_of(self.ultravisor)

        def copy(at: NDArray[np.int64], todo: NDArray[np.int64], part: NDArray[np.uint8]) -> NDArray[np.uint16]:
            answer = np.empty(todo.size, RC_DTYPE)
            access.host_copy(
                firmware.storage.contents, firmware.state, firmware.owner, firmware.guest_page, firmware.directory,
                todo, part, write, at, start, end, 0, todo.size, answer,
            )  # fmt: skip
            return answer

        code = copy(np.arange(frames.size), frames, buffer)
        while not code.all():
            busy = np.flatnonzero(code == RC_BUSY)
            part = buffer[busy]
            code[busy] = copy(busy, frames[busy], part)
            if not write:
                buffer[busy] = part
        return code

    def clear_pages(self, frames: NDArray[np.int64]) -> BulkAnswer:
        """The host clears whole frames, as when it hands out fresh memory; 0x3d for those it may not touch.

        Raises
        ------
        FrameError
            A frame lies outside the machine.
        """
        self._require_frames(frames)
        firmware = vault.firmware_of(self.ultravisor)
        code = np.empty(frames.size, RC_DTYPE)
        counts = self.workers.add_up(
            frames.size,
            lambda first, last, into: access.host_clear(
                firmware.storage.words, firmware.state, firmware.owner, firmware.guest_page, firmware.directory, frames,
                first, last, code, into,
            ),
        )  # fmt: skip
        return BulkAnswer.counted(code, counts)

    def does_batches(self, batch: int) -> bool:
        """Whether :meth:`destroy_batches` does what single calls would, as fast: no fault is due, no core idle."""
        return not self.ultravisor.faulty and (self.workers.threads == 1 or batch <= CHUNK)

    def destroy_batches(
        self,
        pte: PageTable,
        at: int,
        end: int,
        batch: int,
        limit: int,
        *,
        clear_mark: bool,
        refused_stay: bool,
        stop: NDArray[np.uint8],
        gate: NDArray[np.uint8],
    ) -> BatchRun:
        """Take a reference on each frame of ``pte[at:end]``, destroy it, settle it: batch after batch, in one piece.

        Parameters
        ----------
        batch, limit : int
            Pages of a batch, and of all of them at most.
        clear_mark : bool
            Whether a destroyed page loses its mark (patch 02).
        refused_stay : bool
            Whether nothing more is to be done about a refused page; else the batch is left over.
        stop, gate : uint8[1]
            No further batch is begun once one of them is not 0.
        """
        run, owed = destroy_batches(
            self.ultravisor, self.frames.byte, pte.arrays, at + pte.first, end + pte.first, batch, limit, clear_mark,
            refused_stay, stop, gate,
        )  # fmt: skip
        self.frames.put(owed)
        return replace(run, at=run.at - pte.first)

    def give_back_free(self) -> int:
        """Give the operating system the memory of free frames, for guests gone for good: bytes, in whole huge pages.

        Whoever gets such a frame next pays for its first touch, 30 to 300 times what clearing it costs.

        Raises
        ------
        UsageError
            The machine's memory is somebody else's, or it has none.
        """
        storage = vault.firmware_of(self.ultravisor).storage
        if not storage.can_be_given_back:
            raise UsageError("only a machine's own memory can be given back to the operating system")
        given = 0
        for first, last in self.frames.take_free_blocks(HUGE_PAGES):
            storage.give_back(first, last)
            self.frames.put(np.arange(first, last, dtype=np.int64))
            given += last - first
        return given * PAGE_SIZE

    def _require_frames(self, frames: NDArray[np.int64]) -> None:
        bad = scan.first_outside(frames, self.pages)
        if bad >= 0:
            raise FrameError(f"frame {frames[bad]} lies outside a machine of {self.pages} frames")

    # --- a guest's accesses --------------------------------------------------------------------------------------

    def guest_access(
        self,
        cpu: GuestCpu,
        pages: NDArray[np.int64],
        operation: int,
        values: NDArray[np.uint64],
        source: NDArray[np.uint64] = _NO_SOURCE,
        rows: NDArray[np.int64] | None = None,
    ) -> BulkAnswer:
        """Many accesses of one guest CPU.

        Parameters
        ----------
        pages : int64[k]
            Guest pages, in the order of the accesses.
        operation : int
            ``lazypv_kernels.access.LOAD``, ``STORE_WORD`` or ``STORE_PAGE``.
        values : uint64[k]
            LOAD: written, a hash of the page. Else the word at the page's stamp offset.
        source, rows : uint64[r, 512], int64[k]
            STORE_PAGE: the pages to copy from, and which; a negative row, or none at all, is a page of zeroes.

        Returns
        -------
        BulkAnswer
            0x0001 done, 0 busy, 0x11, 0x3d, 0x3e or 0x3f the interruption that the host takes, 0x20 validity intercept:
            SIE was entered with handles or an address space that do not fit.

        Source: semantics 7, decision table; 3.6, SIE entry.
        """
        firmware = vault.firmware_of(self.ultravisor)
        code = np.empty(pages.size, RC_DTYPE)
        rows = np.full(pages.size, -1, np.int64) if rows is None else rows
        slot = NO_OWNER
        configuration = None
        if cpu.handle:
            configuration = firmware.admit(cpu.handle)
            known = firmware.cpus.get(cpu.cpu_handle)
            fits = known is not None and known[0] is configuration and known[1].operating
            if configuration is None or not fits or configuration.asce != cpu.asce:
                if configuration is not None:
                    firmware.dismiss(configuration)
                code[:] = ICPT_VALIDITY
                return BulkAnswer(code, 0, refused=pages.size)
            slot = configuration.slot
        try:
            counts = self.workers.add_up(
                pages.size,
                lambda first, last, into: access.guest_access(
                    firmware.storage.words, firmware.state, firmware.owner, firmware.guest_page, firmware.directory,
                    cpu.translation, slot, pages, operation, values, source, rows, first, last, code, into,
                ),
            )  # fmt: skip
            return BulkAnswer.counted(code, counts)
        finally:
            if configuration is not None:
                firmware.dismiss(configuration)


def _require_room(pages: int, uv_base_pages: int) -> None:
    if pages <= uv_base_pages + 1:
        raise SizeError(
            f"a machine of {pages} pages is too small: the Ultravisor takes {uv_base_pages} of them, the host's prefix "
            "area one, and nothing is left"
        )
