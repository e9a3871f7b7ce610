"""The host's byte of each frame: references, freeze, marks; and the page table entries that hold them.

A free frame is a byte of zero (:mod:`.allocation`). A frozen frame has no references but bears the mark. 63 references
mean "the side table knows": kernels stop there and leave the frame to Python.
"""

from __future__ import annotations

import numpy as np

from lazypv_kernels.arrays import I64, U8, U16, Flags, Integer, Table
from lazypv_kernels.claims import EACH, EIGHT, eight_from
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import (
    MARK_SECURE,
    MARK_WRITEBACK,
    MARKS,
    NO_FRAME,
    RC_DONE,
    REFERENCES,
    REFERENCES_OVERFLOW,
)
from lazypv_kernels.native import (
    address_of,
    compare_and_swap,
    exchange,
    load_acquire,
    load_word_at,
    relax,
    swap_word_at,
)
from lazypv_kernels.tables import (
    SEGMENT_PAGES,
    clear_entry,
    load_entry,
    map_many,
    maps_eight,
    set_if_absent,
    table_size,
    unmap_many,
)

TAKEN = 0
FREE = 1
OVERFLOW = 2
"""Answers of :func:`get_reference`."""
OWED = 3
"""Of :func:`hold_mapped`: a reference was taken that only the side table can drop again."""


@kernel
def get_reference(host: U8, frame: Integer) -> int:
    """One more reference on `frame`; waits while it is frozen, as the walker waits for the page table lock.

    host : uint8[n]. TAKEN, FREE (nobody has it: the mapping is stale) or OVERFLOW (63: not taken).
    """
    while True:
        seen = load_acquire(host, frame)
        if seen == 0:
            return FREE
        if seen & REFERENCES == 0:
            relax()
            continue
        if seen & REFERENCES >= REFERENCES_OVERFLOW - 1:
            return OVERFLOW
        if compare_and_swap(host, frame, seen, np.uint8(seen + 1)):
            return TAKEN


@kernel
def drop_reference(host: U8, frame: Integer) -> bool:
    """Undo :func:`get_reference`; marks go with the last reference.

    False, and nothing done, if the count has gone over to the side table meanwhile: the byte does not say it any more.
    """
    while True:
        seen = load_acquire(host, frame)
        if seen & REFERENCES == REFERENCES_OVERFLOW:
            return False
        after = np.uint8(seen - 1)
        if after & REFERENCES == 0:
            after = np.uint8(0)
        if compare_and_swap(host, frame, seen, np.uint8(after)):
            return True


@kernel
def hold_mapped(pte: Table, entry: Integer, host: U8) -> tuple[int, np.int64]:
    """The frame behind one entry, with one reference more: (TAKEN, FREE, OVERFLOW or OWED; frame or -1).

    The entry is read again once the reference is there: meanwhile the page may have been unmapped and handed out anew.
    """
    value = load_entry(pte, entry) if 0 <= entry < table_size(pte) else np.uint32(NO_FRAME)
    if value == NO_FRAME:
        return FREE, np.int64(-1)
    frame = np.int64(value) - 1
    answer = get_reference(host, frame)
    if answer == TAKEN and load_entry(pte, entry) != value:
        if not drop_reference(host, frame):
            return OWED, frame
        return FREE, np.int64(-1)
    return answer, frame


@kernel
def get_references(host: U8, frames: I64, first: Integer, last: Integer) -> Integer:
    """One more reference on each of ``frames[first:last]``; index of the first that it leaves to Python, or `last`."""
    for i in range(first, last):
        if get_reference(host, frames[i]) != TAKEN:
            return i
    return last


@kernel
def gather(pte: Table, at: Integer, end: Integer, host: U8, limit: Integer, frames: I64) -> tuple[int, Integer, int]:
    """Present entries of ``pte[at:end]``, at most `limit`, one reference each.

    pte : uint32[m]; frames : int64[limit], written. Returns (count, next entry, left). Where `left` is -1, the entry at
    `next` is present but its frame is the side table's; where it is more than 0, that many frames behind `count` have a
    reference too many, which only the side table can drop.
    """
    count = 0
    entry = np.int64(at) - 1
    while entry + 1 < end:
        entry += 1
        if count == limit:
            return count, entry, 0
        if count + EIGHT <= limit and entry + EIGHT <= end:
            held = hold_eight(pte, entry, host, frames, count)
            if held < 0:
                return count, entry, -held
            if held > 0:
                count += held
                entry += held - 1
                continue
        answer, frame = hold_mapped(pte, entry, host)
        if answer == OVERFLOW:
            return count, entry, -1
        if answer != FREE:
            frames[count] = frame
        if answer == OWED:
            return count, entry, 1
        if answer == TAKEN:
            count += 1
    return count, np.int64(end), 0


@kernel
def hold_eight(pte: Table, entry: Integer, host: U8, frames: I64, at: Integer) -> int:
    """One more reference on each of eight neighbouring frames behind ``pte[entry:entry+8]``, or on none.

    What :func:`hold_mapped` does eight times, with one locked instruction. frames : int64[k], written from `at` on.
    Returns 8; or 0, none, it is left to :func:`hold_mapped`; or how many frames, below 0, have a reference too many.
    """
    value = load_entry(pte, entry)
    if value == NO_FRAME or not maps_eight(pte, entry, value):
        return 0
    frame = np.int64(value) - 1
    address = address_of(host, frame)
    if address & np.uint64(EIGHT - 1) != np.uint64(0):
        return 0
    seen = load_word_at(address)
    if not _all_between(seen, 1, REFERENCES_OVERFLOW - 2) or not swap_word_at(address, seen, seen + np.uint64(EACH)):
        return 0
    if maps_eight(pte, entry, value):
        for k in range(EIGHT):
            frames[at + k] = frame + k
        return EIGHT
    owed = 0
    for k in range(EIGHT):
        if not drop_reference(host, frame + k):
            frames[at + owed] = frame + k
            owed += 1
    return -owed


@kernel
def _all_between(word: Integer, low: Integer, high: Integer) -> bool:
    """Whether each of the eight reference counts in `word` is `low` to `high` (1 to 62): seven bits hold the sums."""
    counts = word & np.uint64(EACH * REFERENCES)
    above = np.uint64(EACH * (REFERENCES + 1))
    enough = (counts + np.uint64(EACH) * np.uint64(REFERENCES + 1 - low)) & above == above
    return bool(enough and (counts + np.uint64(EACH) * np.uint64(REFERENCES - high)) & above == np.uint64(0))


@kernel
def look_up(pte: Table, pages: I64, host: U8, frames: I64, first: Integer, last: Integer) -> Integer:
    """The frame behind each of ``pages[first:last]``, with one reference more; -1 where there is none.

    frames : int64[k], written. Gives the index where it stopped: `last`, or a frame of the side table; there stands -1,
    or below that -2 less the frame that has a reference too many.
    """
    for i in range(first, last):
        answer, frame = hold_mapped(pte, pages[i], host)
        frames[i] = frame if answer == TAKEN else -1
        if answer == OWED:
            frames[i] = -2 - frame
        if answer == OVERFLOW or answer == OWED:
            return i
    return last


@kernel
def settle(
    host: U8, frames: I64, first: Integer, last: Integer, rc: U16, clear_mark: bool, drop: bool
) -> tuple[int, Integer, bool]:
    """After a call on ``frames[first:last]``: clear the mark where it succeeded, drop one reference each.

    rc : uint16[k], the answers; clear_mark, drop : whether to. Returns (frames freed, index where it stopped, fault):
    stopped early at a frame of the side table (fault false) or without a reference to drop (fault true).
    """
    freed = 0
    i = np.int64(first) - 1
    while i + 1 < last:
        i += 1
        frame = frames[i]
        if drop and eight_from(frames, i, last, host):
            answer = _settle_eight(host, frame, rc, i, clear_mark)
            if answer >= 0:
                freed += answer
                i += EIGHT - 1
                continue
        while True:
            seen = load_acquire(host, frame)
            if seen != 0 and seen & REFERENCES == 0:
                # Frozen: somebody imports it under the page table lock, for which an unmapping waits.
                relax()
                continue
            after = seen
            if clear_mark and rc[i] == RC_DONE:
                after = after & ~np.uint8(MARK_SECURE)
            if drop:
                if seen & REFERENCES == REFERENCES_OVERFLOW:
                    return freed, i, False
                if seen & REFERENCES == 0:
                    return freed, i, True
                after = after - 1
                if after & REFERENCES == 0:
                    after = after & ~np.uint8(MARKS)
            if compare_and_swap(host, frame, seen, np.uint8(after)):
                break
        if drop and after == 0:
            freed += 1
    return freed, np.int64(last), False


@kernel
def _settle_eight(host: U8, frame: Integer, rc: U16, i: Integer, clear_mark: bool) -> int:
    """Settle `frame` and its seven neighbours with one locked instruction; how many were freed, -1: left to others.

    All of them lose their last reference, or none does.
    """
    address = address_of(host, frame)
    seen = load_word_at(address)
    after, freed = np.uint64(0), EIGHT
    if seen & np.uint64(EACH * REFERENCES) != np.uint64(EACH):
        if not _all_between(seen, 2, REFERENCES_OVERFLOW - 1):
            return -1
        after, freed = seen - np.uint64(EACH), 0
        if clear_mark:
            done = True
            for k in range(EIGHT):
                done &= rc[i + k] == RC_DONE
            if not done:
                return -1
            after &= ~np.uint64(EACH * MARK_SECURE)
    return freed if swap_word_at(address, seen, after) else -1


@kernel
def exchange_byte(host: U8, frame: Integer, seen: Integer, after: Integer) -> bool:
    """Make the byte of `frame` `after` if it is still `seen`; how Python changes what kernels change beside it."""
    return compare_and_swap(host, frame, np.uint8(seen), np.uint8(after))


@kernel
def mark_frames(host: U8, frames: I64, mark: Integer, on: bool, first: Integer, last: Integer) -> None:
    """Set or clear `mark` on each of ``frames[first:last]``; references stay as they are."""
    for i in range(first, last):
        while True:
            seen = load_acquire(host, frames[i])
            after = seen | np.uint8(mark) if on else seen & ~np.uint8(mark)
            if compare_and_swap(host, frames[i], seen, np.uint8(after)):
                break


@kernel
def freeze(
    host: U8, frames: I64, expected: Integer, absent: Integer, held: Integer, first: Integer, last: Integer, rc: U16
) -> int:
    """Freeze each of ``frames[first:last]`` that has exactly `expected` references, and set its mark (semantics 2.5).

    rc : uint16[k], written: RC_DONE frozen, `held` somebody else holds it or writes it back, `absent` it is negative.
    Returns how many are frozen.
    """
    frozen = 0
    for i in range(first, last):
        frame = frames[i]
        if frame < 0:
            rc[i] = absent
            continue
        seen = load_acquire(host, frame)
        rc[i] = held
        if seen & MARK_WRITEBACK == 0 and seen & REFERENCES == expected and expected != 0:
            if compare_and_swap(host, frame, seen, np.uint8(MARK_SECURE)):
                rc[i] = RC_DONE
                frozen += 1
    return frozen


@kernel
def unfreeze(host: U8, frames: I64, expected: Integer, first: Integer, last: Integer, rc: U16) -> None:
    """Give the frozen ones among ``frames[first:last]`` (rc : RC_DONE) their `expected` references back."""
    for i in range(first, last):
        if rc[i] == RC_DONE:
            exchange(host, frames[i], np.uint8(MARK_SECURE | expected))


@kernel
def marked(host: U8, frames: I64, mark: Integer, first: Integer, last: Integer, answer: Flags) -> None:
    """answer : bool[k], written: whether each of ``frames[first:last]`` bears `mark`."""
    for i in range(first, last):
        answer[i] = load_acquire(host, frames[i]) & mark != 0


@kernel
def map_pages(pte: Table, pages: I64, frames: I64, first: Integer, last: Integer, mapped: U8) -> None:
    """Enter ``frames[first:last]`` at ``pages``; mapped : uint8[k], written: 0 where another thread was first."""
    i = np.int64(first)
    while i < last:
        many = map_many(pte, pages, frames, i, last)
        if many > 0:
            mapped[i : i + many] = 1
            i += many
        else:
            mapped[i] = set_if_absent(pte, pages[i], np.uint32(frames[i] + 1))
            i += 1


@kernel
def unmap(pte: Table, at: Integer, end: Integer, limit: Integer, frames: I64) -> tuple[int, int]:
    """Clear present entries of ``pte[at:end]``, at most `limit`; (count, next entry).

    frames : int64[limit], written: the frames, whose mapping reference is now the caller's to drop.
    """
    count = 0
    entry = np.int64(at)
    while entry < end:
        if count == limit:
            return count, int(entry)
        first = unmap_many(pte, entry, end, limit - count)
        if first >= 0:
            for k in range(SEGMENT_PAGES):
                frames[count + k] = first + k
            count += SEGMENT_PAGES
            entry += SEGMENT_PAGES
            continue
        if load_entry(pte, entry) != NO_FRAME:
            value = clear_entry(pte, entry)
            if value != NO_FRAME:
                frames[count] = np.int64(value) - 1
                count += 1
        entry += 1
    return count, int(end)
