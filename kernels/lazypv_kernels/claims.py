"""Claims: how one operation on a frame or on a record is made atomic among many threads.

A frame is claimed by compare-and-swap on its state byte; owner, guest page and CPUs are read under the claim. Nothing
waits for a claim while holding another: who finds one taken lets go and answers "busy".
"""

from __future__ import annotations

import numpy as np

from lazypv_kernels.arrays import I64, U8, U64, Integer
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import (
    CLAIMED,
    DIR_PAGES,
    DIR_RECORDS,
    DIR_WORDS,
    RECORD_CLAIMED,
    STATE_MASK,
    TOUCH_MASK,
    TOUCH_ONE,
)
from lazypv_kernels.native import (
    address_of,
    compare_and_swap,
    load_acquire,
    load_byte_at,
    load_word_at,
    relax,
    store_byte_at,
    store_release,
    store_word_at,
    swap_byte_at,
    swap_word_at,
)

BUSY = 0xFF
"""What :func:`claim` says of a frame that somebody else has."""
RECORD_BUSY = 0xFFFFFFFFFFFFFFFF
"""What :func:`claim_record` says of a record that somebody else has."""
TOUCH_TRIES = 1 << 10
EIGHT = 8
"""Neighbouring frames whose bytes are one word: one locked instruction instead of eight.

A locked instruction takes 6 ns, clearing a page 48; with three of them for each page a walk reached 0.73 of a fill.
"""
EACH = 0x0101010101010101
"""A word of eight bytes of one; times a byte it is eight of that byte."""


@kernel
def eight_from(frames: I64, i: Integer, last: Integer, array: U8) -> bool:
    """Whether ``frames[i:i+8]`` are neighbours whose elements of `array` are one aligned word."""
    if i + EIGHT > last:
        return False
    frame = frames[i]
    same = address_of(array, frame) & np.uint64(EIGHT - 1) == np.uint64(0)
    for k in range(1, EIGHT):
        same &= frames[i + k] == frame + k
    return bool(same)


@kernel
def claim_eight(state: U8, frame: Integer, page_state: Integer) -> bool:
    """Claim `frame` and its seven neighbours if all are in `page_state` and nobody has any of them.

    state : uint8[n], whose elements of these frames are one aligned word.
    """
    address = address_of(state, frame)
    free = np.uint64(EACH) * np.uint64(page_state)
    return bool(load_word_at(address) == free and swap_word_at(address, free, free | np.uint64(EACH * CLAIMED)))


@kernel
def claim(state: U8, frame: Integer) -> np.uint8:
    """Claim `frame` for a transition; its page state, or BUSY.

    state : uint8[n], one element per host frame.
    """
    seen = load_acquire(state, frame)
    while seen & (CLAIMED | TOUCH_MASK) == 0:
        if compare_and_swap(state, frame, seen, np.uint8(seen | CLAIMED)):
            return np.uint8(seen)
        seen = load_acquire(state, frame)
    return np.uint8(BUSY)


@kernel
def publish(state: U8, frame: Integer, page_state: Integer) -> None:
    """Let go of a claim; the frame is in `page_state` from now on."""
    store_release(state, frame, np.uint8(page_state))


@kernel
def touch(state: U8, frame: Integer) -> np.uint8:
    """Hold `frame` for an access beside other accesses; its page state, or BUSY when a transition has it."""
    for _ in range(TOUCH_TRIES):
        seen = load_acquire(state, frame)
        if seen & CLAIMED == 0 and seen & TOUCH_MASK != TOUCH_MASK:
            if compare_and_swap(state, frame, seen, np.uint8(seen + TOUCH_ONE)):
                return np.uint8(seen & STATE_MASK)
        else:
            relax()
    return np.uint8(BUSY)


@kernel
def let_go(state: U8, frame: Integer) -> None:
    """End an access begun by :func:`touch`."""
    seen = load_acquire(state, frame)
    while not compare_and_swap(state, frame, seen, np.uint8(seen - TOUCH_ONE)):
        seen = load_acquire(state, frame)


@kernel
def record_address(directory: U64, slot: Integer, page: Integer, wide: bool) -> np.uint64:
    """Address of the record of (configuration in `slot`, guest `page`): eight bytes if `wide`, else one."""
    return np.uint64(directory[slot * DIR_WORDS + DIR_RECORDS] + np.uint64(page) * np.uint64(8 if wide else 1))


@kernel
def has_page(directory: U64, slot: Integer, page: Integer) -> bool:
    """Whether guest `page` lies inside the configuration's storage."""
    return bool(np.uint64(page) < directory[slot * DIR_WORDS + DIR_PAGES])


@kernel
def claim_record(directory: U64, slot: Integer, page: Integer, wide: bool) -> np.uint64:
    """Claim a record; its word without the claim, or RECORD_BUSY.

    directory : uint64[slots * DIR_WORDS].
    """
    address = record_address(directory, slot, page, wide)
    if wide:
        seen = load_word_at(address)
        if seen & np.uint64(RECORD_CLAIMED) == np.uint64(0) and swap_word_at(
            address, seen, seen | np.uint64(RECORD_CLAIMED)
        ):
            return seen
    else:
        byte = load_byte_at(address)
        if byte & np.uint8(RECORD_CLAIMED) == 0 and swap_byte_at(address, byte, np.uint8(byte | RECORD_CLAIMED)):
            return np.uint64(byte)
    return np.uint64(RECORD_BUSY)


@kernel
def publish_record(directory: U64, slot: Integer, page: Integer, wide: bool, word: Integer) -> None:
    """Let go of a record, which now says `word`."""
    address = record_address(directory, slot, page, wide)
    if wide:
        store_word_at(address, np.uint64(word))
    else:
        store_byte_at(address, np.uint8(word))
