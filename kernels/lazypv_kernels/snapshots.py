"""Rows of a snapshot out of a guest, and into one. How a row and a batch look: :mod:`lazypv_kernels.rows`."""

from __future__ import annotations

import numpy as np

from lazypv_kernels.access import entry_of
from lazypv_kernels.arrays import I64, U8, U16, U32, U64, Integer, Table
from lazypv_kernels.ciphers import open_page, write_nonce
from lazypv_kernels.claims import BUSY, RECORD_BUSY, claim, claim_record, publish, publish_record
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import (
    DIR_TAGS,
    DIR_WORDS,
    KIND_PLAIN,
    KIND_SEALED,
    KIND_ZERO,
    NO_FRAME,
    NS,
    PAGE_SIZE,
    PSH,
    RC_BUSY,
    RC_DONE,
    RECORD_IN,
    RECORD_NEVER,
    RECORD_OUT,
    RECORD_OUT_SHARED,
    RECORD_STATE,
    RECORD_VERSION_SHIFT,
    SCRATCH_SIZE,
    SEC,
    SHR,
    TAG_SIZE,
)
from lazypv_kernels.native import address_of, fence, stream_zero_page
from lazypv_kernels.reading import read_all
from lazypv_kernels.rows import (
    AD_WORDS,
    MAC_PREFIX,
    PAGE_WORDS,
    address_of_row,
    address_row,
    copy_words,
    open_row,
    page_of,
    seal_row,
    write_row,
)
from lazypv_kernels.seal import DOMAIN_LIVE
from lazypv_kernels.tables import load_entry

RC_TORN = 0x0F10
"""The page cannot be saved: what backs it is not what its record says, or was altered."""
RC_IN_SNAPSHOT = 0x0F11
"""The page is still in the snapshot that the guest comes from."""
RC_ALTERED = 0x0F12
"""A row that is not what was sealed."""

CLAIMED_AT_ONCE = 64
"""Pages that are claimed, then sealed, then let go: whoever touches one waits for that long."""


@kernel
def _claim_source(
    state: U8, owner: U16, guest_page: U32, slot: Integer, pte: Table, page: Integer, record: Integer
) -> tuple[Integer, Integer, Integer, Integer]:
    """What backs a page whose record is claimed: (code, frame or -1, the frame's state, kind); the frame is claimed."""
    where = record & np.uint64(RECORD_STATE)
    if where == np.uint64(RECORD_NEVER):
        return RC_DONE, np.int64(-1), NS, KIND_ZERO
    entry = entry_of(pte, page)
    if entry == NO_FRAME:
        return RC_TORN, np.int64(-1), NS, KIND_ZERO
    frame = np.int64(entry) - 1
    seen = np.int64(claim(state, frame))
    if seen == BUSY:
        return RC_BUSY, np.int64(-1), NS, KIND_ZERO
    if load_entry(pte, page) != entry:
        publish(state, frame, seen)
        return RC_BUSY, np.int64(-1), NS, KIND_ZERO
    ours = owner[frame] == slot and guest_page[frame] == page
    if where == np.uint64(RECORD_IN) and ours and SEC <= seen <= PSH:
        return RC_DONE, frame, seen, KIND_SEALED if seen == SEC else KIND_PLAIN
    if where == np.uint64(RECORD_OUT_SHARED) and seen == NS:
        return RC_DONE, frame, seen, KIND_PLAIN
    if where == np.uint64(RECORD_OUT) and seen == NS:
        return RC_DONE, frame, seen, KIND_SEALED
    publish(state, frame, seen)
    return RC_TORN, np.int64(-1), NS, KIND_ZERO


@kernel
def _open_exported(
    contents: U8, frame: Integer, directory: U64, keys: U8, cipher: Integer, slot: Integer, page: Integer,
    record: Integer, nonce: U64, copied: U8, scratch: U8,
) -> bool:  # fmt: skip
    """Open an exported page in copied : uint8[1, 4096]; the frame stays as it is. scratch : uint8[2 * SCRATCH_SIZE]."""
    write_nonce(nonce, page, record >> np.uint64(RECORD_VERSION_SHIFT), DOMAIN_LIVE, cipher)
    copy_words(address_of(copied, 0), address_of(contents, frame), PAGE_WORDS)
    tag = directory[slot * DIR_WORDS + DIR_TAGS] + np.uint64(page * TAG_SIZE)
    return open_page(copied, 0, tag, nonce, keys, slot, scratch, cipher)


@kernel
def seal_rows(
    contents: U8, state: U8, owner: U16, guest_page: U32, directory: U64, keys: U8, cipher: Integer, slot: Integer,
    pte: Table, track: U32, now: Integer, aside: U8, aside_kind: U8, aside_of: U32, key: U8, ad: U64, version: Integer,
    pages: I64, out: U8, at: I64, scratch: U8, code: U16,
) -> int:  # fmt: skip
    """Seal guest `pages` of `slot` as the rows of one batch; how many are left, busy. cipher : of exported pages.

    track : uint32[m, 2], a page saved in generation `now` was copied to row ``aside_of[page] - 1`` of `aside`;
    key : uint8[32]; scratch : uint8[4 * SCRATCH_SIZE], clear again afterwards; code : uint16[k], RC_BUSY where there is
    something to do; written: RC_DONE, RC_BUSY, RC_TORN. A row is sealed once: its nonce is its page.

    Claims come in pieces: a locked instruction between any two rows would wait for all that the cipher has stored.
    """
    nonce = np.empty(4, np.uint64)
    copied = np.empty((1, PAGE_SIZE), np.uint8)
    found, spare = scratch[: 2 * SCRATCH_SIZE], scratch[2 * SCRATCH_SIZE :]
    frames, records = np.empty(CLAIMED_AT_ONCE, np.int64), np.empty(CLAIMED_AT_ONCE, np.uint64)
    states, kinds = np.empty(CLAIMED_AT_ONCE, np.int64), np.empty(CLAIMED_AT_ONCE, np.int64)
    rows = np.empty(CLAIMED_AT_ONCE, np.int64)
    ads, nonces = np.empty((CLAIMED_AT_ONCE, AD_WORDS), np.uint64), np.empty((CLAIMED_AT_ONCE, 4), np.uint64)
    busy = 0
    for first in range(0, pages.size, CLAIMED_AT_ONCE):
        held = 0
        for i in range(first, min(first + CLAIMED_AT_ONCE, pages.size)):
            if code[i] != RC_BUSY:
                continue
            page = pages[i]
            record = claim_record(directory, slot, page, True)
            if record == np.uint64(RECORD_BUSY):
                busy += 1
                continue
            rows[held], records[held], frames[held], states[held] = i, record, -1, NS
            why: Integer = RC_DONE
            if track[page, 1] == now and aside_of[page] != 0:
                kinds[held] = aside_kind[np.int64(aside_of[page]) - 1]
            else:
                why, frames[held], states[held], kinds[held] = _claim_source(
                    state, owner, guest_page, slot, pte, page, record
                )
                if why == RC_DONE and track[page, 1] == now:  # it was copied aside before the frame was claimed
                    why = RC_BUSY
            address_row(ad, page, kinds[held], version, ads[held], nonces[held])
            code[i] = why
            busy += why == RC_BUSY
            held += 1
        for k in range(held):
            i = rows[k]
            page, frame, record = pages[i], frames[k], records[k]
            if code[i] != RC_DONE:
                continue
            source = np.uint64(0)
            if frame < 0 and kinds[k] != KIND_ZERO:
                source = address_of(aside, np.int64(aside_of[page]) - 1)
            elif frame >= 0 and record & np.uint64(RECORD_STATE) == np.uint64(RECORD_OUT):
                if not _open_exported(
                    contents, frame, directory, keys, cipher, slot, page, record, nonce, copied, found
                ):
                    code[i] = RC_TORN
                    continue
                source = address_of(copied, 0)
            elif frame >= 0:
                source = address_of(contents, frame)
            seal_row(out, at[0] + PAGE_SIZE * i, at[3] + TAG_SIZE * i, source, kinds[k], key, ads[k], nonces[k], spare)
            write_row(out, at, i, page, kinds[k], version)
            track[page, 1] = now
        for k in range(held):
            if frames[k] >= 0:
                publish(state, frames[k], states[k])
            publish_record(directory, slot, pages[rows[k]], True, records[k])
    scratch[:] = 0
    copied[:] = 0
    return busy


@kernel
def restore_batches(
    contents: U8, state: U8, owner: U16, guest_page: U32, directory: U64, slot: Integer, pte: Table, function: Integer,
    handle: Integer, offset: Integer, batch: U8, packed: U8, at: I64, rows: I64, bounds: I64, first: Integer, key: U8,
    ad: U64, scratch: U8, rc: U16,
) -> tuple[int, int]:  # fmt: skip
    """Read batches of equal size, one by one, verify all of each and make rows of it pages of the guest in `slot`.

    function, handle, offset : where they are (:mod:`lazypv_kernels.reading`). packed : uint8[k, n], what was verified
    of them: their columns are taken from there. batch : uint8[at[5]], written. The rows of batch b are
    ``rows[bounds[b]:bounds[b + 1]]`` (bounds : int64[k + 1]), `first` is number 0; ad : uint64[9], written. Other
    parameters, and codes, as of :func:`restore_rows`; while one is busy it is tried again.

    Which batch and which row of it does not verify, row -1 if it could not be read, or -1 and -1; nothing behind it was
    touched, and its pages have RC_ALTERED.
    """
    rc[:] = RC_ALTERED
    for k in range(len(packed)):
        if not read_all(function, handle, batch, offset + k * at[5]):
            return k, -1
        copy_words(address_of(batch, at[1]), address_of(packed[k], MAC_PREFIX + at[0]), (at[5] - at[1]) >> 3)
        part = slice(bounds[k], bounds[k + 1])
        ad[5] = first + k
        whole = True
        while whole or (rc[part].size and rc[bounds[k]] == RC_BUSY):
            bad = restore_rows(
                contents, state, owner, guest_page, directory, slot, pte, batch, at, rows[part], whole, key, ad,
                scratch, rc[part],
            )  # fmt: skip
            if bad >= 0:
                return k, bad
            whole = False
    return -1, -1


@kernel
def restore_rows(
    contents: U8, state: U8, owner: U16, guest_page: U32, directory: U64, slot: Integer, pte: Table, batch: U8, at: I64,
    rows: I64, whole: bool, key: U8, ad: U64, scratch: U8, rc: U16,
) -> int:  # fmt: skip
    """Verify `rows` (ascending) of a private copy of a batch and make them pages of the guest in `slot`: all, or none.

    whole : the batch's other rows are verified before, and decrypted in place; else only `rows` need have been read.

    Plain text goes straight into frames that are claimed, so that nobody sees one before all have been verified; if one
    does not verify they are cleared. scratch : uint8[2 * SCRATCH_SIZE]. rc : uint16[k], written: RC_DONE, RC_BUSY,
    RC_TORN (its frame is somebody's, or the guest has the page already), RC_ALTERED; the row that does not verify,
    or -1.
    """
    frames = np.full(rows.size, -1, np.int64)
    records = np.zeros(rows.size, np.uint64)
    why: Integer = RC_DONE
    bad = _open_others(batch, at, rows, key, ad, scratch) if whole else -1
    if bad >= 0:
        rc[:] = RC_ALTERED
        return bad
    held = 0
    ads, nonces = np.empty((rows.size, AD_WORDS), np.uint64), np.empty((rows.size, 4), np.uint64)
    for i in range(rows.size):
        address_of_row(batch, at, rows[i], ad, ads[i], nonces[i])
        page = page_of(batch, at, rows[i])
        entry = entry_of(pte, page)
        if entry == NO_FRAME:
            why = RC_TORN
            break
        record = claim_record(directory, slot, page, True)
        if record == np.uint64(RECORD_BUSY):
            why = RC_BUSY
            break
        frame = np.int64(entry) - 1
        seen = np.int64(claim(state, frame)) if record & np.uint64(RECORD_STATE) == np.uint64(RECORD_NEVER) else -1
        if seen != NS or load_entry(pte, page) != entry:
            if seen >= 0 and seen != BUSY:
                publish(state, frame, seen)
            publish_record(directory, slot, page, True, record)
            why = RC_BUSY if seen == BUSY or seen == NS else RC_TORN
            break
        frames[i], records[i] = frame, record
        held += 1
    if why == RC_DONE:
        for i in range(rows.size):
            if not open_row(batch, at, rows[i], address_of(contents, frames[i]), key, ads[i], nonces[i], scratch):
                bad, why = rows[i], RC_ALTERED
                break
    for i in range(held):
        page = page_of(batch, at, rows[i])
        if why == RC_DONE:
            plain = batch[at[2] + rows[i]] == KIND_PLAIN
            owner[frames[i]], guest_page[frames[i]] = slot, page
            publish(state, frames[i], SHR if plain else SEC)
            publish_record(directory, slot, page, True, records[i] | np.uint64(RECORD_IN))
        else:
            if why == RC_ALTERED:
                stream_zero_page(contents, frames[i])
                fence()
            publish(state, frames[i], NS)
            publish_record(directory, slot, page, True, records[i])
    rc[:] = why
    return bad


@kernel
def _open_others(batch: U8, at: I64, rows: I64, key: U8, ad: U64, scratch: U8) -> int:
    """Verify all rows of a batch but `rows` (ascending), in place; the first that is bad, or -1."""
    own, nonce = np.empty(AD_WORDS, np.uint64), np.empty(4, np.uint64)
    k = 0
    for row in range((at[1] - at[0]) // PAGE_SIZE):
        if k < rows.size and rows[k] == row:
            k += 1
            continue
        address_of_row(batch, at, row, ad, own, nonce)
        if not open_row(batch, at, row, np.uint64(0), key, own, nonce, scratch):
            return row
    return -1
