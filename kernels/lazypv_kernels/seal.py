"""Import and export: pages change hands, under the cipher where there are contents.

Export is authenticated encryption, one pass, AEGIS-256 from libsodium. Nonce: guest page and version; the version goes
up before the call and is never taken back. Import decrypts into a scratch page, verifies, copies on success, clears the
scratch: a refused import leaves the host's ciphertext as it was.
"""

from __future__ import annotations

import numpy as np

from lazypv_kernels.arrays import I64, U8, U16, U32, U64, Integer, Table
from lazypv_kernels.ciphers import AEGIS256, clear_scratch, open_page, seal_page, write_nonce
from lazypv_kernels.claims import BUSY, RECORD_BUSY, claim, claim_record, has_page, publish, publish_record
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import (
    ASCE,
    COUNT_BUSY,
    COUNT_DONE,
    COUNT_NOOP,
    COUNT_REFUSED,
    DIR_EXPORTED,
    DIR_IN_SNAPSHOT,
    DIR_TAGS,
    DIR_WORDS,
    NO_FRAME,
    NO_IMAGE,
    NO_OWNER,
    NS,
    PSH,
    RC_BUSY,
    RC_DONE,
    RECORD_IN,
    RECORD_NEVER,
    RECORD_OUT,
    RECORD_OUT_SHARED,
    RECORD_STATE,
    RECORD_VERSION_ONE,
    RECORD_VERSION_SHIFT,
    SEC,
    SHR,
    TAG_SIZE,
)
from lazypv_kernels.native import (
    add_and_fetch_old,
    address_of,
    fence,
    load_acquire,
    stream_zero_page,
)
from lazypv_kernels.tables import load_entry, table_size
from lazypv_kernels.tracking import note_store

DOMAIN_LIVE = 1
"""Live export; snapshots have keys and a domain of their own."""
DOMAIN_IMAGE = 2
"""Pages of a boot image."""


@kernel
def export_pages(
    contents: U8, state: U8, owner: U16, guest_page: U32, directory: U64, keys: U8, wide: bool,
    cipher: Integer, refused_rc: Integer, scratch: U8, frames: I64, first: Integer, last: Integer, rc: U16, counts: I64,
) -> None:  # fmt: skip
    """CONV_FROM_SEC_STOR for ``frames[first:last]``, of any owners.

    A secure page is sealed; a shared page is released as it is. guest_page : uint32[n]; keys : uint8[slots, 32];
    wide : records are 8-byte words with versions; cipher : AEGIS256 or AES256GCM;
    scratch : uint8[2 * SCRATCH_SIZE]; rc : uint16[k], written.
    """
    nonce = np.empty(4, np.uint64)
    for i in range(first, last):
        frame = frames[i]
        seen = load_acquire(state, frame)
        if seen == NS or seen == ASCE:
            rc[i] = RC_DONE
            counts[COUNT_NOOP] += 1
            continue
        seen = claim(state, frame)
        if seen == BUSY:
            rc[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        if seen == NS or seen == ASCE or seen > PSH:
            publish(state, frame, seen)
            refused = seen > PSH and seen != ASCE
            rc[i] = refused_rc if refused else RC_DONE
            counts[COUNT_REFUSED if refused else COUNT_NOOP] += 1
            continue
        slot, page = np.int64(owner[frame]), np.int64(guest_page[frame])
        record = claim_record(directory, slot, page, wide)
        if record == np.uint64(RECORD_BUSY):
            publish(state, frame, seen)
            rc[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        version = record & ~np.uint64(RECORD_STATE)
        if seen == SEC:
            where = RECORD_OUT
            if wide:
                version += np.uint64(RECORD_VERSION_ONE)
                write_nonce(nonce, page, version >> np.uint64(RECORD_VERSION_SHIFT), DOMAIN_LIVE, cipher)
                tag_address = directory[slot * DIR_WORDS + DIR_TAGS] + np.uint64(page * TAG_SIZE)
                seal_page(contents, frame, tag_address, nonce, keys, slot, scratch, cipher)
        else:
            where = RECORD_OUT_SHARED
        # The record first: once the frame is free of its owner, the owner's records may be gone.
        publish_record(directory, slot, page, wide, version | np.uint64(where))
        add_and_fetch_old(directory, slot * DIR_WORDS + DIR_EXPORTED, np.uint64(1))
        owner[frame] = NO_OWNER
        publish(state, frame, NS)
        rc[i] = RC_DONE
        counts[COUNT_DONE] += 1


@kernel
def import_pages(
    contents: U8, state: U8, owner: U16, guest_page: U32, directory: U64, keys: U8, wide: bool,
    cipher: Integer, misc: bool, codes: U16, scratch: U8, slot: Integer, pte: Table, image_key: U8, image_tags: U8,
    image_first: Integer, pages: I64, first: Integer, last: Integer, rc: U16, counts: I64,
) -> None:  # fmt: skip
    """CONV_TO_SEC_STOR, or UNPACK_IMG unless `image_first` is NO_IMAGE, for guest ``pages[first:last]`` of `slot`.

    pte : uint32[m], the guest's address translation (frame + 1, 0 absent); pages : int64[k]; misc : feature bit 0;
    codes : uint16[6], the answers (not mapped, outside, owned, already in, integrity, not to be unpacked);
    image_key : uint8[1, 32]; image_tags : uint8[t, 32], tag t belongs to guest page image_first + t.
    """
    nonce = np.empty(4, np.uint64)
    unpack = image_first != NO_IMAGE
    for i in range(first, last):
        page = pages[i]
        if page < 0 or page >= table_size(pte) or not has_page(directory, slot, page):
            rc[i] = codes[1]
            counts[COUNT_REFUSED] += 1
            continue
        entry = load_entry(pte, page)
        if entry == NO_FRAME:
            rc[i] = codes[0]
            counts[COUNT_REFUSED] += 1
            continue
        record = claim_record(directory, slot, page, wide)
        if record == np.uint64(RECORD_BUSY):
            rc[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        frame = np.int64(entry) - 1
        seen = claim(state, frame)
        if seen == BUSY or load_entry(pte, page) != entry:
            if seen != BUSY:
                publish(state, frame, seen)
            publish_record(directory, slot, page, wide, record)
            rc[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
            continue
        where = record & np.uint64(RECORD_STATE)
        version = record & ~np.uint64(RECORD_STATE)
        # Feature bit 0: a shared page of another configuration changes owners with the import.
        taken_over = misc and seen == SHR and owner[frame] != slot
        other, other_page = np.int64(owner[frame]), np.int64(guest_page[frame])
        theirs = claim_record(directory, other, other_page, wide) if taken_over else np.uint64(0)
        answer: Integer = RC_DONE
        after: Integer = seen
        if theirs == np.uint64(RECORD_BUSY):
            taken_over = False
            answer = RC_BUSY
        elif where == RECORD_OUT and not unpack and (seen == NS or taken_over):
            # What comes back is most of all; the call below takes a sixth of the cipher's time.
            after = SEC
            if wide:
                write_nonce(nonce, page, version >> np.uint64(RECORD_VERSION_SHIFT), DOMAIN_LIVE, cipher)
                tag_address = directory[slot * DIR_WORDS + DIR_TAGS] + np.uint64(page * TAG_SIZE)
                if not open_page(contents, frame, tag_address, nonce, keys, slot, scratch, cipher):
                    answer = np.int64(codes[4])
        elif seen == NS or taken_over:
            answer, after = _bring_in(
                contents, frame, directory, slot, page, wide, cipher, keys, where, version, codes, nonce, scratch,
                unpack, image_key, image_tags, image_first,
            )  # fmt: skip
        elif seen != SEC or owner[frame] != slot or guest_page[frame] != page:
            answer = np.int64(codes[2])
        if taken_over:
            if answer == RC_DONE:
                theirs = (theirs & ~np.uint64(RECORD_STATE)) | np.uint64(RECORD_OUT_SHARED)
                add_and_fetch_old(directory, other * DIR_WORDS + DIR_EXPORTED, np.uint64(1))
            publish_record(directory, other, other_page, wide, theirs)
        if answer == RC_DONE:
            moved = seen != after or owner[frame] != slot
            owner[frame] = slot
            guest_page[frame] = page
            record = version | np.uint64(RECORD_IN)
            counts[COUNT_DONE if moved else COUNT_NOOP] += 1
        elif answer == RC_BUSY:
            counts[COUNT_BUSY] += 1
        else:
            counts[COUNT_REFUSED] += 1
            after = seen
        publish(state, frame, after)
        publish_record(directory, slot, page, wide, record)
        rc[i] = answer
    clear_scratch(scratch)


@kernel
def _bring_in(
    contents: U8, frame: Integer, directory: U64, slot: Integer, page: Integer, wide: bool, cipher: Integer, keys: U8,
    where: Integer, version: Integer, codes: U16, nonce: U64, scratch: U8, unpack: bool, image_key: U8, image_tags: U8,
    image_first: Integer,
) -> tuple[Integer, Integer]:  # fmt: skip
    """Give a claimed non-secure `frame` the content it has to have for the guest; (rc, page state afterwards)."""
    if unpack:
        index = page - image_first
        if where != RECORD_NEVER or index < 0 or index >= image_tags.shape[0]:
            return np.int64(codes[5]), NS
        if wide:
            write_nonce(nonce, page, 0, DOMAIN_IMAGE, AEGIS256)
            if not note_store(directory, slot, page):
                return np.int64(RC_BUSY), NS
            if not open_page(contents, frame, address_of(image_tags, index), nonce, image_key, 0, scratch, AEGIS256):
                return np.int64(codes[4]), NS
        return np.int64(RC_DONE), SEC
    if where == RECORD_NEVER:
        if directory[slot * DIR_WORDS + DIR_IN_SNAPSHOT] != np.uint64(0):
            return np.int64(codes[4]), NS
        if wide:
            stream_zero_page(contents, frame)
            fence()
        return np.int64(RC_DONE), SEC
    if where == RECORD_OUT_SHARED:
        # The host may have changed it meanwhile.
        if not note_store(directory, slot, page):
            return np.int64(RC_BUSY), NS
        return np.int64(RC_DONE), SHR
    return np.int64(codes[3]), NS


@kernel
def seal_image(
    contents: U8, image_key: U8, image_tags: U8, image_first: Integer, scratch: U8, first: Integer, last: Integer
) -> None:
    """What the owner of a guest does to a boot image: seal rows ``[first, last)`` of `contents` in place.

    image_tags : uint8[t, 32], written; row r is guest page image_first + r.
    """
    nonce = np.empty(4, np.uint64)
    for row in range(first, last):
        write_nonce(nonce, image_first + row, 0, DOMAIN_IMAGE, AEGIS256)
        seal_page(contents, row, address_of(image_tags, row), nonce, image_key, 0, scratch, AEGIS256)
