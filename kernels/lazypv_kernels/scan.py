"""Scans: count and find frames by what they are; these decide the terabyte cases."""

from __future__ import annotations

import numpy as np

from lazypv_kernels.access import hash_words
from lazypv_kernels.arrays import I64, U8, U16, U32, U64, Integer, Table
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import (
    DON_UV,
    MARK_SECURE,
    NO_FRAME,
    NS,
    PSH,
    REFERENCES,
    SEC,
    STATE_MASK,
)
from lazypv_kernels.native import BITS, bits_equal, count_bits, lowest_bit
from lazypv_kernels.tables import load_entry

ALL_BITS = np.uint64(0xFFFFFFFFFFFFFFFF)
ANY_OWNER = 0xFFFF
"""For scans that ask of no owner: configurations have slots below."""


@kernel
def first_outside(frames: I64, size: Integer) -> int:
    """Index of the first of `frames` that is no frame of a machine of `size`, or -1. frames : int64[k]."""
    for i in range(frames.size):
        if frames[i] < 0 or frames[i] >= size:
            return i
    return -1


@kernel
def _matching(
    state: U8, owner: U16, host: U8, page_state: Integer, slot: Integer, mark: Integer, at: Integer
) -> np.uint64:
    """Which of the 64 frames from `at` on are in `page_state`, belong to `slot` and bear `mark`: a bit each."""
    bits = bits_equal(state, at, np.uint8(STATE_MASK), np.uint8(page_state))
    bits &= bits_equal(host, at, np.uint8(mark), np.uint8(mark))
    if slot != ANY_OWNER:
        bits &= bits_equal(owner, at, np.uint16(0xFFFF), np.uint16(slot))
    return np.uint64(bits)


@kernel
def find_frames(
    state: U8, owner: U16, host: U8, page_state: Integer, slot: Integer, mark: Integer, first: Integer, last: Integer,
    frames: I64,
) -> tuple[int, Integer]:  # fmt: skip
    """Gather frames of ``[first, last)`` in `page_state`, of `slot` or ANY_OWNER, with `mark` or 0; (count, next).

    state, host : uint8[n]; owner : uint16[n]; frames : int64[k], written, at most k. Claims count for nothing.
    """
    count = 0
    at = np.int64(first)
    while at + BITS <= last:
        bits = _matching(state, owner, host, page_state, slot, mark, at)
        if count + count_bits(bits) > frames.size:
            break
        while bits != np.uint64(0):
            frames[count] = at + lowest_bit(bits)
            count += 1
            bits &= bits - np.uint64(1)
        at += BITS
    while at < last:
        if (
            state[at] & STATE_MASK == page_state
            and host[at] & mark == mark
            and (slot == ANY_OWNER or owner[at] == slot)
        ):
            if count == frames.size:
                break
            frames[count] = at
            count += 1
        at += 1
    return count, at


@kernel
def count_frames(
    state: U8, owner: U16, host: U8, page_state: Integer, slot: Integer, mark: Integer, first: Integer, last: Integer
) -> int:
    """How many frames :func:`find_frames` finds."""
    count = 0
    at = np.int64(first)
    while at + BITS <= last:
        count += count_bits(_matching(state, owner, host, page_state, slot, mark, at))
        at += BITS
    while at < last:
        count += (
            (state[at] & STATE_MASK == page_state)
            & (host[at] & mark == mark)
            & ((slot == ANY_OWNER) | (owner[at] == slot))
        )
        at += 1
    return count


@kernel
def find_free_run(host: U8, start: Integer, align: Integer, want: Integer) -> Integer:
    """First multiple of `align`, not before `start`, from which on `want` frames are free; -1 if there is none.

    host : uint8[n]. Every frame is looked at once; a frame that is not free takes the search past it.
    """
    at = (np.int64(start) + align - 1) // align * align
    seen = at
    while at + want <= host.size:
        if seen == at:
            # Where nothing is free there is nothing to align either: a division takes longer than 64 frames.
            while seen + BITS <= host.size and bits_equal(host, seen, np.uint8(0xFF), np.uint8(0)) == np.uint64(0):
                seen += BITS
            if seen > at:
                at = (seen + align - 1) // align * align
                seen = at
                continue
        if seen >= at + want:
            return at
        if seen + BITS <= host.size:
            taken = ~bits_equal(host, seen, np.uint8(0xFF), np.uint8(0))
            if taken == np.uint64(0):
                seen += BITS
                continue
            seen += lowest_bit(taken)
            if seen >= at + want:
                return at
            # Past all that are taken from here on without a gap.
            free = ~(taken >> np.uint64(lowest_bit(taken)))
            seen += lowest_bit(free)
        else:
            if host[seen] == 0:
                seen += 1
                continue
            seen += 1
        at = (seen + align - 1) // align * align
        seen = at
    return -1


@kernel
def census(state: U8, owner: U16, first: Integer, last: Integer, counts: I64) -> None:
    """Frames of ``[first, last)`` by slot and page state. counts : int64[slots, 8], added to.

    Neighbours mostly are alike: 64 of them are counted at once, else one by one.
    """
    at = np.int64(first)
    while at < last:
        slot, seen = owner[at], state[at] & STATE_MASK
        if at + BITS <= last:
            alike = bits_equal(state, at, np.uint8(STATE_MASK), np.uint8(seen))
            if alike & bits_equal(owner, at, np.uint16(0xFFFF), slot) == ALL_BITS:
                counts[slot, seen] += BITS
                at += BITS
                continue
        for frame in range(at, min(at + BITS, last)):
            counts[owner[frame], state[frame] & STATE_MASK] += 1
        at += BITS


@kernel
def count_owned(state: U8, owner: U16, slot: Integer, first: Integer, last: Integer) -> int:
    """Frames of ``[first, last)`` that are guest pages (secure, shared or pinned) of `slot`."""
    total = 0
    at = np.int64(first)
    while at + BITS <= last:
        # Guest pages are states 1 to 3: bit 2 is not set, and not all are clear.
        guests = bits_equal(state, at, np.uint8(DON_UV), np.uint8(NS)) & ~bits_equal(
            state, at, np.uint8(STATE_MASK), np.uint8(NS)
        )
        total += count_bits(guests & bits_equal(owner, at, np.uint16(0xFFFF), np.uint16(slot)))
        at += BITS
    for frame in range(at, last):
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
def count_references(host: U8, pte: Table, expected: U8, first: Integer, last: Integer) -> int:
    """Add one to `expected` for each entry of ``pte[first:last]`` that maps a frame. expected : uint8[n]."""
    for entry in range(first, last):
        value = load_entry(pte, entry)
        if value != NO_FRAME:
            expected[np.int64(value) - 1] += 1
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
