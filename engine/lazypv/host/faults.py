"""Exceptions that the host takes while a guest runs: 0x04, 0x11, 0x3d, 0x3e, 0x3f.

Each handler gets the guest pages at which one kind of exception happened, does what the field's handler does for each,
and returns; the guest then repeats its instruction. A handler that cannot help ends the process with a signal.

Source: semantics 7, 4.3, 4.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import LazyPVError, MemoryShortageError
from lazypv.host.secure_pages import FREEZE_FAILED
from lazypv.steps import Alloc, Bulk, Wait
from lazypv.ultravisor import BulkAnswer
from lazypv.ultravisor.interface import (
    CONV_TO_RC_NOT_MAPPED,
    ICPT_PV_NOTIFICATION,
    ICPT_VALIDITY,
    PGM_NON_SECURE_STORAGE_ACCESS,
    PGM_PAGE_TRANSLATION,
    PGM_PROTECTION,
    PGM_SECURE_STORAGE_ACCESS,
    PGM_SECURE_STORAGE_VIOLATION,
)
from lazypv_kernels.layout import RC_BUSY, RC_DONE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

    from lazypv.host.secure_pages import SecurePages
    from lazypv.host.vm import Vm

    Pages = NDArray[np.int64]


class ProcessKilledError(LazyPVError):
    """The process of a guest was ended by a signal; says which page and why.

    Attributes
    ----------
    rc : int
        The answer of the Ultravisor that left no other way, 0 if there was none.
    """

    exit_status = 3

    def __init__(self, signal: str, why: str, rc: int = 0) -> None:
        super().__init__(f"{signal}: {why}")
        self.signal = signal
        self.rc = rc


def _killed(code: int, page: int, why: str, rc: int = 0) -> ProcessKilledError:
    return ProcessKilledError("SIGSEGV", f"exception {code:#04x} at guest page {page:#x}: {why}", rc)


async def page_fault(vm: Vm, pages: Pages) -> None:
    """Map fresh memory at `pages` (0x11): allocate, clear, enter; who comes second gives his page back."""
    kernel = vm.host.pages
    pages = _once(pages)
    async with vm.mm.mmap_lock.shared():
        if not vm.is_backed(pages).all():
            bad = int(pages[~vm.is_backed(pages)][0])
            raise _killed(PGM_PAGE_TRANSLATION, bad, "the guest has no memory there")
        frames = await Alloc("guest memory", lambda: kernel.frames.allocate(pages.size))
        if frames is None:
            raise MemoryShortageError(
                f"the machine has {kernel.frames.free()} free frames, but the guest touched {pages.size} new pages"
            )
        code = await kernel.clear_fresh(frames)
        if np.any(code != RC_DONE):
            await _secure_page_from_the_allocator(vm, frames[code != RC_DONE])
        mapped = vm.gmap.pte.map(pages, frames)
        if not mapped.all():
            kernel.frames.put(frames[~mapped])


async def _secure_page_from_the_allocator(vm: Vm, frames: NDArray[np.int64]) -> None:
    """0x3d in the kernel itself, on pages fresh from the allocator, which has dropped their marks.

    The handler finds no mark, does nothing, and the same exception comes again, for ever (semantics 4.6, step 8).
    """
    marked = vm.host.pages.frames.marked(frames)
    if not marked.all():
        bad = int(frames[~marked][0])
        vm.host.ledger.broke(1, f"frame {bad} came from the allocator while it was still secure")
        raise ProcessKilledError("endless loop", f"exception 0x3d in the kernel at frame {bad}, which bears no mark")
    await vm.host.pages.make_accessible(frames)


async def guest_access(vm: Vm, pages: Pages) -> None:
    """Secure storage access (0x3d) of a guest that is not protected: pin or export the page (patch 04).

    Translated under the mmap lock (D11b); an address that has no translation is a bad mapping, not a reason to try
    again, which it is as posted (D11).
    """
    kernel = vm.host.pages
    if not kernel.series.handle_guest_access:
        raise _killed(PGM_SECURE_STORAGE_ACCESS, int(pages[0]), "bad mapping, no handler for a guest's access")
    async with vm.mm.mmap_lock.shared():
        translated = vm.is_backed(pages)
        if not translated.all() and not kernel.series.untranslatable_retried:
            raise _killed(PGM_SECURE_STORAGE_ACCESS, int(pages[~translated][0]), "the address has no translation")
        pages = pages[translated]
        found, frames = _look_up(kernel, vm, pages)
        code = await kernel.make_accessible(frames)
        kernel.frames.put(frames)
    if np.any(code != RC_DONE):
        bad = int(np.flatnonzero(code != RC_DONE)[0])
        why = "the page could not be made accessible"
        raise _killed(PGM_SECURE_STORAGE_ACCESS, int(found[bad]), why, int(code[bad]))


async def non_secure(vm: Vm, pages: Pages) -> None:
    """Non-secure storage access (0x3e) of a protected guest: import the page."""
    handle = vm.gmap.guest_handle
    ultravisor = vm.host.machine.ultravisor
    pager = vm.pager
    if pager is None:
        await import_pages(vm, pages, lambda part: ultravisor.import_pages(handle, part), PGM_NON_SECURE_STORAGE_ACCESS)
        return
    try:
        await import_pages(vm, pages, pager.import_pages, PGM_NON_SECURE_STORAGE_ACCESS)
    except ProcessKilledError:
        if pager.problem is not None:
            raise pager.problem from None
        raise


async def protection(vm: Vm, pages: Pages) -> None:
    """A store to pages that a snapshot has still to save (0x04): copied aside first; where there is no room, wait."""
    ultravisor, handle = vm.host.machine.ultravisor, vm.gmap.guest_handle
    todo = _once(pages)
    while todo.size:
        answer: BulkAnswer = await Bulk("copy aside", lambda part: _kept(ultravisor.copy_aside(handle, part)), todo)
        todo = todo[answer.rc == RC_BUSY]
        if todo.size:
            await Wait(lambda: ultravisor.has_room_aside(handle), "room for copies of pages", outside=True)


def _kept(code: NDArray[np.uint16]) -> BulkAnswer:
    busy = int(np.count_nonzero(code == RC_BUSY))
    return BulkAnswer(code, code.size - busy, busy=busy)


async def import_pages(vm: Vm, pages: Pages, call: Callable[[Pages], object], code: int) -> None:
    """Make `pages` secure by `call`; fault in what is not mapped, wait for stray references, give up on refusals."""
    kernel = vm.host.pages
    todo = _once(pages)
    while todo.size:
        rc = await kernel.make_secure(vm.gmap, todo, call)  # type: ignore[arg-type]
        if np.count_nonzero(rc == RC_DONE) == todo.size:
            return
        refused = (rc != RC_DONE) & (rc != CONV_TO_RC_NOT_MAPPED) & (rc != FREEZE_FAILED)
        if refused.any():
            at = int(np.flatnonzero(refused)[0])
            raise _killed(code, int(todo[at]), f"the import was refused with rc {int(rc[at]):#06x}", int(rc[at]))
        absent = todo[rc == CONV_TO_RC_NOT_MAPPED]
        if absent.size:
            await page_fault(vm, absent)
        held = todo[rc == FREEZE_FAILED]
        if held.size:
            await kernel.wait_for_import(vm.gmap, held)
        todo = todo[rc != RC_DONE]


async def violation(vm: Vm, pages: Pages) -> None:
    """Secure storage violation (0x3f): the page belongs to another configuration; destroy it, else export (patch 03).

    The guest repeats its access, meets 0x3e, and imports a zero page. Where destroy is refused another CPU of the new
    guest was faster and the page is alive again: exporting is safe, killing the process would be wrong.
    """
    kernel = vm.host.pages
    if not kernel.series.handle_violations:
        raise _killed(PGM_SECURE_STORAGE_VIOLATION, int(pages[0]), "secure storage violation, no handler")
    async with vm.mm.mmap_lock.shared():
        mapped = vm.has_mapping(pages)
        if not mapped.all():
            raise _killed(PGM_SECURE_STORAGE_VIOLATION, int(pages[~mapped][0]), "the address has no mapping")
        found, frames = _look_up(kernel, vm, pages)
        code = await kernel.destroy_or_export(frames)
        kernel.frames.put(frames)
    if np.any(code != RC_DONE):
        bad = int(np.flatnonzero(code != RC_DONE)[0])
        why = "the page could be neither destroyed nor exported"
        raise _killed(PGM_SECURE_STORAGE_VIOLATION, int(found[bad]), why, int(code[bad]))


async def notification(vm: Vm, pages: Pages) -> None:
    """Intercept 108: the guest takes pages back that the host has pinned. A refusal is no error: it will come back."""
    handle, ultravisor = vm.gmap.guest_handle, vm.host.machine.ultravisor
    await vm.host.pages.make_secure(
        vm.gmap, _once(pages), lambda part: ultravisor.unpin_pages(handle, part), is_unpin=True
    )


async def validity(vm: Vm, pages: Pages) -> None:
    """SIE was entered with handles or an address space that do not fit: the guest cannot go on."""
    raise ProcessKilledError("validity intercept", f"SIE entry for guest page {int(pages[0]):#x}")


def _once(pages: Pages) -> Pages:
    """`pages` in ascending order, each once; most come that way, and sorting would cost more than looking."""
    if pages.size < 2 or bool((pages[1:] > pages[:-1]).all()):
        return pages
    return np.unique(pages)


def _look_up(kernel: SecurePages, vm: Vm, pages: Pages) -> tuple[Pages, NDArray[np.int64]]:
    """Which of `pages` are mapped, and their frames with one reference each; for absent ones the guest comes again."""
    pages = _once(pages)
    frames = kernel.frames.look_up(vm.gmap.pte, pages)
    present = frames >= 0
    return pages[present], frames[present]


HANDLERS: dict[int, Callable[[Vm, Pages], Awaitable[None]]] = {
    PGM_PROTECTION: protection,
    PGM_PAGE_TRANSLATION: page_fault,
    PGM_SECURE_STORAGE_ACCESS: guest_access,
    PGM_NON_SECURE_STORAGE_ACCESS: non_secure,
    PGM_SECURE_STORAGE_VIOLATION: violation,
    ICPT_PV_NOTIFICATION: notification,
    ICPT_VALIDITY: validity,
}
