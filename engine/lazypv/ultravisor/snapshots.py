"""Calls through which the state and the pages of a configuration leave for a snapshot, and come back.

Keys belong to the process that models the firmware, which is trusted; host and store see sealed rows only. What is
copied aside while a snapshot is being saved is plain text, so it is kept here, behind the wall.
"""

from __future__ import annotations

import base64
import json
import threading
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nacl.bindings
import nacl.exceptions
import numpy as np

from lazypv.ultravisor import vault
from lazypv.ultravisor.restores import RestoreCalls
from lazypv_kernels import snapshots, tracking
from lazypv_kernels.layout import (
    NONCE_SIZE,
    PAGE_SIZE,
    RC_BUSY,
    RC_DONE,
    RC_DTYPE,
    SCRATCH_SIZE,
    TRACK_CLOSED,
    TRACK_OPEN,
    TRACK_SAVING,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.ultravisor.firmware import Configuration, Firmware

    Pages = NDArray[np.int64]

_STATE_NONCE = (5).to_bytes(NONCE_SIZE, "little")


@dataclass(frozen=True)
class ConfigurationState:
    """What of a configuration is not in its pages.

    Attributes
    ----------
    pages, cpus : int
        Guest pages, and how many secure CPUs.
    verified : bool
        The boot image was verified: CPUs may run.
    working_set : tuple of int
        Guest pages in the order in which the guest will probably want them.
    shared : tuple of int
        Guest pages that the guest knows that it shares, ascending.
    """

    pages: int
    cpus: int
    verified: bool = True
    working_set: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()

    def seal(self, key: bytes, context: bytes) -> bytes:
        """For the snapshot with this key (used once), bound to `context`."""
        lists = [_packed(self.working_set), _packed(self.shared)]
        text = json.dumps([self.pages, self.cpus, self.verified, *lists]).encode()
        return nacl.bindings.crypto_aead_aegis256_encrypt(text, context, _STATE_NONCE, key)

    @classmethod
    def open(cls, sealed: bytes, key: bytes, context: bytes) -> ConfigurationState | None:
        """What :meth:`seal` sealed; None if it is not that."""
        try:
            text = nacl.bindings.crypto_aead_aegis256_decrypt(sealed, context, _STATE_NONCE, key)
        except (nacl.exceptions.CryptoError, ValueError):
            return None
        pages, cpus, verified, working_set, shared = json.loads(text)
        return cls(pages, cpus, verified, _unpacked(working_set), _unpacked(shared))


def _packed(pages: tuple[int, ...]) -> str:
    """Differences, compressed: most neighbours are."""
    differences = np.diff(np.array((0, *pages), "<i8")).tobytes()
    return base64.b64encode(zlib.compress(differences)).decode()


def _unpacked(text: str) -> tuple[int, ...]:
    differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8")
    return tuple(np.cumsum(differences).tolist())


class Saving:
    """A snapshot that is being saved: what was copied aside, so that the guest could go on writing.

    Attributes
    ----------
    pool : uint8[r, 4096]
        Plain pages; row of page p is ``of[p] - 1``.
    kind : uint8[r]
        Plain or sealed.
    of : uint32[pages]
    """

    def __init__(self, pages: int, room: int) -> None:
        self.pool: NDArray[np.uint8] = np.zeros((room, PAGE_SIZE), np.uint8)
        self.kind: NDArray[np.uint8] = np.zeros(room, np.uint8)
        self.of: NDArray[np.uint32] = np.zeros(pages, np.uint32)
        self._free: NDArray[np.int64] = np.arange(room, dtype=np.int64)
        self._lock = threading.Lock()
        self.most = 0

    def take(self, want: int) -> NDArray[np.int64]:
        """At most `want` free rows."""
        with self._lock:
            taken, self._free = self._free[:want], self._free[want:]
            self.most = max(self.most, self.pool.shape[0] - self._free.size)
            return taken

    def give_back(self, rows: NDArray[np.int64]) -> None:
        """Rows that are not needed any more: no plain text is left in them."""
        self.pool[rows] = 0
        with self._lock:
            self._free = np.concatenate([self._free, rows])

    def clear(self) -> None:
        """No plain text is left in rows that were not given back; to clear all would touch memory that nobody used."""
        used = np.setdiff1d(np.arange(self.pool.shape[0], dtype=np.int64), self._free)
        self.pool[used] = 0

    @property
    def has_room(self) -> bool:
        """Whether a page can be copied aside now."""
        return self._free.size > 0


class SnapshotCalls(RestoreCalls):
    """Save: begin, seal rows, end. Calls of the model, not of the real interface."""

    def configuration_state(self, handle: int) -> ConfigurationState | None:
        """What of the configuration is not in its pages; None if there is no such configuration, or no contents."""
        configuration = self._configuration(handle)
        if configuration is None or not vault.firmware_of(self).sealing:
            return None
        return ConfigurationState(configuration.pages, len(configuration.cpus), configuration.verified)

    # --- save ----------------------------------------------------------------------------------------------------

    def begin_snapshot(self, handle: int, parent: bytes | None, room: int) -> Pages | None:
        """From this moment on stores wait for the save of their page, or for its copy.

        Parameters
        ----------
        parent : bytes or None
            Root of the snapshot of this guest on which the new one builds; None for all pages.
        room : int
            Pages that may be copied aside at a time.

        Returns
        -------
        int64[k] or None
            Guest pages that the snapshot has to hold, ascending; None if there is no such configuration, another save
            is under way, or `parent` is no snapshot of it.
        """
        firmware = vault.firmware_of(self)
        configuration = firmware.admit(handle)
        if configuration is None:
            return None
        with firmware.lock:
            unknown = parent is not None and parent not in configuration.saved
            if configuration.saving is not None or unknown:
                configuration.in_flight -= 1
                return None
            configuration.saving = Saving(configuration.pages, room)
            configuration.generation += 1
            firmware.set_mode(configuration, TRACK_CLOSED)
            pages = np.empty(configuration.pages, np.int64)
            since = 0 if parent is None else configuration.saved[parent]
            records = configuration.records.view(np.uint64)
            count = tracking.choose_pages(configuration.track, records, since, configuration.generation, pages)
            firmware.set_mode(configuration, TRACK_SAVING)
        return pages[:count].copy()

    def seal_rows(
        self,
        handle: int,
        pages: Pages,
        key: NDArray[np.uint8],
        ad: NDArray[np.uint64],
        version: int,
        batch: NDArray[np.uint8],
        at: NDArray[np.int64],
    ) -> NDArray[np.uint16]:
        """Seal guest `pages` as the rows of one batch of the snapshot that was begun.

        Parameters
        ----------
        key, ad : uint8[32], uint64[9]
            Row key and associated data of the file and batch.
        batch, at : uint8[n], int64[6]
            Where the rows go, and where in it the columns are.

        Returns
        -------
        uint16[k]
            0x0001 done, else the page is not what its record says. Who touches a page makes this call wait.
        """
        firmware = vault.firmware_of(self)
        configuration, saving = self._being_saved(firmware, handle)
        code = np.full(pages.size, RC_BUSY, RC_DTYPE)
        scratch = np.zeros(4 * SCRATCH_SIZE, np.uint8)
        while snapshots.seal_rows(
            firmware.storage.contents, firmware.state, firmware.owner, firmware.guest_page, firmware.directory,
            firmware.keys, firmware.cipher, configuration.slot, configuration.translation, configuration.track,
            configuration.generation, saving.pool, saving.kind, saving.of, key, ad, version, pages, batch, at, scratch,
            code,
        ):  # fmt: skip
            pass
        self._forget_copies(saving, pages)
        return code

    @staticmethod
    def _forget_copies(saving: Saving, pages: Pages) -> None:
        copied = pages[saving.of[pages] != 0]
        if copied.size:
            rows = saving.of[copied].astype(np.int64) - 1
            saving.of[copied] = 0
            saving.give_back(rows)

    def copy_aside(self, handle: int, pages: Pages) -> NDArray[np.uint16]:
        """Keep `pages`, which the guest is about to change, as they are now; codes per page, 0 where there is no room.

        Where nothing is being saved there is nothing to keep.
        """
        firmware = vault.firmware_of(self)
        code = np.full(pages.size, RC_DONE, RC_DTYPE)
        with firmware.lock:
            configuration = self._configuration(handle)
            saving = configuration.saving if configuration is not None else None
            if configuration is None or saving is None:
                return code
            configuration.in_flight += 1
        try:
            rows = saving.take(pages.size)
            code[rows.size :] = RC_BUSY
            fit = pages[: rows.size]
            tracking.copy_aside(
                firmware.storage.contents, firmware.state, firmware.owner, firmware.guest_page, firmware.directory,
                configuration.slot, configuration.translation, configuration.track, configuration.generation, fit, rows,
                saving.pool, saving.kind, saving.of, code[: rows.size],
            )  # fmt: skip
            saving.give_back(rows[code[: rows.size] != tracking.RC_COPIED])
            return code
        finally:
            firmware.dismiss(configuration)

    def has_room_aside(self, handle: int) -> bool:
        """Whether a page could be copied aside now, or nothing is being saved."""
        configuration = self._configuration(handle)
        return configuration is None or configuration.saving is None or configuration.saving.has_room

    def end_snapshot(self, handle: int, root: bytes | None) -> int:
        """Nothing is being saved any more; with `root` the snapshot is one that others can build on.

        Gives back the most pages that were aside at a time.
        """
        firmware = vault.firmware_of(self)
        with firmware.lock:
            configuration, saving = self._being_saved(firmware, handle)
            firmware.set_mode(configuration, TRACK_OPEN)
            if root is not None:
                configuration.saved[root] = configuration.generation
            configuration.saving = None
            configuration.in_flight -= 1
        saving.clear()
        return saving.most

    @staticmethod
    def _being_saved(firmware: Firmware, handle: int) -> tuple[Configuration, Saving]:
        configuration = firmware.configurations[handle]
        assert configuration.saving is not None
        return configuration, configuration.saving
