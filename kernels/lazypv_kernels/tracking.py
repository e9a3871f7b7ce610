"""Dirty tracking: in which generation each page of a protected guest was last written, and last saved.

A store notes itself before it changes a byte. While a snapshot is being saved it may change only what has been saved:
that is copy-on-write, and what makes the pages of a running save those of one moment.
"""

from __future__ import annotations

import numpy as np

from lazypv_kernels.arrays import I64, U8, U16, U32, U64, Integer, Table
from lazypv_kernels.claims import BUSY, RECORD_BUSY, claim, claim_record, publish, publish_record
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import (
    DIR_GENERATION,
    DIR_TRACK,
    DIR_WORDS,
    KIND_PLAIN,
    KIND_SEALED,
    NO_FRAME,
    PAGE_SIZE,
    RC_BUSY,
    RC_DONE,
    RECORD_IN,
    RECORD_OUT_SHARED,
    RECORD_STATE,
    SEC,
    TRACK_CLOSED,
    TRACK_MODE,
    TRACK_SAVING,
    TRACK_SHIFT,
)
from lazypv_kernels.native import (
    address_of,
    copy_bytes,
    fence,
    load_acquire,
    load_half_at,
    store_half_at,
    store_release,
)
from lazypv_kernels.tables import load_entry

RC_COPIED = 0x0002
"""The page was copied aside."""


@kernel
def note_store(directory: U64, slot: Integer, page: Integer) -> bool:
    """Note that the guest in `slot` is about to change `page`, whose frame is held; false if it has to wait.

    The generation is read again after the note: whoever closes the stores and then reads the notes sees this one, or
    this store sees that it is closed.
    """
    row = np.int64(slot) * DIR_WORDS
    track = directory[row + DIR_TRACK]
    if track == np.uint64(0):
        return True
    at = track + np.uint64(8) * np.uint64(page)
    while True:
        word = load_acquire(directory, row + DIR_GENERATION)
        now = np.uint32(word >> np.uint64(TRACK_SHIFT))
        mode = word & np.uint64(TRACK_MODE)
        if mode == np.uint64(TRACK_CLOSED):
            return False
        if mode == np.uint64(TRACK_SAVING) and load_half_at(at + np.uint64(4)) != now:
            return False
        if load_half_at(at) == now:
            return True
        store_half_at(at, now)
        fence()
        if load_acquire(directory, row + DIR_GENERATION) == word:
            return True


@kernel
def publish_word(directory: U64, at: Integer, word: Integer) -> None:
    """Put `word` into ``directory[at]``: in force before anything that the caller does next."""
    store_release(directory, at, np.uint64(word))
    fence()


@kernel
def choose_pages(track: U32, records: U64, since: Integer, now: Integer, pages: I64) -> int:
    """Pages that a snapshot has to hold: how many; stores are closed. The others may be written from now on.

    track : uint32[m, 2]; records : uint64[m]; since : the first generation whose stores count, 0 for all pages;
    pages : int64[m], written. A shared page that the host holds now can have been changed by it without a note.
    """
    count = 0
    for page in range(track.shape[0]):
        outside = records[page] & np.uint64(RECORD_STATE) == np.uint64(RECORD_OUT_SHARED)
        if track[page, 0] >= since or outside:
            pages[count] = page
            count += 1
        else:
            track[page, 1] = now
    return count


@kernel
def copy_aside(
    contents: U8, state: U8, owner: U16, guest_page: U32, directory: U64, slot: Integer, pte: Table, track: U32,
    now: Integer, pages: I64, rows: I64, aside: U8, aside_kind: U8, aside_of: U32, code: U16,
) -> int:  # fmt: skip
    """Copy-on-write: keep `pages`, which the guest is about to change, as they are; how many were copied.

    rows : int64[k], free rows of aside : uint8[r, 4096], one a page; aside_of : uint32[m], written: row + 1;
    code : uint16[k], written: RC_COPIED, RC_DONE (nothing to keep), RC_BUSY.
    """
    copied = 0
    for i in range(pages.size):
        page = pages[i]
        code[i] = RC_DONE
        if track[page, 1] == now:
            continue
        record = claim_record(directory, slot, page, True)
        if record == np.uint64(RECORD_BUSY):
            code[i] = RC_BUSY
            continue
        entry = load_entry(pte, page)
        if record & np.uint64(RECORD_STATE) != np.uint64(RECORD_IN) or entry == NO_FRAME:
            publish_record(directory, slot, page, True, record)
            continue
        frame = np.int64(entry) - 1
        seen = claim(state, frame)
        if seen == BUSY:
            publish_record(directory, slot, page, True, record)
            code[i] = RC_BUSY
            continue
        if track[page, 1] != now and owner[frame] == slot and guest_page[frame] == page:
            copy_bytes(address_of(aside, rows[i]), address_of(contents, frame), PAGE_SIZE)
            aside_kind[rows[i]] = KIND_SEALED if seen == SEC else KIND_PLAIN
            aside_of[page] = rows[i] + 1
            fence()
            track[page, 1] = now
            code[i] = RC_COPIED
            copied += 1
        publish(state, frame, seen)
        publish_record(directory, slot, page, True, record)
    return copied
