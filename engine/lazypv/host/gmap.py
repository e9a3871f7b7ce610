"""The guest's page tables inside an address space, and the ASCE that names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import LifetimeError
from lazypv.sizes import PAGE_SIZE
from lazypv.steps import Alloc, Lock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.hardware import Machine
    from lazypv.host.ledger import Ledger
    from lazypv.host.mm import Mm
    from lazypv.machine import PageTable
    from lazypv.series import Series

CRST_ALLOC_PAGES: Final = 4
"""Pages of a table (CRST_ALLOC_ORDER 2)."""
ASCE_ORIGIN: Final = 0xFFFFFFFFFFFFF000
ASCE_PRIVATE_SPACE: Final = 0x100
ASCE_TYPE_SEGMENT: Final = 0x00
ASCE_TYPE_REGION3: Final = 0x04
ASCE_TYPE: Final = 0x0C
_ENTRIES: Final = CRST_ALLOC_PAGES * PAGE_SIZE // 8


@dataclass(eq=False)
class CrstTable:
    """A region or segment table: four pages of the host.

    Attributes
    ----------
    frames : int64[4]
        Where it lies.
    index : int
        The page's index field, from which notifications compute guest addresses; 0 for a top table (D9).
    freed : bool
        The allocator has it back.
    """

    frames: NDArray[np.int64]
    index: int = 0
    freed: bool = False

    @property
    def origin(self) -> int:
        """Absolute address."""
        return int(self.frames[0]) * PAGE_SIZE


class Gmap:
    """Guest address space of one VM.

    Attributes
    ----------
    pte : PageTable
        What is mapped at each guest page; the address space's ranges are windows of it.
    base : int
        Page of the address space at which guest page 0 would lie.
    table : CrstTable
        The top table.
    asce : int
        Its address, type and control bits.
    guest_handle : int
        Handle of the protected guest, 0 for none.
    crst_list : list of CrstTable
        Tables that are freed with the gmap.
    host_to_guest : CrstTable or None
        The segment table into which the entries of that map point, where it is the top table (D10).
    """

    def __init__(
        self,
        machine: Machine,
        series: Series,
        mm: Mm,
        pte: PageTable,
        base: int,
        table: CrstTable,
        asce_type: int,
    ) -> None:
        self.machine = machine
        self.series = series
        self.mm = mm
        self.pte = pte
        self.base = base
        self.table = table
        self.guest_handle = 0
        self.guest_table_lock = Lock("guest_table_lock")
        self.crst_list = [table]
        self.asce = table.origin | ASCE_PRIVATE_SPACE | asce_type
        mm.gmap_asce = self.asce
        mm.gmaps.append(self)
        self.host_to_guest = table if self.segment_type else None
        if machine.has_contents:
            self._fill(table)

    def _fill(self, table: CrstTable) -> None:
        """Entries that point to the tables below; their content is only ever copied."""
        entries = np.arange(_ENTRIES, dtype=">u8") * PAGE_SIZE + 0x0B
        self.machine.copy_pages(table.frames, entries.view(np.uint8).reshape(-1, PAGE_SIZE), write=True)

    @property
    def segment_type(self) -> bool:
        """The guest is so small that its top table is the segment table, to which other structures point (D10)."""
        return self.asce & ASCE_TYPE == ASCE_TYPE_SEGMENT

    @property
    def must_keep_table(self) -> bool:
        """The top table cannot be replaced, since others point into it; as posted nobody asks (D10)."""
        return self.segment_type and not self.series.segment_table_replaced

    async def remove_old_asce(self) -> CrstTable:
        """Take the top table off the list of tables to be freed: its owner is somebody else from now on (patch 01)."""
        async with self.guest_table_lock.exclusive():
            if self.table in self.crst_list:
                self.crst_list.remove(self.table)
            return self.table

    async def replace_asce(self) -> bool:
        """Go on with a copy of the top table; the old one stays with the firmware that knows it (patch 01).

        False, and the old table in use but on no list, when there is no memory for a copy (D6, documented) and when the
        top table is a segment table, to which others point (D10).

        Source: semantics 4.1; invariants 13, 14, 17, 18, 19.
        """
        old = await self.remove_old_asce()
        if self.must_keep_table:
            return False
        frames = await Alloc("top table", lambda: self.machine.frames.allocate_run(CRST_ALLOC_PAGES, CRST_ALLOC_PAGES))
        if frames is None:
            return False
        # D9: as posted, nobody clears the index that the pages had in what they belonged to before.
        new = CrstTable(frames, index=int(frames[0]) if self.series.stray_index else 0)
        content = np.zeros((CRST_ALLOC_PAGES, PAGE_SIZE), np.uint8)
        if self.machine.has_contents:
            self.machine.copy_pages(old.frames, content, write=False)
            self.machine.copy_pages(new.frames, content, write=True)
        async with self.guest_table_lock.exclusive():
            self.asce = (self.asce & ~ASCE_ORIGIN) | new.origin
            self.mm.gmap_asce = self.asce
            self.table = new
            self.crst_list.append(new)
        return True

    async def restore_asce(self, old: CrstTable) -> None:
        """Nobody took `old` over: it is in use and on the list again, and what had replaced it is freed (D5)."""
        async with self.guest_table_lock.exclusive():
            new = self.table
            if new is not old:
                self.crst_list.remove(new)
                self.free_table(new)
                self.asce = (self.asce & ~ASCE_ORIGIN) | old.origin
                self.mm.gmap_asce = self.asce
                self.table = old
            self.crst_list.append(old)

    def free_table(self, table: CrstTable) -> None:
        """Give a table's pages back to the allocator."""
        if table.freed:
            raise LifetimeError(17, f"the table at {table.origin:#x} was freed twice")
        table.freed = True
        self.machine.frames.put(table.frames)

    def unlink(self, ledger: Ledger) -> None:
        """The process's page tables go: whatever pointed to them is cleared, through the map from host to guest."""
        pointed = self.host_to_guest
        if pointed is not None and pointed is not self.table:
            fate = "was freed" if pointed.freed else "is not the guest's any more"
            ledger.broke(19, f"entries of host_to_guest point into a segment table that {fate}")
