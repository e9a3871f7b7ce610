"""The host's byte of each frame, and page table entries, against their twins."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import twins

from lazypv_kernels import allocation, claims, references
from lazypv_kernels.layout import MARK_SECURE, MARK_WRITEBACK, RC_BUSY, RC_DONE, REFERENCES

from .worlds import agree, every_size, random_frames, random_pte, seeds


def random_host(rng, size, frozen=False):
    """Free frames, frames with one to 63 references, with and without marks; frozen ones only on demand."""
    host = rng.choice(np.array([0, 1, 1, 2, 3, 61, 62, 63], np.uint8), size)
    host[host != 0] |= rng.choice(np.array([0, 0x40, 0x80, 0xC0], np.uint8), np.count_nonzero(host))
    if frozen:
        host[rng.random(size) < 0.1] = MARK_SECURE
    return host


def test_a_reference_is_taken_from_every_byte_that_has_one():
    """Free: nobody has it; 62 and more: left to the side table. A frozen frame is waited for, so it is left out."""
    host = np.arange(256, dtype=np.uint8)
    for frame in range(256):
        if frame == 0 or host[frame] & REFERENCES:
            agree(references.get_reference, twins.get_reference, host, frame)


@every_size
@seeds(6)
def test_getting_references_stops_where_python_has_to_help(seed, size):
    """A frame twice in the batch gets two references."""
    rng = np.random.default_rng(seed)
    frames = random_frames(rng, size, 2 * size)
    host = random_host(rng, size)
    host[rng.random(size) < 0.9] = 1
    agree(references.get_references, twins.get_references, host, frames, 0, frames.size)


@every_size
@seeds(6)
def test_gathering_is_its_twin(seed, size):
    """Patch 05: present entries up to the limit, one extra reference each, stale entries left out."""
    rng = np.random.default_rng(seed)
    pte, host = random_pte(rng, size, 40), random_host(rng, size)
    host[rng.random(size) < 0.7] = 1
    at = int(rng.integers(0, 41))
    for limit in (0, 1, 5, 40):
        agree(references.gather, twins.gather, pte, at, 40, host, limit, np.full(40, -9))


@every_size
@seeds(6)
def test_looking_up_is_its_twin(seed, size):
    """One reference more on what is mapped, -1 elsewhere, also outside the translation."""
    rng = np.random.default_rng(seed)
    pages = rng.integers(-3, 43, 20)
    host = random_host(rng, size)
    host[rng.random(size) < 0.7] = 1
    agree(references.look_up, twins.look_up, random_pte(rng, size, 40), pages, host, np.full(20, -9), 0, 20)


def neighbours(rng, size):
    """Frames mostly in runs, as a guest that fills its memory gets them, with odd beginnings and a few strangers."""
    frames = (np.arange(size) + rng.integers(0, 9)) % max(size, 1)
    strange = rng.random(size) < 0.04
    frames[strange] = rng.integers(0, max(size, 1), np.count_nonzero(strange))
    return frames


@pytest.mark.parametrize("size", [0, 7, 8, 9, 63, 200])
@seeds(8)
def test_runs_of_neighbours_are_gathered_and_settled_as_single_frames_are(seed, size):
    """With one locked instruction for eight; a frame of the side table, a free one or another mapping breaks a run."""
    rng = np.random.default_rng(seed)
    host = np.full(size, rng.choice([0x81, 1, 2, 0x82]), np.uint8)
    strange = rng.random(size) < 0.04
    host[strange] = random_host(rng, size)[strange]
    pte = (neighbours(rng, size) + 1).astype(np.uint32)
    pte[rng.random(size) < 0.02] = 0
    for at in (0, min(3, size)):
        for limit in (0, 5, 8, 64, size):
            agree(references.gather, twins.gather, pte, at, size, host, limit, np.full(limit, -9))
    for entry in range(size - 7):
        agree(references.hold_eight, twins.hold_eight, pte, entry, host, np.full(12, -9), entry % 4)
    frames = neighbours(rng, size)
    rc = np.full(size, RC_DONE, np.uint16)
    rc[rng.random(size) < 0.02] = 0xF01
    for clear_mark in (True, False):
        for drop in (True, False):
            agree(references.settle, twins.settle, host, frames, 0, size, rc, clear_mark, drop)
    for last in (size, max(0, size - 5)):
        for i in range(0, size, 3):
            agree(claims.eight_from, twins.eight_from, frames, i, last, host)


@pytest.mark.parametrize("clear_mark", [True, False])
@pytest.mark.parametrize("drop", [True, False])
@every_size
@seeds(4)
def test_settling_is_its_twin(seed, size, drop, clear_mark):
    """Invariant 3: the mark goes only where the call succeeded, or with the last reference."""
    rng = np.random.default_rng(seed)
    frames = random_frames(rng, size, size)
    host = random_host(rng, size)
    host[rng.random(size) < 0.7] = MARK_SECURE | 2
    rc = rng.choice(np.array([RC_DONE, RC_BUSY, 0xF01], np.uint16), frames.size)
    agree(references.settle, twins.settle, host, frames, 0, frames.size, rc, clear_mark, drop)


@every_size
@seeds(4)
def test_freezing_and_thawing_are_their_twins(seed, size):
    """Semantics 2.5, invariants 5, 6: exactly the expected references and no writeback; the mark comes first."""
    rng = np.random.default_rng(seed)
    frames = random_frames(rng, size, size)
    host = random_host(rng, size, frozen=True)
    host[rng.random(size) < 0.5] = 1
    frames[rng.random(frames.size) < 0.1] = -1
    expected = int(rng.choice([0, 1, 1, 2]))
    rc = np.zeros(frames.size, np.uint16)
    _, after = agree(references.freeze, twins.freeze, host, frames, expected, 0x10A, 0xFFFF, 0, frames.size, rc)
    frozen, rc = after[0], after[7]
    agree(references.unfreeze, twins.unfreeze, frozen, frames, expected, 0, frames.size, rc)


@every_size
@seeds(3)
def test_marks_are_read_set_and_cleared_without_touching_references(seed, size):
    """Semantics 2.4."""
    rng = np.random.default_rng(seed)
    host, frames = random_host(rng, size, frozen=True), random_frames(rng, size, size)
    for mark in (MARK_SECURE, MARK_WRITEBACK):
        agree(references.marked, twins.marked, host, frames, mark, 0, frames.size, np.zeros(frames.size, np.bool_))
        for on in (True, False):
            agree(references.mark_frames, twins.mark_frames, host, frames, mark, on, 0, frames.size)


def test_a_byte_is_exchanged_only_if_it_is_what_it_was():
    """What Python changes beside kernels goes by compare-and-swap too."""
    host = np.array([5, 0x85], np.uint8)
    for seen in (5, 0x85):
        agree(references.exchange_byte, twins.exchange_byte, host, 1, seen, 0x86)


@every_size
@seeds(4)
def test_allocating_is_its_twin(seed, size):
    """Free frames are found from any start, around the end, once each."""
    rng = np.random.default_rng(seed)
    host = random_host(rng, size)
    for start in (0, size // 2, size):
        for want in (0, 1, 5, size + 1):
            agree(allocation.allocate, twins.allocate, host, start, want, np.full(max(want, 1), -9))


@every_size
@seeds(4)
def test_allocating_a_run_is_its_twin(seed, size):
    """Consecutive, aligned, not before `start`; a failed search leaves nothing taken."""
    rng = np.random.default_rng(seed)
    host = random_host(rng, size)
    host[rng.random(size) < 0.5] = 0
    for start in (0, 3, size):
        for align in (1, 4):
            for want in (1, 2, 4, size + 1):
                agree(allocation.allocate_run, twins.allocate_run, host, start, align, want)


@every_size
@seeds(4)
def test_mapping_and_unmapping_are_their_twins(seed, size):
    """Who comes second is told so; unmapping hands over every frame once."""
    rng = np.random.default_rng(seed)
    pages = rng.integers(0, 40, size)
    pte = random_pte(rng, size, 40)
    frames = random_frames(rng, size, size)
    agree(references.map_pages, twins.map_pages, pte, pages, frames, 0, size, np.zeros(size, np.uint8))
    for limit in (0, 1, 7, 40):
        agree(references.unmap, twins.unmap, pte, int(rng.integers(0, 41)), 40, limit, np.full(40, -9))


def test_a_reference_is_dropped_from_every_byte_that_has_one():
    for byte in range(256):
        if byte & REFERENCES:
            host, twin = np.array([byte], np.uint8), np.array([byte], np.uint8)
            assert references.drop_reference(host, 0) == twins.drop_reference(twin, 0) == (byte & REFERENCES < 63)
            assert host[0] == twin[0]


@pytest.mark.parametrize("byte", [0, 1, 5, MARK_SECURE | 2, REFERENCES - 1, REFERENCES])
@pytest.mark.parametrize("entry", [-1, 0, 1, 2])
def test_what_is_mapped_is_held(byte, entry):
    """Entry 1 maps frame 0; entries 0 and 2 map nothing or lie outside."""
    pte = np.array([0, 1], np.uint32)
    host, twin = np.array([byte], np.uint8), np.array([byte], np.uint8)
    assert tuple(references.hold_mapped(pte, entry, host)) == tuple(twins.hold_mapped(pte, entry, twin))
    assert host[0] == twin[0]


def test_dropping_a_reference_waits_until_the_frame_is_thawed():
    """Semantics 2.5: an unmapping waits for the lock under which an import has frozen the page."""
    host, frames = np.array([MARK_SECURE], np.uint8), np.zeros(1, np.int64)
    rc = np.ones(1, np.uint16)
    settled = threading.Thread(target=references.settle, args=(host, frames, 0, 1, rc, False, True))
    settled.start()
    references.unfreeze(host, frames, 1, 0, 1, rc)
    settled.join(30)
    assert not settled.is_alive()
    assert host[0] == 0


@pytest.mark.parametrize("size", [0, 3, 8, 64, 203])
@seeds(4)
def test_whole_free_blocks_are_taken_and_no_part_of_others(seed, size):
    """For huge pages that go back to the operating system; the last part of a machine is none."""
    rng = np.random.default_rng(seed)
    host = (rng.random(size) < 0.1).astype(np.uint8)
    for block in (1, 4, 8, 64):
        agree(allocation.allocate_blocks, twins.allocate_blocks, host, block, np.full(size // block, -9))
