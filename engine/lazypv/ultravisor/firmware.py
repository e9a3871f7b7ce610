"""The firmware's own storage: what only the Ultravisor may look at."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypv_kernels import tracking
from lazypv_kernels.ciphers import AEGIS256
from lazypv_kernels.layout import (
    DIR_CPUS,
    DIR_EXPORTED,
    DIR_GENERATION,
    DIR_IN_SNAPSHOT,
    DIR_PAGES,
    DIR_RECORDS,
    DIR_TAGS,
    DIR_TRACK,
    DIR_WORDS,
    GUEST_PAGE_DTYPE,
    KEY_SIZE,
    OWNER_DTYPE,
    SCRATCH_SIZE,
    STATE_DTYPE,
    TAG_SIZE,
    TRACK_OPEN,
    TRACK_SHIFT,
    TRACK_WORDS,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.machine import AbsoluteStorage
    from lazypv.ultravisor.header import ImageHeader
    from lazypv.ultravisor.snapshots import Saving
    from lazypv_kernels.arrays import Table


def _address(array: NDArray[Any]) -> int:
    """Where its elements lie; an array's ``ctypes`` says the same, and takes three times as long."""
    address: int = array.__array_interface__["data"][0]
    return address


@dataclass(eq=False)
class SecureCpu:
    """A secure CPU and the frames donated for it."""

    handle: int
    number: int
    frames: NDArray[np.int64]
    operating: bool = False


@dataclass(eq=False)
class Configuration:
    """A secure configuration: one protected guest as the firmware sees it.

    Attributes
    ----------
    track : uint32[pages, 2]
        Generation of the last store, and of the last save, of each page; no rows where there are no contents.
    saved : dict of bytes to int
        Of each snapshot of this guest, by its root: the first generation whose stores it does not hold.
    restoring : list of (uint8[32], uint64[9])
        Row key and associated data of each file that pages are still restored from.
    saving : Saving or None
        The snapshot that is being saved now.
    """

    slot: int
    handle: int
    pages: int
    asce: int
    translation: Table
    records: NDArray[np.uint64] | NDArray[np.uint8]
    tags: NDArray[np.uint8]
    donated: NDArray[np.int64]
    table: NDArray[np.int64]
    track: NDArray[np.uint32]
    cpus: dict[int, SecureCpu] = field(default_factory=dict)
    image: ImageHeader | None = None
    unpacked: int = 0
    verified: bool = False
    dying: bool = False
    in_flight: int = 0
    cleaning: bool = False
    cleaned: int = 0
    generation: int = 1
    saved: dict[bytes, int] = field(default_factory=dict)
    restoring: list[tuple[NDArray[np.uint8], NDArray[np.uint64]]] = field(default_factory=list)
    saving: Saving | None = None

    def __repr__(self) -> str:
        return f"Configuration(handle={self.handle:#x}, pages={self.pages}, cpus={len(self.cpus)})"


class Firmware:
    """Arrays, keys and configurations of the Ultravisor of one machine.

    Attributes
    ----------
    state : uint8[n]
        Page state and claim of each frame.
    owner : uint16[n]
        Slot of the configuration that owns it, 0 for none.
    guest_page : uint32[n]
        Guest page that it backs, while it is owned.
    directory : uint64[slots * 4]
        Where kernels find a configuration's records, tags, size and number of CPUs.
    keys : uint8[slots, 32]
        Sealing key of each configuration, fresh from the operating system at its creation.
    cipher : int
        Of exported pages: ``lazypv_kernels.ciphers.AEGIS256`` or ``AES256GCM``.
    history : dict of int to (int, int)
        Of each configuration that is gone: how many of its pages were exported, how many its destruction cleaned.
    """

    def __init__(
        self,
        storage: AbsoluteStorage,
        slots: int,
        feature_bits: frozenset[int],
        entropy: Callable[[int], bytes] = os.urandom,
        cipher: int = AEGIS256,
    ) -> None:
        pages = storage.pages
        self.cipher = cipher
        self._entropy = entropy
        self.storage = storage
        self.feature_bits = feature_bits
        self.state: NDArray[np.uint8] = np.zeros(pages, STATE_DTYPE)
        self.owner: NDArray[np.uint16] = np.zeros(pages, OWNER_DTYPE)
        self.guest_page: NDArray[np.uint32] = np.zeros(pages, GUEST_PAGE_DTYPE)
        self.directory: NDArray[np.uint64] = np.zeros((slots + 1) * DIR_WORDS, np.uint64)
        self.keys: NDArray[np.uint8] = np.zeros((slots + 1, KEY_SIZE), np.uint8)
        self.slots = slots
        self.lock = threading.RLock()
        self.configurations: dict[int, Configuration] = {}
        self.cpus: dict[int, tuple[Configuration, SecureCpu]] = {}
        self.history: dict[int, tuple[int, int]] = {}
        self._generation = 0
        self._scratch = threading.local()
        self._all_scratch: list[NDArray[np.uint8]] = []

    @property
    def sealing(self) -> bool:
        """Whether there are contents to seal, hence versions and tags."""
        return bool(self.storage.contents.shape[0] > 0)

    def scratch(self) -> NDArray[np.uint8]:
        """This thread's two scratch pages: uint8[2 * SCRATCH_SIZE]."""
        found = getattr(self._scratch, "pages", None)
        if found is None:
            found = self._scratch.pages = np.zeros(2 * SCRATCH_SIZE, np.uint8)
            with self.lock:
                self._all_scratch.append(found)
        scratch: NDArray[np.uint8] = found
        return scratch

    def scratch_pages(self) -> list[NDArray[np.uint8]]:
        """Scratch of all threads, for the search for remains."""
        with self.lock:
            return list(self._all_scratch)

    def next_handle(self, slot: int) -> int:
        """A 64-bit token that no earlier object of this machine had."""
        self._generation += 1
        return self._generation << 16 | slot

    def free_slot(self) -> int | None:
        """A slot without configuration, or None."""
        taken = {configuration.slot for configuration in self.configurations.values()}
        return next((slot for slot in range(1, self.slots + 1) if slot not in taken), None)

    def enter(self, configuration: Configuration) -> None:
        """Put a new configuration into the directory, under a fresh key."""
        row = configuration.slot * DIR_WORDS
        self.directory[row + DIR_RECORDS] = _address(configuration.records)
        self.directory[row + DIR_TAGS] = _address(configuration.tags)
        self.directory[row + DIR_PAGES] = configuration.pages
        self.directory[row + DIR_TRACK] = _address(configuration.track) if configuration.track.size else 0
        self.set_mode(configuration, TRACK_OPEN)
        self.keys[configuration.slot] = np.frombuffer(self._entropy(KEY_SIZE), np.uint8)
        self.configurations[configuration.handle] = configuration

    def set_mode(self, configuration: Configuration, mode: int) -> None:
        """What stores may do from now on: all, change what has been saved, or nothing."""
        word = configuration.generation << TRACK_SHIFT | mode
        tracking.publish_word(self.directory, configuration.slot * DIR_WORDS + DIR_GENERATION, word)

    def set_in_snapshot(self, configuration: Configuration, some: bool) -> None:
        """Whether pages that were never imported may still be in a snapshot."""
        tracking.publish_word(self.directory, configuration.slot * DIR_WORDS + DIR_IN_SNAPSHOT, int(some))

    def remove(self, configuration: Configuration) -> None:
        """Forget a configuration, its key and its records."""
        row = configuration.slot * DIR_WORDS
        self.history[configuration.handle] = (self.exported(configuration), configuration.cleaned)
        self.directory[row : row + DIR_WORDS] = 0
        self.keys[configuration.slot] = 0
        del self.configurations[configuration.handle]

    def admit(self, handle: int) -> Configuration | None:
        """Find a configuration for a call that may make pages its own: it is not destroyed meanwhile."""
        with self.lock:
            found = self.configurations.get(handle)
            if found is None or found.dying:
                return None
            found.in_flight += 1
            return found

    def dismiss(self, configuration: Configuration) -> None:
        """End a call begun with :meth:`admit`."""
        with self.lock:
            configuration.in_flight -= 1

    def exported(self, configuration: Configuration) -> int:
        """Pages that left the configuration by export, or with their ownership."""
        return int(self.directory[configuration.slot * DIR_WORDS + DIR_EXPORTED])

    def count_cpus(self, configuration: Configuration) -> None:
        """Tell the kernels how many CPUs a configuration has: pages cannot be destroyed while there are any."""
        self.directory[configuration.slot * DIR_WORDS + DIR_CPUS] = len(configuration.cpus)

    def new_track(self, pages: int) -> NDArray[np.uint32]:
        """Where the stores of a guest of `pages` are noted: touched, and thus paid for, only where it stores."""
        return np.zeros((pages if self.sealing else 0, TRACK_WORDS), np.uint32)

    def new_records(self, pages: int) -> tuple[NDArray[np.uint64] | NDArray[np.uint8], NDArray[np.uint8]]:
        """Records and tags for a guest of `pages`: touched, and thus paid for, only where pages are exported."""
        if self.sealing:
            return np.zeros(pages, np.uint64), np.zeros((pages, TAG_SIZE), np.uint8)
        return np.zeros(pages, np.uint8), np.zeros((0, TAG_SIZE), np.uint8)
