"""Scans: count and find frames by what they are; these decide the terabyte cases."""

from __future__ import annotations

import numpy as np

from lazypv_kernels.access import hash_words
from lazypv_kernels.arrays import I64, U8, U16, U32, U64, Integer
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import (
    MARK_SECURE,
    NO_FRAME,
    PSH,
    REFERENCES,
    SEC,
    STATE_MASK,
)


@kernel
def first_outside(frames: I64, size: Integer) -> int:
    """Index of the first of `frames` that is no frame of a machine of `size`, or -1. frames : int64[k]."""
    for i in range(frames.size):
        if frames[i] < 0 or frames[i] >= size:
            return i
    return -1


@kernel
def census(state: U8, owner: U16, first: Integer, last: Integer, counts: I64) -> None:
    """Frames of ``[first, last)`` by slot and page state. counts : int64[slots, 8], added to."""
    for frame in range(first, last):
        counts[owner[frame], state[frame] & STATE_MASK] += 1


@kernel
def count_owned(state: U8, owner: U16, slot: Integer, first: Integer, last: Integer) -> int:
    """Frames of ``[first, last)`` that are guest pages (secure, shared or pinned) of `slot`."""
    total = 0
    for frame in range(first, last):
        seen = state[frame] & STATE_MASK
        total += (owner[frame] == slot) & (seen >= SEC) & (seen <= PSH)
    return total


@kernel
def count_owned_below(
    state: U8, owner: U16, guest_page: U32, slot: Integer, limit: Integer, first: Integer, last: Integer
) -> int:
    """The same, guest pages below `limit` only (invariant 22)."""
    total = 0
    for frame in range(first, last):
        seen = state[frame] & STATE_MASK
        total += (owner[frame] == slot) & (seen >= SEC) & (seen <= PSH) & (np.int64(guest_page[frame]) < limit)
    return total


@kernel
def count_broken_frames(state: U8, owner: U16, host: U8, first: Integer, last: Integer, counts: I64) -> None:
    """Frames that contradict an invariant. counts : int64[4], added to.

    [0] free for the host but not non-secure (invariant 1); [1] secure without mark (2); [2] owned without owner, or
    owner without ownership (4); [3] claimed or touched although nothing runs.
    """
    for frame in range(first, last):
        byte = state[frame]
        seen = byte & STATE_MASK
        counts[0] += (host[frame] == 0) & (seen != 0)
        counts[1] += (seen == SEC) & (host[frame] & MARK_SECURE == 0)
        counts[2] += ((seen >= SEC) & (seen <= PSH)) != ((owner[frame] != 0) & (seen <= PSH))
        counts[3] += (byte != seen) & (seen <= PSH)


@kernel
def count_double_owned(
    state: U8, owner: U16, guest_page: U32, slot: Integer, seen_pages: U8, first: Integer, last: Integer
) -> int:
    """Guest pages of `slot` that two frames of ``[first, last)`` hold (invariant 4).

    seen_pages : uint8[pages of the guest], zero at the start, written.
    """
    twice = 0
    for frame in range(first, last):
        seen = state[frame] & STATE_MASK
        if owner[frame] == slot and seen >= SEC and seen <= PSH:
            page = guest_page[frame]
            twice += seen_pages[page] != 0
            seen_pages[page] = 1
    return twice


@kernel
def count_references(host: U8, pte: U32, expected: U8, first: Integer, last: Integer) -> int:
    """Add one to `expected` for each entry of ``pte[first:last]`` that maps a frame. expected : uint8[n]."""
    for entry in range(first, last):
        if pte[entry] != NO_FRAME:
            expected[np.int64(pte[entry]) - 1] += 1
    return 0


@kernel
def compare_references(host: U8, expected: U8, first: Integer, last: Integer, wrong: I64) -> int:
    """Frames of ``[first, last)`` whose reference count is not `expected`; the first few go to wrong : int64[w]."""
    found = 0
    for frame in range(first, last):
        if host[frame] & REFERENCES != expected[frame]:
            if found < wrong.size:
                wrong[found] = frame
            found += 1
    return found


@kernel
def find_words(words: U64, stamps: U64, first: Integer, last: Integer, found: I64) -> int:
    """Frames of ``[first, last)`` that hold one of `stamps` in any aligned word; how many.

    words : uint64[n, 512]; stamps : uint64[s], few; found : int64[f], the first few frames. Asks neither state nor
    owner.
    """
    hits = 0
    for frame in range(first, last):
        hit = False
        for s in range(stamps.size):
            stamp = stamps[s]
            same = np.uint64(0)
            for k in range(words.shape[1]):
                same |= np.uint64(words[frame, k] == stamp)
            hit = hit or same != np.uint64(0)
        if hit:
            if hits < found.size:
                found[hits] = frame
            hits += 1
    return hits


@kernel
def hash_frames(words: U64, first: Integer, last: Integer, hashes: U64) -> int:
    """hashes : uint64[n], written for frames ``[first, last)``."""
    for frame in range(first, last):
        hashes[frame] = hash_words(words, frame)
    return 0


@kernel
def find_hashes(words: U64, table: U64, first: Integer, last: Integer, found: I64) -> int:
    """Frames of ``[first, last)`` whose content hashes to a member of `table`; how many.

    table : uint64[2**b], open addressing, 0 is an empty place; found : int64[f], the first few frames.
    """
    hits = 0
    mask = np.uint64(table.size - 1)
    for frame in range(first, last):
        value = hash_words(words, frame)
        at = value & mask
        while table[at] != np.uint64(0):
            if table[at] == value:
                if hits < found.size:
                    found[hits] = frame
                hits += 1
                break
            at = (at + np.uint64(1)) & mask
    return hits


@kernel
def fill_hash_table(table: U64, values: U64) -> int:
    """Enter `values` (uint64[k]) into an open-addressing `table` (uint64[2**b], at least twice as large, zeroed)."""
    mask = np.uint64(table.size - 1)
    for i in range(values.size):
        if values[i] == np.uint64(0):
            continue
        at = values[i] & mask
        while table[at] != np.uint64(0) and table[at] != values[i]:
            at = (at + np.uint64(1)) & mask
        table[at] = values[i]
    return 0
