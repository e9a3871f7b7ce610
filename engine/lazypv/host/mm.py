"""An address space: who uses it, what it maps, what it remembers of protected guests.

``mm_users`` counts tasks and transient holders of the mappings, ``mm_count`` references to the structure. Where the
last user leaves, the address space is torn down; where the last reference goes, nobody may look at it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import LifetimeError
from lazypv.host.set_aside import SetAsideList
from lazypv.steps import Call, Lock, Touch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.gmap import Gmap
    from lazypv.machine import HostFrames, PageTable


MM_USERS: Final = "mm_users"
"""What its accesses are called: whoever looks at it again and again asks to be told of writes."""
GATHER: Final = "gather"
"""What the step is called that takes references on mapped frames."""


class Backing(Enum):
    """What stands behind a mapping; the number is how many references each mapped page has at rest."""

    GUEST = "guest memory"
    PRIVATE = "private memory of the process"
    FILE = "shared file mapping"
    SPECIAL = "special mapping"

    @property
    def cache_references(self) -> int:
        """References that page cache or driver hold besides the mapping."""
        return 1 if self in (Backing.FILE, Backing.SPECIAL) else 0


@dataclass(eq=False)
class Vma:
    """A mapped range.

    Attributes
    ----------
    start : int
        First page of the range in the address space.
    pte : PageTable
        What is mapped at each page of the range.
    """

    start: int
    pte: PageTable
    backing: Backing

    def __post_init__(self) -> None:
        self.end: int = self.start + self.pte.size
        """First page behind the range."""


def _gathered(found: tuple[NDArray[np.int64], int]) -> int:
    return found[0].size


class ProtectedCounter:
    """How many secure configurations of this address space exist: a counter (patch 06), before it a flag.

    The unmap hooks export as long as it is not zero; imports export first while it is above one.
    """

    def __init__(self, counting: bool) -> None:
        self.value = 0
        self.counting = counting

    def created(self) -> None:
        """CREATE_SEC_CONF was issued."""
        if self.counting:
            self.value += 1

    def parameters_set(self) -> None:
        """SET_SEC_CONF_PARAMS was issued: where the flag of old was set."""
        if not self.counting:
            self.value = 1

    def gone(self) -> None:
        """A configuration does not exist, or not any more."""
        self.value = self.value - 1 if self.counting else 0


class Mm:
    """An address space of the host.

    Attributes
    ----------
    users, count : int
        ``mm_users`` and ``mm_count``.
    mmap_lock : Lock
        Protects the mappings as a whole, and `pv_sync_destroy`.
    protected : ProtectedCounter
        Secure configurations of this address space.
    set_aside : SetAsideList
        Pages taken out at teardown, to be cleaned later (patch 09).
    pv_sync_destroy : bool
        Nobody will work off the list any more: export at teardown.
    gmap_asce : int
        The ASCE with which SIE is entered.
    gmaps : list of Gmap
        Guest address spaces whose tables point to page tables of this one.
    to_drain : int
        Configurations of this address space whose cleaner has still to take the list; protected by the list's lock.
    """

    def __init__(self, frames: HostFrames, users: int, counting: bool, node_capacity: int, list_has_lock: bool) -> None:
        self.frames = frames
        self.users = users
        self.count = 1
        self.mmap_lock = Lock("mmap_lock")
        self.vmas: list[Vma] = []
        self.protected = ProtectedCounter(counting)
        self.set_aside = SetAsideList(frames, node_capacity, list_has_lock)
        self.pv_sync_destroy = False
        self.gmap_asce = 0
        self.gmaps: list[Gmap] = []
        self.to_drain = 0
        self.torn_down = False
        self.freed = False

    def map(self, pages: int, backing: Backing) -> Vma:
        """A new range behind all others, with nothing in it yet."""
        start = self.vmas[-1].end if self.vmas else 0
        return self.map_table(self.frames.page_table(pages), start, backing)

    def map_table(self, pte: PageTable, start: int, backing: Backing) -> Vma:
        """A range whose page table somebody else holds too, as the guest's does."""
        vma = Vma(start, pte, backing)
        self.vmas.append(vma)
        self.vmas.sort(key=lambda each: each.start)
        return vma

    @property
    def end(self) -> int:
        """First page behind all ranges."""
        return self.vmas[-1].end if self.vmas else 0

    async def read_users(self) -> int:
        """``mm_users`` as it is now; others take and drop references meanwhile."""
        await Touch(self, MM_USERS)
        self._must_live()
        return self.users

    async def get_not_zero(self) -> bool:
        """``mmget_not_zero``: become a user unless the last one has left."""
        await Touch(self, MM_USERS, write=True)
        self._must_live()
        if self.users == 0:
            return False
        self.users += 1
        return True

    async def grab(self) -> None:
        """``mmgrab``: keep the structure."""
        await Touch(self, "mm_count", write=True)
        self._must_live()
        self.count += 1

    async def drop(self) -> None:
        """``mmdrop``: let go of the structure."""
        await Touch(self, "mm_count", write=True)
        self._must_live()
        self.count -= 1
        self.freed = self.count == 0

    async def read_protected(self) -> int:
        """The protected counter as it is now."""
        await Touch(self, "protected counter")
        self._must_live()
        return self.protected.value

    async def write_protected(self) -> ProtectedCounter:
        """The protected counter, to be changed before the next await."""
        await Touch(self, "protected counter", write=True)
        self._must_live()
        return self.protected

    def _must_live(self) -> None:
        """Invariant 24: who looks at an address space holds a reference to it (D2, D3)."""
        if self.freed:
            raise LifetimeError(24, "an address space was used after its last reference had gone")

    def gather(self, at: int, end: int, limit: int) -> Call[tuple[NDArray[np.int64], int]]:
        """To be awaited: frames mapped in ``[at, end)``, at most `limit`, one reference each; and where to go on.

        Under the mmap lock. Ranges without mappings are skipped.
        """
        return Call(GATHER, lambda: self._gather(at, end, limit), self, uvc=False, pages_of=_gathered)

    def range_at(self, at: int) -> Vma | None:
        """The range that has page `at`, or None. Ranges neither come nor go while anything runs in them."""
        return next((vma for vma in self.vmas if vma.start <= at < vma.end), None)

    def _gather(self, at: int, end: int, limit: int) -> tuple[NDArray[np.int64], int]:
        found: list[NDArray[np.int64]] = []
        room = limit
        for vma in self.vmas:
            start = vma.start
            if vma.end <= at or start >= end:
                continue
            first, last = (at - start if at > start else 0), (vma.end if vma.end < end else end) - start
            frames, stopped = self.frames.gather(vma.pte, first, last, room)
            room -= frames.size
            if not room and not found:
                return frames, start + stopped
            found.append(frames)
            if not room:
                return np.concatenate(found), start + stopped
        return (np.concatenate(found) if found else np.empty(0, np.int64)), end

    def unmap(self, vma: Vma, at: int, end: int, limit: int) -> tuple[NDArray[np.int64], int]:
        """Clear entries of ``[at, end)`` of `vma`, at most `limit`; their frames' references are the caller's."""
        return vma.pte.unmap(at, end, limit)

    def mapped(self, vma: Vma) -> int:
        """Pages that are mapped in `vma`."""
        return vma.pte.count()
