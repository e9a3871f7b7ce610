"""Claims of frames and records against their twins."""

from __future__ import annotations

import numpy as np
import twins

from lazypv_kernels import claims
from lazypv_kernels.layout import RECORD_CLAIMED

from .worlds import GUEST_PAGES, SLOTS, agree, assert_same_world, random_world, with_and_without_contents

EVERY_STATE_BYTE = np.arange(256, dtype=np.uint8)


def test_a_claim_takes_what_nobody_holds_and_says_what_it_was():
    """Design, batch = page by page: claimed by compare-and-swap on the state byte; every byte there can be."""
    for frame in range(256):
        agree(claims.claim, twins.claim, EVERY_STATE_BYTE, frame)


def test_publishing_leaves_the_page_state_alone_in_the_byte():
    """The claim ends with the transition."""
    for page_state in range(8):
        agree(claims.publish, twins.publish, EVERY_STATE_BYTE, 0x80 | page_state, page_state)


def test_a_touch_stands_beside_other_touches_but_not_beside_a_claim():
    """A guest's access claims the frame shared; fifteen at most, for that is all the bits can count."""
    for frame in range(0, 256, 5):
        agree(claims.touch, twins.touch, EVERY_STATE_BYTE, frame)


def test_letting_go_undoes_a_touch():
    """Whatever the page state is, and however many others touch the frame."""
    for frame in range(128):
        answer, arguments = agree(claims.touch, twins.touch, EVERY_STATE_BYTE, frame)
        if answer != claims.BUSY:
            _, after = agree(claims.let_go, twins.let_go, arguments[0], frame)
            np.testing.assert_array_equal(after[0], EVERY_STATE_BYTE)


@with_and_without_contents
def test_a_record_is_claimed_once_and_published_with_its_new_word(contents):
    """Design: the record of (configuration, guest page) has a claim of its own: a word with contents, else a byte."""
    ours = random_world(np.random.default_rng(1), 4, contents, held=1.0)
    theirs = ours.copy()
    for slot in range(1, SLOTS + 1):
        for page in range(GUEST_PAGES):
            assert claims.has_page(ours.directory, slot, page)
            seen = claims.claim_record(ours.directory, slot, page, contents)
            assert seen == twins.claim_record(theirs, slot, page)
            assert_same_world(ours, theirs)
            assert claims.claim_record(ours.directory, slot, page, contents) == twins.RECORD_BUSY
            if seen != twins.RECORD_BUSY:
                word = np.uint64(int(seen) ^ 3)
                claims.publish_record(ours.directory, slot, page, contents, word)
                twins.publish_record(theirs, slot, page, int(word))
                assert not int(ours.records[slot][page]) & RECORD_CLAIMED
                assert_same_world(ours, theirs)


def test_only_guest_pages_inside_the_storage_of_a_configuration_are_its_pages():
    """Semantics 2.3: outside of it CONV_TO_SEC_STOR is refused; slot 0 is nobody and has no page."""
    world = random_world(np.random.default_rng(2), 1)
    for slot in range(SLOTS + 1):
        for page in (-1, 0, GUEST_PAGES - 1, GUEST_PAGES, 2**32):
            inside = claims.has_page(world.directory, slot, page)
            assert inside == (slot > 0 and twins.has_page(world.directory, slot, page))


def test_eight_neighbours_are_claimed_at_once_or_not_at_all():
    """All in the state that is asked for, and nobody has any of them."""
    for page_state in range(8):
        state = np.full(24, page_state, np.uint8)
        assert agree(claims.claim_eight, twins.claim_eight, state, 8, page_state)[0]
        assert not agree(claims.claim_eight, twins.claim_eight, state, 8, (page_state + 1) % 8)[0]
        for other in range(8, 16):
            for byte in (page_state | 0x80, page_state | 0x08, page_state ^ 1):
                state[other] = byte
                assert not agree(claims.claim_eight, twins.claim_eight, state, 8, page_state)[0]
            state[other] = page_state
