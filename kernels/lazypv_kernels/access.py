"""Accesses: guests and the host touch pages, by the decision table of semantics 7; share and pin.

An access reads its mapping, holds the frame, reads mapping and owner again, touches, lets go. That is what makes
unmapping safe: who clears the mapping and then finds the frame untouched knows that nobody writes to it any more.
"""

from __future__ import annotations

import numpy as np

from lazypv_kernels.arrays import I64, U8, U16, U32, U64, Integer, Table
from lazypv_kernels.claims import BUSY, claim, let_go, publish, touch
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import (
    ASCE,
    COUNT_BUSY,
    COUNT_DONE,
    COUNT_REFUSED,
    NO_FRAME,
    NS,
    PAGE_SIZE,
    PSH,
    RC_BUSY,
    RC_DONE,
    SEC,
    SHR,
)
from lazypv_kernels.native import address_of, copy_bytes, fence, stream_copy_page, stream_zero_page
from lazypv_kernels.tables import load_entry, table_size
from lazypv_kernels.tracking import note_store

TRANSLATION = 0x11
"""Program interruption: no mapping (page translation)."""
SECURE_STORAGE_ACCESS = 0x3D
NON_SECURE_STORAGE_ACCESS = 0x3E
SECURE_STORAGE_VIOLATION = 0x3F
PROTECTION = 0x04
"""Program interruption: a snapshot has still to save the page that is to change."""
NOTIFICATION = 0x6C
"""Intercept 108: the guest takes back a page that the host has pinned."""

LOAD = 0
STORE_WORD = 1
STORE_PAGE = 2
COPY_PAGE = 3
"""What an access does: read all of the page and hash it; write one word; write the whole page and one word in it; write
the whole page as it is given."""

_WORDS = PAGE_SIZE // 8
_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX_ONCE = np.uint64(0xBF58476D1CE4E5B9)
_MIX_TWICE = np.uint64(0x94D049BB133111EB)


@kernel
def verdict(seen: Integer, same_owner: bool, same_page: bool, protected: bool) -> int:
    """Interruption code of an access to a frame in state `seen`, 0 for none (semantics 7, decision table)."""
    if not protected:
        return 0 if seen == NS or seen == SHR or seen == PSH or seen == ASCE else SECURE_STORAGE_ACCESS
    if seen == NS or seen == ASCE:
        return NON_SECURE_STORAGE_ACCESS
    if seen > PSH:
        return SECURE_STORAGE_VIOLATION
    if same_owner and same_page:
        return 0
    if seen == SEC or same_owner:
        return SECURE_STORAGE_VIOLATION
    return NON_SECURE_STORAGE_ACCESS


@kernel
def stamp_offset(page: Integer) -> np.int64:
    """Which 8-byte word of guest `page` carries its run's stamp: spread, so that half a cleared page hides none."""
    return np.int64((np.uint64(page) * _MIX) >> np.uint64(55)) % _WORDS


@kernel
def hash_words(words: U64, row: Integer) -> np.uint64:
    """64-bit hash of row `row` of ``uint64[n, 512]``, not cryptographic: the sum of its words, each mixed by its place.

    No word waits for the one before it, so that the loop is compiled to vectors: two and a half times as fast as four
    lanes that hand on what they have.
    """
    total = np.uint64(0)
    for k in range(_WORDS):
        word = words[row, k] + np.uint64(k) * _MIX
        word = (word ^ (word >> np.uint64(32))) * _MIX_ONCE
        word = (word ^ (word >> np.uint64(29))) * _MIX_TWICE
        total += word ^ (word >> np.uint64(32))
    return total


@kernel
def entry_of(pte: Table, page: Integer) -> np.uint32:
    """What the address translation says of guest `page`; outside of it nothing is mapped."""
    return load_entry(pte, page) if 0 <= page < table_size(pte) else np.uint32(NO_FRAME)


@kernel
def guest_access(
    words: U64, state: U8, owner: U16, guest_page: U32, directory: U64, pte: Table, slot: Integer, pages: I64,
    operation: Integer, values: U64, source: U64, rows: I64, first: Integer, last: Integer, code: U16, counts: I64,
) -> None:  # fmt: skip
    """A guest touches its ``pages[first:last]``; slot 0 is a guest that is not protected.

    words : uint64[n, 512], the contents as words (uint64[0, 512] without contents); pte : uint32[m];
    values : uint64[k], LOAD: written, hash of the page; STORE_WORD, STORE_PAGE: the word at the page's stamp offset;
    source : uint64[r, 512] and rows : int64[k], STORE_PAGE: what is written, a negative row is a page of zeroes;
    code : uint16[k], written: RC_DONE, RC_BUSY, or the interruption.
    """
    for i in range(first, last):
        page = pages[i]
        entry = entry_of(pte, page)
        if entry == NO_FRAME:
            code[i] = TRANSLATION
            counts[COUNT_REFUSED] += 1
            continue
        frame = np.int64(entry) - 1
        seen = touch(state, frame)
        if seen == BUSY:
            code[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        if load_entry(pte, page) != entry:
            let_go(state, frame)
            code[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        why = verdict(seen, owner[frame] == slot, guest_page[frame] == page, slot != 0)
        if why == 0 and operation != LOAD and not note_store(directory, slot, page):
            why = PROTECTION
        if why != 0:
            let_go(state, frame)
            code[i] = why
            counts[COUNT_REFUSED] += 1
            continue
        if words.shape[0] > 0:
            if operation == LOAD:
                values[i] = hash_words(words, frame)
            else:
                if operation >= STORE_PAGE:
                    if rows[i] >= 0:
                        stream_copy_page(words, frame, source, rows[i])
                    else:
                        stream_zero_page(words, frame)
                    fence()
                if operation != COPY_PAGE:
                    words[frame, stamp_offset(page)] = values[i]
        let_go(state, frame)
        code[i] = RC_DONE
        counts[COUNT_DONE] += 1


@kernel
def guest_share(
    state: U8, owner: U16, guest_page: U32, directory: U64, pte: Table, slot: Integer, pages: I64, share: bool,
    first: Integer, last: Integer, code: U16, counts: I64,
) -> None:  # fmt: skip
    """SET_SHARED_ACCESS (`share`) or REMOVE_SHARED_ACCESS by the guest in `slot`, for ``pages[first:last]``.

    code : uint16[k], written: RC_DONE, RC_BUSY, NOTIFICATION (pinned by the host), or the interruption of an access.
    """
    for i in range(first, last):
        page = pages[i]
        entry = entry_of(pte, page)
        if entry == NO_FRAME:
            code[i] = TRANSLATION
            counts[COUNT_REFUSED] += 1
            continue
        frame = np.int64(entry) - 1
        seen = claim(state, frame)
        if seen == BUSY:
            code[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        if load_entry(pte, page) != entry:
            publish(state, frame, seen)
            code[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        why = verdict(seen, owner[frame] == slot, guest_page[frame] == page, True)
        after: Integer = seen
        if why == 0:
            if share and seen == SEC:
                after = SHR
            elif not share and seen == SHR:
                after = SEC
            elif not share and seen == PSH:
                why = NOTIFICATION
        if after != seen and not note_store(directory, slot, page):
            why, after = PROTECTION, seen
        publish(state, frame, after)
        code[i] = RC_DONE if why == 0 else why
        counts[COUNT_DONE if why == 0 else COUNT_REFUSED] += 1


@kernel
def pin_pages(state: U8, refused_rc: Integer, frames: I64, first: Integer, last: Integer, rc: U16, counts: I64) -> None:
    """PIN_PAGE_SHARED for ``frames[first:last]``: shared becomes pinned; anything else is refused."""
    for i in range(first, last):
        seen = claim(state, frames[i])
        if seen == BUSY:
            rc[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        shared = seen == SHR or seen == PSH
        publish(state, frames[i], PSH if shared else seen)
        rc[i] = RC_DONE if shared else refused_rc
        counts[COUNT_DONE if shared else COUNT_REFUSED] += 1


@kernel
def unpin_pages(
    state: U8, owner: U16, guest_page: U32, directory: U64, pte: Table, slot: Integer, not_mapped_rc: Integer,
    refused_rc: Integer, pages: I64, first: Integer, last: Integer, rc: U16, counts: I64,
) -> None:  # fmt: skip
    """UNPIN_PAGE_SHARED for guest ``pages[first:last]`` of `slot`: pinned becomes secure; anything else is refused."""
    for i in range(first, last):
        page = pages[i]
        entry = entry_of(pte, page)
        if entry == NO_FRAME:
            rc[i] = not_mapped_rc
            counts[COUNT_REFUSED] += 1
            continue
        frame = np.int64(entry) - 1
        seen = claim(state, frame)
        if seen == BUSY:
            rc[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        pinned = seen == PSH and owner[frame] == slot and guest_page[frame] == page
        if pinned and not note_store(directory, slot, page):
            publish(state, frame, seen)
            rc[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        publish(state, frame, SEC if pinned else seen)
        rc[i] = RC_DONE if pinned else refused_rc
        counts[COUNT_DONE if pinned else COUNT_REFUSED] += 1


@kernel
def _host_may_store(state_seen: Integer, owner: U16, guest_page: U32, directory: U64, frame: Integer) -> bool:
    """Whether the host may change a held `frame` now: a guest's shared page not before a snapshot has saved it."""
    shared = state_seen == SHR or state_seen == PSH
    return not shared or note_store(directory, owner[frame], guest_page[frame])


@kernel
def host_clear(
    words: U64, state: U8, owner: U16, guest_page: U32, directory: U64, frames: I64, first: Integer, last: Integer,
    code: U16, counts: I64,
) -> None:  # fmt: skip
    """The host clears ``frames[first:last]``, as when it hands out fresh memory; 0x3d where it may not.

    words : uint64[n, 512]; state : uint8[n]; code : uint16[k], written.
    """
    for i in range(first, last):
        frame = frames[i]
        seen = touch(state, frame)
        if seen == BUSY:
            code[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        why = verdict(seen, False, False, False)
        if why == 0 and not _host_may_store(seen, owner, guest_page, directory, frame):
            let_go(state, frame)
            code[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        if why == 0 and words.shape[0] > 0:
            stream_zero_page(words, frame)
            fence()
        let_go(state, frame)
        code[i] = RC_DONE if why == 0 else why
        counts[COUNT_DONE if why == 0 else COUNT_REFUSED] += 1


@kernel
def host_copy(
    contents: U8, state: U8, owner: U16, guest_page: U32, directory: U64, frames: I64, buffer: U8, write: bool,
    places: I64, start: Integer, end: Integer, first: Integer, last: Integer, code: U16,
) -> None:  # fmt: skip
    """The host copies bytes out of ``frames[first:last]`` into ``buffer``, or into them if `write`.

    contents : uint8[n, 4096], or uint8[0, 4096], then nothing is copied; buffer : uint8[k, 4096]; code : uint16[k],
    written: RC_DONE, RC_BUSY or 0x3d. Page i is number ``places[i]`` of an access that goes over bytes ``[start, end)``
    of all its pages: no other byte is read or written, since a guest may be writing it.
    """
    for i in range(first, last):
        frame = frames[i]
        seen = touch(state, frame)
        if seen == BUSY:
            code[i] = RC_BUSY
            continue
        why = verdict(seen, False, False, False)
        if why == 0 and write and not _host_may_store(seen, owner, guest_page, directory, frame):
            let_go(state, frame)
            code[i] = RC_BUSY
            continue
        if why == 0 and contents.shape[0] > 0:
            low = max(start - places[i] * PAGE_SIZE, 0)
            high = max(min(end - places[i] * PAGE_SIZE, PAGE_SIZE), low)
            inside, beside = address_of(contents, frame) + np.uint64(low), address_of(buffer, i) + np.uint64(low)
            if write:
                copy_bytes(inside, beside, high - low)
            else:
                copy_bytes(beside, inside, high - low)
        let_go(state, frame)
        code[i] = RC_DONE if why == 0 else why
