"""Page tables as kernels reach them, of one of two kinds that the type of the argument tells apart.

Flat, uint32[m]: frame + 1 for each page, 0 where nothing is mapped. With a segment table above, (uint64[s], uint32[m]):
a segment of 256 pages says where its first page lies when all of it lies in one piece, and only otherwise are its
entries looked at. What is never touched takes no memory, so that a guest of terabytes in few pieces has 8 bytes for
each megabyte instead of 1,024.

A segment that has entries of its own keeps them: nothing merges back, so a change is one compare-and-swap, and who
reads never waits. What kernels call is specialised when they are compiled: a flat table costs what an array does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import overload

from lazypv_kernels.arrays import I64, U32, U64, Integer, Table
from lazypv_kernels.claims import EIGHT
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import NO_FRAME
from lazypv_kernels.native import compare_and_swap, exchange, load_acquire, relax, store_release

SEGMENT_PAGES: Final = 256
"""Pages of a segment: 1 MiB, as the architecture has it."""
SEGMENT_SHIFT: Final = 8
HAS_ENTRIES: Final = 1 << 63
"""The segment's entries say what is mapped."""
SPLITTING: Final = 1 << 62
"""They are being written: until that is done the segment still lies in one piece."""
FIRST_ENTRY: Final = 0xFFFFFFFF
"""The first page's frame + 1; its neighbours' follow."""


# --- one segment ---------------------------------------------------------------------------------------------------


@kernel
def load_segment_entry(segment: U64, entry: U32, page: Integer) -> np.uint32:
    """What is mapped at `page`: frame + 1, or 0. segment : uint64[s]; entry : uint32[m]."""
    word = load_acquire(segment, page >> SEGMENT_SHIFT)
    if word & np.uint64(HAS_ENTRIES) != np.uint64(0):
        return np.uint32(load_acquire(entry, page))
    if word == np.uint64(0):
        return np.uint32(NO_FRAME)
    return np.uint32(np.int64(word & np.uint64(FIRST_ENTRY)) + page % SEGMENT_PAGES)


@kernel
def split_segment(segment: U64, entry: U32, number: Integer) -> None:
    """Let segment `number` have entries of its own, with what is mapped there; whoever else does so is waited for.

    segment : uint64[s]; entry : uint32[m].
    """
    while True:
        word = load_acquire(segment, number)
        if word & np.uint64(HAS_ENTRIES) != np.uint64(0):
            return
        if word & np.uint64(SPLITTING) != np.uint64(0):
            relax()
        elif word == np.uint64(0):
            # Entries that were never written say that nothing is mapped.
            if compare_and_swap(segment, number, word, np.uint64(HAS_ENTRIES)):
                return
        elif compare_and_swap(segment, number, word, word | np.uint64(SPLITTING)):
            for k in range(SEGMENT_PAGES):
                entry[number * SEGMENT_PAGES + k] = np.uint32(np.int64(word) + k)
            store_release(segment, number, np.uint64(HAS_ENTRIES))
            return


@kernel
def map_segment(segment: U64, entry: U32, pages: I64, frames: I64, i: Integer, last: Integer) -> int:
    """Map the whole segment that begins at ``pages[i]``, if ``frames[i:last]`` have it in one piece and it is empty.

    segment : uint64[s]; entry : uint32[m]. Returns the number of pages mapped: all of a segment, or 0.
    """
    page = pages[i]
    if page % SEGMENT_PAGES != 0 or i + SEGMENT_PAGES > last or page + SEGMENT_PAGES > entry.size:
        return 0
    one_piece = True
    for k in range(1, SEGMENT_PAGES):
        one_piece &= (pages[i + k] == page + k) & (frames[i + k] == frames[i] + k)
    if one_piece and compare_and_swap(segment, page >> SEGMENT_SHIFT, np.uint64(0), np.uint64(frames[i] + 1)):
        return SEGMENT_PAGES
    return 0


@kernel
def unmap_segment(segment: U64, page: Integer, end: Integer, room: Integer) -> np.int64:
    """Clear the segment that begins at `page` if it ends by `end`, has no more than `room` pages and lies in one piece.

    segment : uint64[s]. Returns the first frame, whose neighbours follow, or -1: nothing was done.
    """
    if page % SEGMENT_PAGES != 0 or page + SEGMENT_PAGES > end or room < SEGMENT_PAGES:
        return np.int64(-1)
    word = load_acquire(segment, page >> SEGMENT_SHIFT)
    whole = word != np.uint64(0) and word & np.uint64(HAS_ENTRIES | SPLITTING) == np.uint64(0)
    if whole and compare_and_swap(segment, page >> SEGMENT_SHIFT, word, np.uint64(0)):
        return np.int64(word) - 1
    return np.int64(-1)


# --- either kind ---------------------------------------------------------------------------------------------------
# Each is said twice below, once for each kind; numba takes the one that fits the type of the table.


def table_size(pte: Table) -> int:
    """Pages that the table is for."""
    raise NotImplementedError("only kernels call it")


def load_entry(pte: Table, page: Integer) -> np.uint32:
    """What is mapped at `page`, as it is now: frame + 1, or 0."""
    raise NotImplementedError("only kernels call it")


def maps_eight(pte: Table, page: Integer, value: Integer) -> bool:
    """Whether the entries of `page` and its seven neighbours are `value` and the numbers that follow it."""
    raise NotImplementedError("only kernels call it")


def set_if_absent(pte: Table, page: Integer, value: Integer) -> bool:
    """Enter `value` (frame + 1) at `page`; false if something is mapped there."""
    raise NotImplementedError("only kernels call it")


def clear_entry(pte: Table, page: Integer) -> np.uint32:
    """Take out what is mapped at `page`, and give it back: frame + 1, or 0."""
    raise NotImplementedError("only kernels call it")


def map_many(pte: Table, pages: I64, frames: I64, i: Integer, last: Integer) -> int:
    """Map some of ``pages[i:last]`` at once: how many, 0 where they have to be mapped one by one."""
    raise NotImplementedError("only kernels call it")


def unmap_many(pte: Table, page: Integer, end: Integer, room: Integer) -> np.int64:
    """Clear a whole segment from `page` on at once: its first frame, or -1 where they have to be cleared one by one."""
    raise NotImplementedError("only kernels call it")


def _either(accessor: Callable[..., Any], flat: Callable[..., Any], segmented: Callable[..., Any]) -> None:
    """What kernels get for `accessor`: `flat` for an array, `segmented` for a pair of them."""

    def chosen(pte: Any, *_more: Any) -> Callable[..., Any]:
        return segmented if isinstance(pte, types.BaseTuple) else flat

    overload(accessor, strict=False)(chosen)


_either(
    table_size,
    lambda pte: pte.size,
    lambda pte: pte[1].size,
)
_either(
    load_entry,
    lambda pte, page: load_acquire(pte, page),
    lambda pte, page: load_segment_entry(pte[0], pte[1], page),
)


def _flat_maps_eight(pte: Any, page: Any, value: Any) -> Any:
    same = load_acquire(pte, page) == value
    for k in range(1, EIGHT):
        same &= load_acquire(pte, page + k) == np.uint32(value + np.uint32(k))
    return bool(same)


def _segmented_maps_eight(pte: Any, page: Any, value: Any) -> Any:
    word = load_acquire(pte[0], page >> SEGMENT_SHIFT)
    if page % SEGMENT_PAGES <= SEGMENT_PAGES - EIGHT and word & np.uint64(HAS_ENTRIES) == np.uint64(0):
        return word != np.uint64(0) and np.int64(word & np.uint64(FIRST_ENTRY)) + page % SEGMENT_PAGES == value
    same = load_segment_entry(pte[0], pte[1], page) == value
    for k in range(1, EIGHT):
        same &= load_segment_entry(pte[0], pte[1], page + k) == np.uint32(value + np.uint32(k))
    return bool(same)


_either(maps_eight, _flat_maps_eight, _segmented_maps_eight)


def _flat_set(pte: Any, page: Any, value: Any) -> Any:
    return compare_and_swap(pte, page, np.uint32(NO_FRAME), np.uint32(value))


def _segmented_set(pte: Any, page: Any, value: Any) -> Any:
    if load_segment_entry(pte[0], pte[1], page) != NO_FRAME:
        return False
    split_segment(pte[0], pte[1], page >> SEGMENT_SHIFT)
    return compare_and_swap(pte[1], page, np.uint32(NO_FRAME), np.uint32(value))


_either(set_if_absent, _flat_set, _segmented_set)


def _flat_clear(pte: Any, page: Any) -> Any:
    return exchange(pte, page, np.uint32(NO_FRAME))


def _segmented_clear(pte: Any, page: Any) -> Any:
    if load_segment_entry(pte[0], pte[1], page) == NO_FRAME:
        return np.uint32(NO_FRAME)
    split_segment(pte[0], pte[1], page >> SEGMENT_SHIFT)
    return exchange(pte[1], page, np.uint32(NO_FRAME))


_either(clear_entry, _flat_clear, _segmented_clear)
_either(
    map_many,
    lambda pte, pages, frames, i, last: 0,
    lambda pte, pages, frames, i, last: map_segment(pte[0], pte[1], pages, frames, i, last),
)
_either(
    unmap_many,
    lambda pte, page, end, room: np.int64(-1),
    lambda pte, page, end, room: unmap_segment(pte[0], page, end, room),
)


@kernel
def load_entries(pte: Table, pages: I64, shift: Integer, values: U32) -> None:
    """What is mapped at each of `pages`, moved by `shift`; 0 outside the table. pte : uint32[m]; values : uint32[k]."""
    for i in range(pages.size):
        page = pages[i] + shift
        values[i] = load_entry(pte, page) if 0 <= page < table_size(pte) else np.uint32(NO_FRAME)


@kernel
def frames_between(pte: Table, first: Integer, last: Integer, frames: I64) -> None:
    """The frame behind each page of ``[first, last)``, -1 where there is none. frames : int64[k], written."""
    for page in range(first, last):
        frames[page - first] = np.int64(load_entry(pte, page)) - 1


@kernel
def count_mapped(pte: Table, first: Integer, last: Integer) -> int:
    """Pages of ``[first, last)`` that are mapped."""
    mapped = 0
    for page in range(first, last):
        mapped += load_entry(pte, page) != NO_FRAME
    return mapped
