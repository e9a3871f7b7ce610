"""The end of an address space: the last user leaves, mappings go, pages are exported or set aside.

At process exit the address space dies before the VM's file is closed, hence while secure CPUs still live: nothing can
be destroyed yet. Pages are set aside instead, one reference each, until the configuration has lost its CPUs (patch 09).

Source: semantics 4.9; invariants 26, 27, 37.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import LifetimeError
from lazypv.host.mm import MM_USERS
from lazypv.host.throttle import UNLIMITED, Throttle
from lazypv.steps import Alloc, Bulk, Touch
from lazypv.ultravisor import BulkAnswer
from lazypv_kernels.layout import RC_DONE, RC_DTYPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.host import Host
    from lazypv.host.mm import Mm, Vma
    from lazypv.host.secure_pages import SecurePages
    from lazypv.host.set_aside import Node

EXPORT_BATCH = 4096
"""Pages that are unmapped with one step while each has to be exported: a page table's worth or several."""


async def mmput(host: Host, mm: Mm, *, nobody_drains: bool = False) -> None:
    """Stop being a user of `mm`; the last one tears it down.

    With `nobody_drains` the caller is a cleaner that has passed the list: if it is the last, what is unmapped now has
    to be exported. That is decided under one lock with the put itself, since other users may leave just before; as
    posted they may (D17).
    """
    if nobody_drains and not knows_who_drains(host):
        if await mm.read_users() == 1:
            async with mm.mmap_lock.exclusive():
                mm.pv_sync_destroy = True
        last = await _drop_user(mm)
    elif nobody_drains:
        async with mm.mmap_lock.exclusive():
            last = await _drop_user(mm)
            if last:
                mm.pv_sync_destroy = True
    else:
        last = await _drop_user(mm)
    if last:
        await exit_mmap(host, mm)
        await mm.drop()


def knows_who_drains(host: Host) -> bool:
    """Whether anybody counts who has still to take the list, and who is the last user when he leaves.

    As posted there is only a flag, set on a number of users that may have changed since (D17).
    """
    return not host.series.last_user_guessed


async def _drop_user(mm: Mm) -> bool:
    await Touch(mm, MM_USERS, write=True)
    mm.users -= 1
    if mm.users < 0:
        raise LifetimeError(25, "mm_users was dropped below zero")
    return mm.users == 0


async def exit_mmap(host: Host, mm: Mm) -> None:
    """Unmap everything. Nobody uses the mappings any more; only cleaners of the list may still know `mm`.

    Whether pages may be set aside at all cannot change any more: `pv_sync_destroy` is set by users, and none is left.
    """
    await Touch(mm, "pv_sync_destroy")
    for vma in mm.vmas:
        at = 0
        while at < vma.pte.size:
            if await mm.read_protected() == 0:
                frames, at = mm.unmap(vma, at, vma.pte.size, EXPORT_BATCH)
                host.machine.frames.put(frames)
            else:
                at = await host.teardown.unmapped(host, mm, vma, at)
    for gmap in mm.gmaps:
        async with gmap.guest_table_lock.exclusive():
            gmap.unlink(host.ledger)
    mm.torn_down = True


async def export_unmapped(host: Host, mm: Mm, vma: Vma, at: int, limit: int = EXPORT_BATCH) -> int:
    """Take the next pages of `vma` out, at most `limit`, and export them; where to go on."""
    frames, at = mm.unmap(vma, at, vma.pte.size, limit)
    if frames.size:
        await host.pages.export_and_put(frames)
    return at


async def set_aside(host: Host, mm: Mm, vma: Vma, at: int) -> int:
    """Take the next pages of `vma` out and write them down; where to go on.

    One node's worth with one hold of the list. When there is no room one page is exported, and a page allocated to be
    the next node; that page is not on the list. Where nobody will come for the list any more, pages are exported.
    """
    aside = mm.set_aside
    async with aside.held():
        if not knows_who_drains(host) or mm.to_drain:
            if not aside.room and host.nodes_at_once > 1:
                return await _fill_new_nodes(host, mm, vma, at)
            if not aside.room:
                at = await export_unmapped(host, mm, vma, at, 1)
                fresh = await Alloc("list node", aside.new_node)
                if fresh is None:
                    return at
                aside.nodes.appendleft(fresh)
            node = aside.nodes[0]
            frames, at = mm.unmap(vma, at, vma.pte.size, node.room)
            if frames.size:
                await Bulk("set aside", lambda part: _write_down(node, part), frames)
            return at
    return await export_unmapped(host, mm, vma, at)


async def _fill_new_nodes(host: Host, mm: Mm, vma: Vma, at: int) -> int:
    """Several nodes with one hold of the list: what one after the other leaves, in fewer steps.

    Of each node's worth and one the first page is exported, the others are written down. Where there is no memory for
    that many nodes, all are exported.
    """
    aside = mm.set_aside
    each = aside.node_capacity + 1
    frames, at = mm.unmap(vma, at, vma.pte.size, host.nodes_at_once * each)
    if not frames.size:
        return at
    await host.pages.export_and_put(np.ascontiguousarray(frames[::each]))
    kept = frames[np.arange(frames.size) % each != 0]
    if kept.size:
        fresh = await Alloc("list node", lambda: aside.new_nodes(-(-kept.size // aside.node_capacity)))
        if fresh is None:
            await host.pages.export_and_put(kept)
        else:
            aside.nodes.extendleft(fresh)
            await Bulk("set aside", lambda part: _write_down_in_order(fresh, part), kept)
    return at


def _write_down_in_order(nodes: list[Node], frames: NDArray[np.int64]) -> BulkAnswer:
    """The next numbers, into the first of `nodes` that have room."""
    left = frames
    for node in nodes:
        part, left = left[: node.room], left[node.room :]
        node.append(part)
    return BulkAnswer(np.full(frames.size, RC_DONE, RC_DTYPE), frames.size)


def _write_down(node: Node, frames: NDArray[np.int64]) -> BulkAnswer:
    """Per page: its number on the node; the mapping's reference, which would go now, becomes the list's."""
    node.append(frames)
    return BulkAnswer(np.full(frames.size, RC_DONE, RC_DTYPE), frames.size)


async def unmap_range(host: Host, mm: Mm, vma: Vma, start: int, end: int) -> None:
    """Give part of `vma` back (madvise, swap-out, the OOM reaper): exported page by page, never set aside."""
    at = start
    async with mm.mmap_lock.shared():
        while at < end:
            protected = await mm.read_protected()
            frames, at = mm.unmap(vma, at, end, host.batch)
            if protected:
                await host.pages.export_and_put(frames)
            else:
                host.machine.frames.put(frames)


async def drain_set_aside(pages: SecurePages, mm: Mm, account: str, throttle: Throttle | None = None) -> None:
    """Work off the list of `mm`: destroy each page, drop the list's reference, free the nodes; a node is a batch.

    A page that is refused belongs to a configuration whose CPUs still live: it goes back on the list while another
    configuration of this address space has still to drain (D19). In the last drain it is exported (D20).
    """
    aside = mm.set_aside
    throttle = UNLIMITED if throttle is None else throttle
    if not aside.has_lock:
        await _drain_without_lock(pages, mm, account, throttle)
        return
    async with aside.held():
        nodes = list(aside.nodes)
        aside.nodes.clear()
        _one_less_to_drain(mm)
    for node in nodes:
        await throttle.wait()
        frames = node.frames
        answer = await pages.destroy_kept(frames, account)
        throttle.passed(frames.size)
        pages.ledger.add("set_aside", answer.done)
        refused = frames[answer.rc != RC_DONE] if answer.refused else frames[:0]
        if refused.size:
            await _refused_on_the_list(pages, mm, refused)
        aside.free_node(node)


async def pass_the_list_over(mm: Mm) -> None:
    """Whoever should work off the list of `mm` will not."""
    async with mm.set_aside.held():
        _one_less_to_drain(mm)


def _one_less_to_drain(mm: Mm) -> None:
    """A cleaner has taken the list; one whose configuration was gone before is no loss to it (D1)."""
    mm.to_drain = max(mm.to_drain - 1, 0)


async def _drain_without_lock(pages: SecurePages, mm: Mm, account: str, throttle: Throttle) -> None:
    """The list as it is worked off as posted: node after node, and each page's reference goes whatever was answered.

    Between the look at the first node and its removal another cleaner may look at the same node (D19).
    """
    aside = mm.set_aside
    _one_less_to_drain(mm)
    while True:
        await throttle.wait()
        await Touch(aside, "deferred_list")
        if not aside.nodes:
            return
        node = aside.nodes[0]
        await Touch(aside, "deferred_list", write=True)
        if node in aside.nodes:
            aside.nodes.remove(node)
        else:
            pages.ledger.broke(26, "a node was taken off the list by two cleaners")
        await pages.destroy_and_put(node.frames, account)
        throttle.passed(node.count)
        aside.free_node(node)


async def _refused_on_the_list(pages: SecurePages, mm: Mm, frames: NDArray[np.int64]) -> None:
    aside = mm.set_aside
    async with aside.held():
        if mm.to_drain:
            todo = frames
            while todo.size:
                node = aside.nodes[0] if aside.room else aside.new_node()
                if node is None:
                    break
                if not aside.room:
                    aside.nodes.appendleft(node)
                part, todo = todo[: node.room], todo[node.room :]
                node.append(part)
            frames = todo
    if frames.size:
        await export_refused(pages, frames)


async def export_refused(pages: SecurePages, frames: NDArray[np.int64]) -> None:
    """The end of pages that were refused in the last drain: their reference is the last, so they are exported first.

    A page that even that fails for keeps its reference and counts as leaked, since the allocator must never get it. As
    posted the answer of the destruction is not looked at, and the reference dropped (D20).
    """
    if pages.series.refused_page_freed:
        pages.frames.put(frames)
        return
    rc = await pages.export_owned(frames)
    done = rc == RC_DONE
    pages.frames.put(frames[done])
    pages.ledger.add("set_aside", int(np.count_nonzero(done)))
    pages.ledger.leak("page that could be neither destroyed nor exported", frames[~done])
