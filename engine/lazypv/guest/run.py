"""One run of a guest, from its first instruction to its last: its stamp, its content, what it shares.

Each run stamps every page that it owns and does not share with a value of its own, so that whatever of it is found
later where it must not be can be recognised. Before it shares a page it overwrites it, and that page bears no stamp.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lazypv.guest.patterns import GUEST_BATCH
from lazypv.host.faults import HANDLERS
from lazypv.host.run import access
from lazypv.steps import Bulk, Touch
from lazypv_kernels.access import COPY_PAGE, LOAD, STORE_PAGE, STORE_WORD
from lazypv_kernels.layout import PAGE_SIZE, RC_BUSY, RC_DONE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.vm import Vm
    from lazypv.ultravisor import BulkAnswer

    Pages = NDArray[np.int64]

_PUBLIC_PAGE = np.full((1, PAGE_SIZE // 8), 0x53_48_41_52_45_44_20_20, np.uint64)
"""What a guest writes into a page before it shares it."""


class GuestRun:
    """One run of the guest in `vm`.

    Attributes
    ----------
    stamp : int
        Eight random bytes, this run's own.
    shared : int64[k]
        Guest pages that it shares with the host now.
    accesses : int
        Page accesses made so far.
    stopping : bool
        Asked to stop at the next batch.
    """

    def __init__(self, vm: Vm, stamp: int | None = None) -> None:
        self.vm = vm
        self.stamp = secrets.randbits(63) | 1 << 63 if stamp is None else stamp
        self.shared: NDArray[np.int64] = np.empty(0, np.int64)
        self.accesses = 0
        self.stopping = False

    async def load(self, number: int, pages: Pages, source: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        """vCPU `number` writes row ``rows[i]`` of `source` (uint64[r, 512]) into ``pages[i]``, stamped."""
        for at in range(0, pages.size, GUEST_BATCH):
            part = slice(at, at + GUEST_BATCH)
            await access(self.vm, number, pages[part], STORE_PAGE, self._stamps(pages[part].size), source, rows[part])
            self.accesses += pages[part].size

    async def write(self, number: int, batches: Iterable[Pages]) -> None:
        """vCPU `number` writes its stamp into page after page, until asked to stop."""
        for pages in batches:
            if await self._asked_to_stop():
                return
            await access(self.vm, number, pages, STORE_WORD, self._stamps(pages.size))
            self.accesses += pages.size

    async def read(self, number: int, pages: Pages) -> NDArray[np.uint64]:
        """vCPU `number` reads `pages` whole: uint64[k], a hash of each."""
        hashes = np.empty(pages.size, np.uint64)
        for at in range(0, pages.size, GUEST_BATCH):
            part = slice(at, at + GUEST_BATCH)
            await access(self.vm, number, pages[part], LOAD, hashes[part])
            self.accesses += pages[part].size
        return hashes

    async def read_batches(self, number: int, batches: Iterable[Pages]) -> None:
        """vCPU `number` reads page after page, until asked to stop."""
        for pages in batches:
            if await self._asked_to_stop():
                return
            await self.read(number, pages)

    async def share(self, number: int, pages: Pages) -> None:
        """The guest overwrites `pages` and shares them with the host."""
        rows = np.zeros(pages.size, np.int64)
        await access(self.vm, number, pages, COPY_PAGE, self._stamps(pages.size), _PUBLIC_PAGE, rows)
        await self._set_shared(pages, share=True)
        self.shared = np.union1d(self.shared, pages)

    async def unshare(self, number: int, pages: Pages) -> None:
        """The guest takes `pages` back and stamps them again."""
        await self._set_shared(pages, share=False)
        self.shared = np.setdiff1d(self.shared, pages)
        await access(self.vm, number, pages, STORE_WORD, self._stamps(pages.size))

    async def _set_shared(self, pages: Pages, share: bool) -> None:
        ultravisor, handle = self.vm.host.machine.ultravisor, self.vm.gmap.guest_handle
        todo = pages
        while todo.size:
            answer: BulkAnswer = await Bulk(
                "share" if share else "unshare", lambda part: ultravisor.share_pages(handle, part, share), todo
            )
            left = answer.rc != RC_DONE
            todo, code = todo[left], answer.rc[left]
            for kind in np.unique(code[code != RC_BUSY]):
                await HANDLERS[int(kind)](self.vm, todo[code == kind])

    async def _asked_to_stop(self) -> bool:
        await Touch(self, "stopping")
        return self.stopping

    def _stamps(self, size: int) -> NDArray[np.uint64]:
        return np.full(size, self.stamp, np.uint64)
