"""Accesses of guests and host against their twins."""

from __future__ import annotations

import numpy as np
import pytest
import twins

from lazypv_kernels import access
from lazypv_kernels.layout import RC_BUSY, RC_DONE

from .worlds import (
    GUEST_PAGES,
    SLOTS,
    agree,
    codes_and_counts,
    every_size,
    no_tracking,
    random_frames,
    random_owner,
    random_pte,
    random_state,
    random_words,
    seeds,
    with_and_without_contents,
)


@pytest.mark.parametrize("protected", [True, False], ids=["protected", "host or normal guest"])
def test_every_accessor_and_page_state_gets_the_interruption_of_the_decision_table(protected):
    """Semantics 7, decision table, all of it."""
    for seen in np.arange(8, dtype=np.uint8):
        for same_owner in (True, False):
            for same_page in (True, False):
                agree(access.verdict, twins.verdict, seen, same_owner, same_page, protected)


def test_the_stamp_of_a_page_lies_inside_it_and_is_spread():
    """Design, remanence: a stamp at the same offset of each page would hide in a half that was not cleared."""
    offsets = [agree(access.stamp_offset, twins.stamp_offset, page)[0] for page in range(2000)]
    assert min(offsets) >= 0
    assert max(offsets) < 512
    assert np.bincount(np.array(offsets) // 256).min() > 800


@seeds(5)
def test_the_hash_of_a_page_depends_on_every_word(seed):
    """Remanence looks pages up by hash: four lanes, none of them forgotten."""
    words = random_words(np.random.default_rng(seed), 2)
    before, _ = agree(access.hash_words, twins.hash_words, words, 1)
    for k in range(512):
        words[1, k] ^= np.uint64(1) << np.uint64(k % 64)
        after, _ = agree(access.hash_words, twins.hash_words, words, 1) if k < 8 else (access.hash_words(words, 1), 0)
        assert after != before
        words[1, k] ^= np.uint64(1) << np.uint64(k % 64)


def test_a_page_outside_the_address_translation_is_not_mapped():
    """An access beyond the guest's storage is a translation exception, not somebody else's memory."""
    pte = np.array([3, 0, 5], np.uint32)
    for page in (-(2**40), -1, 0, 1, 2, 3, 2**40):
        agree(access.entry_of, twins.entry_of, pte, page)


@with_and_without_contents
@pytest.mark.parametrize("operation", [access.LOAD, access.STORE_WORD, access.STORE_PAGE, access.COPY_PAGE])
@every_size
@seeds(3)
def test_a_guest_access_is_its_twin(seed, size, operation, contents):
    """Semantics 7; every state, claimed, touched and donated frames, repeated pages, pages outside the translation."""
    rng = np.random.default_rng(seed)
    state = random_state(rng, size)
    pages = rng.integers(-2, GUEST_PAGES + 2, 2 * size)
    code, counts = codes_and_counts(pages.size)
    agree(
        access.guest_access,
        twins.guest_access,
        random_words(rng, size if contents else 0),
        state,
        random_owner(rng, state),
        rng.integers(0, GUEST_PAGES, size).astype(np.uint32),
        no_tracking(),
        random_pte(rng, size),
        int(rng.integers(0, SLOTS + 1)),
        pages,
        operation,
        rng.integers(0, 2**64, pages.size, np.uint64),
        random_words(rng, 4),
        rng.integers(-1, 4, pages.size),
        int(rng.integers(0, pages.size + 1)),
        pages.size,
        code,
        counts,
    )


def some_frames(rng, size):
    """What the host's accesses are told of frames: (state, owner, guest_page, directory)."""
    state = random_state(rng, size)
    return state, random_owner(rng, state), rng.integers(0, GUEST_PAGES, size).astype(np.uint32), no_tracking()


def owned_by_the_guest(rng, size, slot):
    """A guest's view in which about half of the accesses fit: (state, owner, guest_page, pte)."""
    state = random_state(rng, size)
    owner, guest_page, pte = random_owner(rng, state), np.zeros(size, np.uint32), random_pte(rng, size)
    for page in np.flatnonzero(pte):
        guest_page[pte[page] - 1] = page
        if rng.random() < 0.7:
            owner[pte[page] - 1] = slot
    return state, owner, guest_page, no_tracking(), pte


@pytest.mark.parametrize("share", [True, False], ids=["share", "unshare"])
@every_size
@seeds(6)
def test_sharing_and_unsharing_are_their_twins(seed, size, share):
    """Semantics 2.2, 2.3: secure becomes shared and back; a pinned page is a notification."""
    rng = np.random.default_rng(seed)
    pages = rng.integers(-2, GUEST_PAGES + 2, 2 * size)
    agree(
        access.guest_share, twins.guest_share, *owned_by_the_guest(rng, size, 1), 1, pages, share, 0, pages.size,
        *codes_and_counts(pages.size),
    )  # fmt: skip


@every_size
@seeds(4)
def test_pinning_is_its_twin(seed, size):
    """Semantics 2.3, PIN_PAGE_SHARED: shared and pinned pages only."""
    rng = np.random.default_rng(seed)
    frames = random_frames(rng, size, 2 * size)
    agree(
        access.pin_pages, twins.pin_pages, random_state(rng, size), 0xF05, frames, 0, frames.size,
        *codes_and_counts(frames.size),
    )  # fmt: skip


@every_size
@seeds(6)
def test_unpinning_is_its_twin(seed, size):
    """Semantics 2.3, UNPIN_PAGE_SHARED: a pinned page of this guest at this address only."""
    rng = np.random.default_rng(seed)
    pages = rng.integers(-2, GUEST_PAGES + 2, 2 * size)
    agree(
        access.unpin_pages, twins.unpin_pages, *owned_by_the_guest(rng, size, 1), 1, 0x10A, 0xF05, pages, 0, pages.size,
        *codes_and_counts(pages.size),
    )  # fmt: skip


@with_and_without_contents
@every_size
@seeds(3)
def test_the_host_clears_what_it_may_touch(seed, size, contents):
    """Semantics 7: 0x3d for secure and donated frames, of which nothing changes."""
    rng = np.random.default_rng(seed)
    frames = random_frames(rng, size, 2 * size)
    agree(
        access.host_clear, twins.host_clear, random_words(rng, size if contents else 0), *some_frames(rng, size),
        frames, 0, frames.size, *codes_and_counts(frames.size),
    )  # fmt: skip


@with_and_without_contents
@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
@every_size
@seeds(3)
def test_the_host_copies_what_it_may_touch(seed, size, write, contents):
    """Semantics 7: not a byte of a secure or donated frame arrives in the buffer, or the other way round."""
    rng = np.random.default_rng(seed)
    frames = random_frames(rng, size, 2 * size)
    buffer = rng.integers(0, 256, (frames.size, 4096)).astype(np.uint8)
    page_bytes = random_words(rng, size if contents else 0).view(np.uint8)
    code, _ = codes_and_counts(frames.size)
    places = rng.permutation(frames.size)
    start, end = sorted(rng.integers(0, frames.size * 4096 + 1, 2).tolist()) if seed else (0, frames.size * 4096)
    _, (*_, copied, _, _, _, _, _, _, code) = agree(
        access.host_copy, twins.host_copy, page_bytes, *some_frames(rng, size), frames, buffer, write, places, start,
        end, 0, frames.size, code,
    )  # fmt: skip
    untouched = np.flatnonzero(code != RC_DONE)
    np.testing.assert_array_equal(copied[untouched], buffer[untouched])
    assert set(code.tolist()) <= {RC_DONE, RC_BUSY, 0x3D}
