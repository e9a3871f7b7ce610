"""Rows and batches of a snapshot as they stand in its file: seal one, open one, a batch's MAC, what a restore wants.

A batch is one stretch of bytes: Arrow's metadata, the page bytes, the other columns. Row i of it has its bytes at
``at[0] + 4096 * i``; `at` (int64[6]) is where pages, guest pages, kinds, tags, versions and the end are. A packed batch
is what the MAC covers: a prefix, then metadata and columns without the page bytes. Associated data of a row: uint64[9]
`ad`, format version, file id (four words), batch, guest page, kind, version.
"""

from __future__ import annotations

import numpy as np

from lazypv_kernels.arrays import I64, U8, U64, Flags, Integer
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import KIND_PLAIN, KIND_SEALED, KIND_ZERO, PAGE_SIZE, SCRATCH_SIZE, TAG_SIZE
from lazypv_kernels.native import (
    address_of,
    aegis256_decrypt,
    aegis256_encrypt,
    load_half_at,
    load_word_at,
    store_half_at,
    store_word_at,
)

DOMAIN_SNAPSHOT = 3
"""Rows of snapshots."""
DOMAIN_BATCH = 4
"""MACs of batches."""

AD_WORDS = 9
AD_SIZE = AD_WORDS * 8
MAC_HEX = 2 * TAG_SIZE
MAC_PREFIX = 48
"""Of a packed batch: file id, number of the batch, number of rows."""
_ZERO_DIGIT = 0x30
PAGE_WORDS = PAGE_SIZE // 8
_TAG_WORDS = TAG_SIZE // 8


@kernel
def address_row(ad: U64, page: Integer, kind: Integer, version: Integer, own: U64, nonce: U64) -> None:
    """A row's own associated data and nonce, written: own : uint64[9], the batch's words of `ad`, then the row's.

    nonce : uint64[4]: guest page, zero, domain, zero. Rows are addressed many at a time, then sealed or opened: what
    was stored just before in words of 8 bytes takes the cipher, which loads 16, 40 ns more for each row.
    """
    for word in range(6):
        own[word] = ad[word]
    own[6], own[7], own[8] = page, kind, version
    nonce[0], nonce[1], nonce[2], nonce[3] = page, 0, DOMAIN_SNAPSHOT, 0


@kernel
def copy_words(target: Integer, source: Integer, words: Integer) -> None:
    """Copy 8-byte words from address to address; slices of arrays take several times as long."""
    for k in range(words):
        store_word_at(target + np.uint64(8 * k), load_word_at(source + np.uint64(8 * k)))


@kernel
def _gather_plain(ad: U64, address: Integer, scratch: U8) -> None:
    """Associated data of a plain row: `ad`, then the page at `address`; into scratch : uint8[AD_SIZE + 4096]."""
    copy_words(address_of(scratch, 0), address_of(ad, 0), AD_WORDS)
    copy_words(address_of(scratch, AD_SIZE), address, PAGE_WORDS)


@kernel
def seal_row(
    out: U8, data: Integer, tag: Integer, source: Integer, kind: Integer, key: U8, ad: U64, nonce: U64, scratch: U8
) -> None:
    """Seal the page at address `source` to ``out[data:]``, its tag to ``out[tag:]``.

    libsodium writes the tag behind the text, hence onto the next row: what stood there is put back.
    """
    end = data + PAGE_SIZE
    if kind == KIND_SEALED:
        spill, spare = address_of(out, end), address_of(scratch, 0)
        copy_words(spare, spill, _TAG_WORDS)
        aegis256_encrypt(
            address_of(out, data), 0, source, PAGE_SIZE, address_of(ad, 0), AD_SIZE, 0, address_of(nonce, 0),
            address_of(key, 0),
        )  # fmt: skip
        # The only row of a batch has its own tag where this one is now: so it goes to the tag's place last.
        made = spare + np.uint64(TAG_SIZE)
        copy_words(made, spill, _TAG_WORDS)
        copy_words(spill, spare, _TAG_WORDS)
        copy_words(address_of(out, tag), made, _TAG_WORDS)
        return
    size = AD_SIZE
    where = address_of(ad, 0)
    if kind == KIND_PLAIN:
        _gather_plain(ad, source, scratch)
        copy_words(address_of(out, data), address_of(scratch, AD_SIZE), PAGE_WORDS)
        size, where = AD_SIZE + PAGE_SIZE, address_of(scratch, 0)
    else:
        out[data:end] = 0
    aegis256_encrypt(address_of(out, tag), 0, where, 0, where, size, 0, address_of(nonce, 0), address_of(key, 0))


@kernel
def write_row(out: U8, at: I64, row: Integer, page: Integer, kind: Integer, version: Integer) -> None:
    """The other columns of a row: guest page (4 bytes), kind (1), version (8)."""
    store_half_at(address_of(out, at[1] + 4 * row), np.uint32(page))
    out[at[2] + row] = kind
    store_word_at(address_of(out, at[4] + 8 * row), np.uint64(version))


@kernel
def seal_buffer(
    source: U8, kinds: U8, versions: U64, key: U8, ad: U64, pages: I64, out: U8, at: I64, scratch: U8
) -> None:
    """Seal ``source[i]`` (uint8[k, 4096]) as guest page ``pages[i]``, row i of one batch.

    key : uint8[32]; out : uint8[at[5]]; scratch : uint8[2 * SCRATCH_SIZE], clear again afterwards.
    """
    ads, nonces = np.empty((pages.size, AD_WORDS), np.uint64), np.empty((pages.size, 4), np.uint64)
    for i in range(pages.size):
        address_row(ad, pages[i], kinds[i], versions[i], ads[i], nonces[i])
    for i in range(pages.size):
        seal_row(
            out, at[0] + PAGE_SIZE * i, at[3] + TAG_SIZE * i, address_of(source, i), kinds[i], key, ads[i], nonces[i],
            scratch,
        )  # fmt: skip
        write_row(out, at, i, pages[i], kinds[i], versions[i])
    scratch[:] = 0


@kernel
def page_of(batch: U8, at: I64, row: Integer) -> np.int64:
    """Guest page of a row."""
    return np.int64(load_half_at(address_of(batch, at[1] + 4 * row)))


@kernel
def address_of_row(batch: U8, at: I64, row: Integer, ad: U64, own: U64, nonce: U64) -> None:
    """Associated data and nonce of row `row` as `batch` has it: :func:`address_row`."""
    kind, version = np.int64(batch[at[2] + row]), load_word_at(address_of(batch, at[4] + 8 * row))
    address_row(ad, page_of(batch, at, row), kind, version, own, nonce)


@kernel
def open_row(batch: U8, at: I64, row: Integer, target: Integer, key: U8, ad: U64, nonce: U64, scratch: U8) -> bool:
    """Verify row `row` of `batch` and leave its plain page at address `target`; the batch is as before afterwards.

    ad, nonce : of this row. With target 0 a sealed row is decrypted in place.
    """
    data, tag, kind = at[0] + PAGE_SIZE * row, at[3] + TAG_SIZE * row, np.int64(batch[at[2] + row])
    end = data + PAGE_SIZE
    if kind == KIND_SEALED:
        text, spill, spare = address_of(batch, data), address_of(batch, end), address_of(scratch, 0)
        copy_words(spare, spill, _TAG_WORDS)
        copy_words(spill, address_of(batch, tag), _TAG_WORDS)
        answer = aegis256_decrypt(
            target if target != np.uint64(0) else text, 0, 0, text, SCRATCH_SIZE, address_of(ad, 0), AD_SIZE,
            address_of(nonce, 0), address_of(key, 0),
        )  # fmt: skip
        copy_words(spill, spare, _TAG_WORDS)
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
        copy_words(target, address_of(batch, data), PAGE_WORDS)
    return answer == 0


@kernel
def _all_zero(batch: U8, data: Integer) -> bool:
    text = address_of(batch, data)
    found = np.uint64(0)
    for k in range(PAGE_WORDS):
        found |= load_word_at(text + np.uint64(8 * k))
    return bool(found == np.uint64(0))


@kernel
def open_rows(batch: U8, at: I64, first: Integer, last: Integer, key: U8, ad: U64, scratch: U8) -> int:
    """Verify rows ``[first, last)`` of a private copy of a batch, and decrypt them in place.

    The first row that is not what was sealed, or -1. batch : uint8[at[5]]; key : uint8[32]; scratch : uint8[2 * 4128].
    """
    ads, nonces = np.empty((last - first, AD_WORDS), np.uint64), np.empty((last - first, 4), np.uint64)
    for i in range(last - first):
        address_of_row(batch, at, first + i, ad, ads[i], nonces[i])
    for i in range(last - first):
        if not open_row(batch, at, first + i, np.uint64(0), key, ads[i], nonces[i], scratch):
            return first + i
    return -1


@kernel
def _mac_of(
    packed: U8, digits: Integer, rows: Integer, file_id: U8, index: Integer, key: U8, tag: U8, text: U8
) -> None:
    """The MAC of a packed batch, as bytes (tag : uint8[32]) and as digits (text : uint8[64]); both written.

    Its own digits in the metadata count as zeroes, and are zeroes afterwards; the prefix is written here.
    """
    start = address_of(packed, 0)
    copy_words(start, address_of(file_id, 0), _TAG_WORDS)
    store_word_at(start + np.uint64(TAG_SIZE), np.uint64(index))
    store_word_at(start + np.uint64(TAG_SIZE + 8), np.uint64(rows))
    for k in range(MAC_HEX):
        packed[MAC_PREFIX + digits + k] = _ZERO_DIGIT
    nonce = np.zeros(4, np.uint64)
    nonce[0], nonce[2] = index, DOMAIN_BATCH
    aegis256_encrypt(address_of(tag, 0), 0, start, 0, start, packed.size, 0, address_of(nonce, 0), address_of(key, 0))
    for k in range(MAC_HEX):
        half = np.int64(tag[k >> 1] >> 4 if k & 1 == 0 else tag[k >> 1] & 15)
        text[k] = half + _ZERO_DIGIT if half < 10 else half + 0x57


@kernel
def batch_mac(
    batch: U8, at: I64, digits: Integer, rows: Integer, file_id: U8, index: Integer, key: U8, packed: U8, write: bool
) -> bool:
    """The MAC of a batch, over everything but its page bytes, which the rows' tags stand for.

    digits : where its 64 hexadecimal digits stand in the metadata; file_id, key : uint8[32]; packed : uint8[48 + at[0]
    + at[5] - at[1]], written. With `write` the digits are written, else compared; false if they differ.
    """
    behind, size = MAC_PREFIX + at[0], MAC_PREFIX + at[0] + at[5] - at[1]
    copy_words(address_of(packed, MAC_PREFIX), address_of(batch, 0), at[0] >> 3)
    copy_words(address_of(packed, behind), address_of(batch, at[1]), (at[5] - at[1]) >> 3)
    tag, text = np.empty(TAG_SIZE, np.uint8), np.empty(MAC_HEX, np.uint8)
    _mac_of(packed[:size], digits, rows, file_id, index, key, tag, text)
    same = True
    for k in range(MAC_HEX):
        if write:
            batch[digits + k] = text[k]
        same &= batch[digits + k] == text[k]
    return same


@kernel
def check_packed(packed: U8, digits: Integer, rows: Integer, file_id: U8, first: Integer, macs: U8, key: U8) -> int:
    """Verify packed batches, `first` and those that follow; which of them is the first that is not as sealed, or -1.

    packed : uint8[k, n], afterwards as before but for the prefix; macs : uint8[b, 32], of all batches, as the root
    covers them. rows : of each of these batches.
    """
    tag, text = np.empty(TAG_SIZE, np.uint8), np.empty(MAC_HEX, np.uint8)
    claimed = np.empty(MAC_HEX, np.uint8)
    for k in range(packed.shape[0]):
        for digit in range(MAC_HEX):
            claimed[digit] = packed[k, MAC_PREFIX + digits + digit]
        _mac_of(packed[k], digits, rows, file_id, first + k, key, tag, text)
        same = True
        for digit in range(MAC_HEX):
            packed[k, MAC_PREFIX + digits + digit] = claimed[digit]
            same &= claimed[digit] == text[digit]
        for byte in range(TAG_SIZE):
            same &= macs[first + k, byte] == tag[byte]
        if not same:
            return k
    return -1


@kernel
def choose_rows(packed: U8, at: I64, rows: Integer, seen: Flags, chosen: I64, pages: I64, bounds: I64) -> int:
    """Rows of verified packed batches that a restore wants: not zero, and of pages that no newer file has.

    packed : uint8[k, n], batches of `rows` rows; seen : bool[guest pages], every page of them is seen afterwards.
    chosen, pages : int64[k * rows], the rows and their guest pages, written; those of batch b are ``bounds[b]`` to
    ``bounds[b + 1]`` (int64[k + 1], written). How many batches name no page outside the guest.
    """
    count = 0
    bounds[0] = 0
    shift = np.uint64(MAC_PREFIX + at[0] - at[1])
    for k in range(packed.shape[0]):
        start = address_of(packed[k], 0) + shift
        for row in range(rows):
            page = np.int64(load_half_at(start + np.uint64(at[1] + 4 * row)))
            if page >= seen.size:
                return k
            if not seen[page] and packed[k, MAC_PREFIX + at[0] - at[1] + at[2] + row] != KIND_ZERO:
                chosen[count], pages[count] = row, page
                count += 1
            seen[page] = True
        bounds[k + 1] = count
    return len(packed)
