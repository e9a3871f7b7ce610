"""Calls through which the pages of a configuration come back from a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypv.ultravisor import vault
from lazypv.ultravisor.door import Door
from lazypv.ultravisor.interface import UVC
from lazypv_kernels import snapshots
from lazypv_kernels.layout import RC_DONE, RC_DTYPE, SCRATCH_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.ultravisor.snapshots import ConfigurationState


class RestoreCalls(Door):
    """Restore: begin, restore rows or batches, end. Calls of the model, not of the real interface."""

    def begin_restore(
        self,
        handle: int,
        state: ConfigurationState,
        root: bytes,
        files: list[tuple[NDArray[np.uint8], NDArray[np.uint64]]],
    ) -> bool:
        """The fresh configuration `handle` continues as the one that was saved, under a key of its own.

        Until :meth:`end_restore` no page comes in as a page of zeroes that was never imported: it may be in a snapshot.
        False if there is no such configuration, it is another size, or it has had pages.

        Parameters
        ----------
        root : bytes
            Root of the snapshot; the next one can build on it.
        files : list of (uint8[32], uint64[9])
            Row key and associated data of each file that rows will come from.
        """
        firmware = vault.firmware_of(self)
        with firmware.lock:
            configuration = self._configuration(handle)
            if configuration is None or configuration.pages != state.pages or configuration.unpacked:
                return False
            configuration.verified = state.verified
            configuration.saved[root] = configuration.generation
            configuration.restoring = files
            firmware.set_in_snapshot(configuration, True)
        return True

    def restore_rows(
        self,
        handle: int,
        file: int,
        index: int,
        batch: NDArray[np.uint8],
        at: NDArray[np.int64],
        rows: NDArray[np.int64],
        *,
        whole: bool,
    ) -> tuple[NDArray[np.uint16], int]:
        """Verify `rows` of a private copy of batch `index` and make them the guest's pages: all of them, or none.

        Parameters
        ----------
        batch, at : uint8[n], int64[6]
            Its columns were verified; where these are.
        rows : int64[k]
            Ascending.
        whole : bool
            Verify all other rows first; without, only `rows` need have been read.

        Returns
        -------
        rc : uint16[k]
            0x0001 done, 0 busy, 0x0f10 not mapped, not free or in already, 0x0f12 altered; one code for all. With
            `whole` the other rows are plain text then: who is told "busy" asks again without.
        bad : int
            The row that is not what was sealed, or -1.
        """
        rc = np.full(rows.size, snapshots.RC_TORN, RC_DTYPE)
        with self._restoring(handle, file) as (into, key, words):
            if not into:
                return rc, -1
            words[5] = index
            kernel: Any = snapshots.restore_rows
            bad = kernel(*into, batch, at, rows, whole, key, words, np.zeros(2 * SCRATCH_SIZE, np.uint8), rc)
        self.count(UVC.CONV_TO_SEC_STOR, rows.size, done=int(np.count_nonzero(rc == RC_DONE)))
        return rc, bad

    def restore_batches(
        self,
        handle: int,
        file: int,
        first: int,
        reader: tuple[int, int],
        offset: int,
        batch: NDArray[np.uint8],
        packed: NDArray[np.uint8],
        at: NDArray[np.int64],
        rows: NDArray[np.int64],
        bounds: NDArray[np.int64],
    ) -> tuple[NDArray[np.uint16], int, int]:
        """Read batches, verify all of each and make rows of it the guest's pages: all of a batch, or none.

        Parameters
        ----------
        first : int
            Number of the first batch; the others follow it.
        reader, offset
            Address and handle of what reads (:mod:`lazypv_kernels.reading`), and where the first batch begins.
        batch : uint8[n]
            Room for a private copy of one.
        packed, at : uint8[k, m], int64[6]
            What was verified of them, and where columns are in a batch.
        rows, bounds : int64[r], int64[k + 1]
            The rows of batch b, ascending, are ``rows[bounds[b]:bounds[b + 1]]``.

        Returns
        -------
        rc : uint16[r]
            0x0001 done, 0x0f10 not mapped, not free or in already, 0x0f12 altered, or behind what is.
        bad, row : int
            Which batch, and which row of it, is not what was sealed; row -1 if it could not be read; or -1 and -1.
        """
        rc = np.full(rows.size, snapshots.RC_TORN, RC_DTYPE)
        with self._restoring(handle, file) as (into, key, words):
            if not into:
                return rc, -1, -1
            kernel: Any = snapshots.restore_batches
            bad, row = kernel(
                *into, *reader, offset, batch, packed, at, rows, bounds, first, key, words,
                np.zeros(2 * SCRATCH_SIZE, np.uint8), rc,
            )  # fmt: skip
        self.count(UVC.CONV_TO_SEC_STOR, rows.size, done=int(np.count_nonzero(rc == RC_DONE)))
        return rc, bad, row

    @contextmanager
    def _restoring(self, handle: int, file: int) -> Iterator[tuple[Any, NDArray[np.uint8], NDArray[np.uint64]]]:
        """Arrays of the restore's kernels, key and associated data of `file`; no arrays where nothing is restored."""
        firmware = vault.firmware_of(self)
        configuration = firmware.admit(handle)
        nothing = (), np.empty(0, np.uint8), np.empty(0, np.uint64)
        if configuration is None:
            yield nothing
            return
        try:
            files = configuration.restoring
            if file >= len(files):  # the restore has ended meanwhile
                yield nothing
                return
            key, words = files[file]
            into = (
                firmware.storage.contents, firmware.state, firmware.owner, firmware.guest_page, firmware.directory,
                configuration.slot, configuration.translation,
            )  # fmt: skip
            yield into, key, words.copy()
        finally:
            firmware.dismiss(configuration)

    def end_restore(self, handle: int) -> None:
        """Every page that the snapshot holds is in: others may come in as zero pages, and the file's keys go."""
        firmware = vault.firmware_of(self)
        with firmware.lock:
            configuration = self._configuration(handle)
            if configuration is not None:
                firmware.set_in_snapshot(configuration, False)
                configuration.restoring = []
