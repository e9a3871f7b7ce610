"""Rows of a snapshot: seal them out of a guest or a buffer, open them into a guest or in place, a batch's MAC.

A batch is one stretch of bytes as it stands in the file: Arrow's metadata, the page bytes, the other columns. Row i of
it has its bytes at ``at[0] + 4096 * i``; `at` (int64[6]) is where pages, guest pages, kinds, tags, versions and the end
are. Associated data of a row: uint64[9] `ad`, format version, file id (four words), batch, guest page, kind, version.
"""

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
from lazypv_kernels.native import (
    address_of,
    aegis256_decrypt,
    aegis256_encrypt,
    fence,
    load_half_at,
    load_word_at,
    store_half_at,
    store_word_at,
    stream_zero_page,
)
from lazypv_kernels.seal import DOMAIN_LIVE
from lazypv_kernels.tables import load_entry

DOMAIN_SNAPSHOT = 3
"""Rows of snapshots."""
DOMAIN_BATCH = 4
"""MACs of batches."""

RC_TORN = 0x0F10
"""The page cannot be saved: what backs it is not what its record says, or was altered."""
RC_IN_SNAPSHOT = 0x0F11
"""The page is still in the snapshot that the guest comes from."""
RC_ALTERED = 0x0F12
"""A row that is not what was sealed."""

AD_WORDS = 9
AD_SIZE = AD_WORDS * 8
MAC_HEX = 2 * TAG_SIZE
MAC_PREFIX = 48
CLAIMED_AT_ONCE = 64
"""Pages that are claimed, then sealed, then let go: whoever touches one waits for that long."""
_ZERO_DIGIT = 0x30
_WORDS = PAGE_SIZE // 8
_TAG_WORDS = TAG_SIZE // 8


@kernel
def _address_row(ad: U64, nonce: U64, page: Integer, kind: Integer, version: Integer) -> None:
    """nonce : uint64[4]: guest page, zero, domain, zero."""
    ad[6], ad[7], ad[8] = page, kind, version
    nonce[0], nonce[1], nonce[2], nonce[3] = page, 0, DOMAIN_SNAPSHOT, 0


@kernel
def _copy_words(target: Integer, source: Integer, words: Integer) -> None:
    """Copy 8-byte words from address to address; slices of arrays take several times as long."""
    for k in range(words):
        store_word_at(target + np.uint64(8 * k), load_word_at(source + np.uint64(8 * k)))


@kernel
def _gather_plain(ad: U64, address: Integer, scratch: U8) -> None:
    """Associated data of a plain row: `ad`, then the page at `address`; into scratch : uint8[AD_SIZE + 4096]."""
    _copy_words(address_of(scratch, 0), address_of(ad, 0), AD_WORDS)
    _copy_words(address_of(scratch, AD_SIZE), address, _WORDS)


@kernel
def _seal_row(
    out: U8, data: Integer, tag: Integer, source: Integer, kind: Integer, key: U8, ad: U64, nonce: U64, scratch: U8
) -> None:
    """Seal the page at address `source` to ``out[data:]``, its tag to ``out[tag:]``.

    libsodium writes the tag behind the text, hence onto the next row: what stood there is put back.
    """
    end = data + PAGE_SIZE
    if kind == KIND_SEALED:
        spill, spare = address_of(out, end), address_of(scratch, 0)
        _copy_words(spare, spill, _TAG_WORDS)
        aegis256_encrypt(
            address_of(out, data), 0, source, PAGE_SIZE, address_of(ad, 0), AD_SIZE, 0, address_of(nonce, 0),
            address_of(key, 0),
        )  # fmt: skip
        # The only row of a batch has its own tag where this one is now: so it goes to the tag's place last.
        made = spare + np.uint64(TAG_SIZE)
        _copy_words(made, spill, _TAG_WORDS)
        _copy_words(spill, spare, _TAG_WORDS)
        _copy_words(address_of(out, tag), made, _TAG_WORDS)
        return
    size = AD_SIZE
    where = address_of(ad, 0)
    if kind == KIND_PLAIN:
        _gather_plain(ad, source, scratch)
        out[data:end] = scratch[AD_SIZE : AD_SIZE + PAGE_SIZE]
        size, where = AD_SIZE + PAGE_SIZE, address_of(scratch, 0)
    else:
        out[data:end] = 0
    aegis256_encrypt(address_of(out, tag), 0, where, 0, where, size, 0, address_of(nonce, 0), address_of(key, 0))


@kernel
def _write_row(out: U8, at: I64, row: Integer, page: Integer, kind: Integer, version: Integer) -> None:
    """The other columns of a row: guest page (4 bytes), kind (1), version (8)."""
    store_half_at(address_of(out, at[1] + 4 * row), np.uint32(page))
    out[at[2] + row] = kind
    store_word_at(address_of(out, at[4] + 8 * row), np.uint64(version))


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
    _copy_words(address_of(copied, 0), address_of(contents, frame), _WORDS)
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
            _address_row(ad, nonce, page, kinds[k], version)
            _seal_row(out, at[0] + PAGE_SIZE * i, at[3] + TAG_SIZE * i, source, kinds[k], key, ad, nonce, spare)
            _write_row(out, at, i, page, kinds[k], version)
            track[page, 1] = now
        for k in range(held):
            if frames[k] >= 0:
                publish(state, frames[k], states[k])
            publish_record(directory, slot, pages[rows[k]], True, records[k])
    scratch[:] = 0
    copied[:] = 0
    return busy


@kernel
def seal_buffer(
    source: U8, kinds: U8, versions: U64, key: U8, ad: U64, pages: I64, out: U8, at: I64, scratch: U8
) -> None:
    """Seal ``source[i]`` (uint8[k, 4096]) as guest page ``pages[i]``, row i of one batch; other parameters as above."""
    nonce = np.empty(4, np.uint64)
    for i in range(pages.size):
        _address_row(ad, nonce, pages[i], kinds[i], versions[i])
        _seal_row(
            out, at[0] + PAGE_SIZE * i, at[3] + TAG_SIZE * i, address_of(source, i), kinds[i], key, ad, nonce, scratch
        )
        _write_row(out, at, i, pages[i], kinds[i], versions[i])
    scratch[:] = 0


@kernel
def _page_of(batch: U8, at: I64, row: Integer) -> np.int64:
    """Guest page of a row."""
    return np.int64(load_half_at(address_of(batch, at[1] + 4 * row)))


@kernel
def _open_row(batch: U8, at: I64, row: Integer, target: Integer, key: U8, ad: U64, nonce: U64, scratch: U8) -> bool:
    """Verify row `row` of `batch` and leave its plain page at address `target`; the batch is as before afterwards.

    With target 0 a sealed row is decrypted in place.
    """
    data, tag, kind = at[0] + PAGE_SIZE * row, at[3] + TAG_SIZE * row, np.int64(batch[at[2] + row])
    _address_row(ad, nonce, _page_of(batch, at, row), kind, load_word_at(address_of(batch, at[4] + 8 * row)))
    end = data + PAGE_SIZE
    if kind == KIND_SEALED:
        text, spill, spare = address_of(batch, data), address_of(batch, end), address_of(scratch, 0)
        _copy_words(spare, spill, _TAG_WORDS)
        _copy_words(spill, address_of(batch, tag), _TAG_WORDS)
        answer = aegis256_decrypt(
            target if target != np.uint64(0) else text, 0, 0, text, SCRATCH_SIZE, address_of(ad, 0), AD_SIZE,
            address_of(nonce, 0), address_of(key, 0),
        )  # fmt: skip
        _copy_words(spill, spare, _TAG_WORDS)
        return answer == 0
    size = AD_SIZE
    where = address_of(ad, 0)
    if kind == KIND_PLAIN:
        _gather_plain(ad, address_of(batch, data), scratch)
        size, where = AD_SIZE + PAGE_SIZE, address_of(scratch, 0)
    elif kind != KIND_ZERO or not _all_zero(batch, data):
        return False
    answer = aegis256_decrypt(
        where, 0, 0, address_of(batch, tag), TAG_SIZE, where, size, address_of(nonce, 0), address_of(key, 0)
    )
    if answer == 0 and target != np.uint64(0):
        _copy_words(target, address_of(batch, data), _WORDS)
    return answer == 0


@kernel
def _all_zero(batch: U8, data: Integer) -> bool:
    text = address_of(batch, data)
    found = np.uint64(0)
    for k in range(_WORDS):
        found |= load_word_at(text + np.uint64(8 * k))
    return bool(found == np.uint64(0))


@kernel
def open_rows(batch: U8, at: I64, first: Integer, last: Integer, key: U8, ad: U64, scratch: U8) -> int:
    """Verify rows ``[first, last)`` of a private copy of a batch, and decrypt them in place.

    The first row that is not what was sealed, or -1. batch : uint8[at[5]]; key : uint8[32]; scratch : uint8[2 * 4128].
    """
    nonce = np.empty(4, np.uint64)
    for row in range(first, last):
        if not _open_row(batch, at, row, np.uint64(0), key, ad, nonce, scratch):
            return row
    return -1


@kernel
def restore_rows(
    contents: U8, state: U8, owner: U16, guest_page: U32, directory: U64, slot: Integer, pte: Table, batch: U8, at: I64,
    rows: I64, key: U8, ad: U64, scratch: U8, rc: U16,
) -> int:  # fmt: skip
    """Verify `rows` of a private copy of a batch and make them pages of the guest in `slot`: all of them, or none.

    Plain text goes straight into frames that are claimed, so that nobody sees one before all have been verified; if one
    does not verify they are cleared. rc : uint16[k], written: RC_DONE, RC_BUSY, RC_TORN (its frame is somebody's, or
    the guest has the page already), RC_ALTERED; the row that does not verify, or -1.
    """
    nonce = np.empty(4, np.uint64)
    frames = np.full(rows.size, -1, np.int64)
    records = np.zeros(rows.size, np.uint64)
    why: Integer = RC_DONE
    bad = -1
    held = 0
    for i in range(rows.size):
        page = _page_of(batch, at, rows[i])
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
            if not _open_row(batch, at, rows[i], address_of(contents, frames[i]), key, ad, nonce, scratch):
                bad, why = rows[i], RC_ALTERED
                break
    for i in range(held):
        page = _page_of(batch, at, rows[i])
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
def batch_mac(
    batch: U8, at: I64, digits: Integer, rows: Integer, file_id: U8, index: Integer, key: U8, scratch: U8, write: bool
) -> bool:
    """The MAC of a batch, over everything but its page bytes, which the rows' tags stand for.

    digits : where its 64 hexadecimal digits stand in the metadata; file_id, key : uint8[32]; scratch : uint8[48 +
    at[0] + at[5] - at[1]]. With `write` the digits are written, else compared; false if they differ.
    """
    scratch[:TAG_SIZE] = file_id
    for k in range(8):
        scratch[TAG_SIZE + k] = (index >> (8 * k)) & 0xFF
        scratch[TAG_SIZE + 8 + k] = (rows >> (8 * k)) & 0xFF
    end = MAC_PREFIX + at[0]
    scratch[MAC_PREFIX:end] = batch[: at[0]]
    scratch[MAC_PREFIX + digits : MAC_PREFIX + digits + MAC_HEX] = _ZERO_DIGIT
    size = end + at[5] - at[1]
    scratch[end:size] = batch[at[1] : at[5]]
    nonce = np.zeros(4, np.uint64)
    nonce[0], nonce[2] = index, DOMAIN_BATCH
    tag = np.empty(TAG_SIZE, np.uint8)
    where = address_of(scratch, 0)
    aegis256_encrypt(address_of(tag, 0), 0, where, 0, where, size, 0, address_of(nonce, 0), address_of(key, 0))
    same = True
    for k in range(MAC_HEX):
        half = np.int64(tag[k >> 1] >> 4 if k & 1 == 0 else tag[k >> 1] & 15)
        digit = np.uint8(half + _ZERO_DIGIT if half < 10 else half + 0x57)
        if write:
            batch[digits + k] = digit
        same &= batch[digits + k] == digit
    return same
