"""The search for remains: is anything of an old run still where host or another guest could read it?

Every run stamps the pages that it owns and does not share; their contents are hashed at its last instruction.
Afterwards all frames are searched for old stamps and old contents, asking neither state nor owner, and so are the
engine's own buffers. A hit is forgiven only where the host's access is refused and the pages are known to be leaked.

Source: design, "Remanence"; invariant 30.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypv.invariants.violation import Violation
from lazypv.ultravisor import vault
from lazypv_kernels import scan
from lazypv_kernels.layout import PAGE_SIZE, RC_DONE, SCRATCH_SIZE
from lazypv_kernels.workers import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypv.hardware import Machine

_SHOWN = 64


@dataclass(frozen=True)
class Remains:
    """What to search for: stamps of old runs, and a table of their pages' hashes.

    Attributes
    ----------
    stamps : uint64[s]
    hashes : uint64[2**b]
        Open addressing, 0 is empty.
    """

    stamps: NDArray[np.uint64]
    hashes: NDArray[np.uint64]

    @classmethod
    def of(cls, stamps: list[int], hashes: NDArray[np.uint64]) -> Remains:
        """Remember `stamps`, and the `hashes` (uint64[k]) of pages that were stamped."""
        size = 1 << max(4, int(2 * hashes.size - 1).bit_length())
        table = np.zeros(size, np.uint64)
        scan.fill_hash_table(table, np.ascontiguousarray(hashes))
        return cls(np.array(stamps, np.uint64), table)


def search_remains(machine: Machine, remains: Remains, *, leaked: bool) -> list[Violation]:
    """Search all frames and the engine's buffers; `leaked`: pages of the old run are known to stay secure for ever."""
    if not machine.has_contents:
        return []
    words = vault.firmware_of(machine.ultravisor).storage.words
    by_stamp = _search(machine, lambda a, b, into: scan.find_words(words, remains.stamps, a, b, into))
    by_hash = _search(machine, lambda a, b, into: scan.find_hashes(words, remains.hashes, a, b, into))
    found = []
    for what, frames in (("stamp", by_stamp), ("content", by_hash)):
        exposed = frames[_readable(machine, frames)] if leaked else frames
        if exposed.size:
            listed = ", ".join(map(str, exposed[:4]))
            found.append(Violation(30, f"the {what} of an old run is still in {exposed.size} frames: {listed} ..."))
    for scratch in vault.firmware_of(machine.ultravisor).scratch_pages():
        plain = scratch[SCRATCH_SIZE:]
        if plain.any():
            found.append(Violation(30, "a scratch page of the cipher still holds plain text"))
    return found


def _search(machine: Machine, kernel: Callable[[int, int, NDArray[np.int64]], int]) -> NDArray[np.int64]:
    def piece(first: int, last: int) -> NDArray[np.int64]:
        into = np.empty(_SHOWN, np.int64)
        hits = kernel(first, last, into)
        return into[: min(hits, _SHOWN)]

    pieces = machine.workers.run(machine.pages, piece, CHUNK)
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def _readable(machine: Machine, frames: NDArray[np.int64]) -> NDArray[np.bool_]:
    buffer = np.empty((frames.size, PAGE_SIZE), np.uint8)
    readable: NDArray[np.bool_] = machine.copy_pages(frames, buffer, write=False) == RC_DONE
    return readable
