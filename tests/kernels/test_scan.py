"""Scans against their twins."""

from __future__ import annotations

import re

import numba
import numpy as np
import pytest
import twins

from lazypv_kernels import scan

from .worlds import GUEST_PAGES, SLOTS, agree, every_size, random_owner, random_pte, random_state, random_words, seeds


def some_range(rng, size):
    first, last = sorted(rng.integers(0, size + 1, 2).tolist())
    return first, last


@every_size
@seeds(3)
def test_counting_frames_is_its_twin(seed, size):
    """By slot and state, by owner, and below a guest page (invariant 22)."""
    rng = np.random.default_rng(seed)
    state = random_state(rng, size)
    owner, guest_page = random_owner(rng, state), rng.integers(0, GUEST_PAGES, size).astype(np.uint32)
    first, last = some_range(rng, size)
    agree(scan.census, twins.census, state, owner, first, last, np.zeros((SLOTS + 1, 8), np.int64))
    for slot in range(1, SLOTS + 1):
        agree(scan.count_owned, twins.count_owned, state, owner, slot, first, last)
        agree(
            scan.count_owned_below, twins.count_owned_below, state, owner, guest_page, slot, GUEST_PAGES // 2, first,
            last,
        )  # fmt: skip
        seen_pages = np.zeros(GUEST_PAGES, np.uint8)
        agree(
            scan.count_double_owned, twins.count_double_owned, state, owner, guest_page, slot, seen_pages, first, last
        )


def alike(rng, size):
    """Frames as machines have them: long stretches that are alike, some holes."""
    state, host = random_state(rng, size), rng.integers(0, 256, size).astype(np.uint8)
    owner = random_owner(rng, state)
    for _ in range(3):
        first, last = some_range(rng, size)
        state[first:last], owner[first:last], host[first:last] = rng.integers(0, 8), rng.integers(0, 4), 0x82
    return state, owner, host


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200, 1000])
@seeds(4)
def test_candidates_are_gathered_and_counted_by_state_owner_and_mark(seed, size):
    """Scans of the terabyte cases; every state, held ones too, any border of 64, room for fewer than there are."""
    rng = np.random.default_rng(seed)
    state, owner, host = alike(rng, size)
    for page_state in range(8):
        for slot in (0, 2, scan.ANY_OWNER):
            for mark in (0, 0x80, 0xC0):
                what = (state, owner, host, page_state, slot, mark, *some_range(rng, size))
                count, _ = agree(scan.count_frames, twins.count_frames, *what)
                for room in {0, count // 2, count, count + 70}:
                    found, arguments = agree(scan.find_frames, twins.find_frames, *what, np.full(room, -9))
                    if found[1] < what[7]:
                        again, _ = agree(scan.find_frames, twins.find_frames, *what[:6], found[1], what[7],
                                         np.full(count, -9))  # fmt: skip
                        assert found[0] + again[0] == count
                    assert np.all(np.diff(arguments[8][: found[0]]) > 0)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200, 1000])
@seeds(6)
def test_the_first_free_run_is_found(seed, size):
    """Aligned, of any length, around every border; and none where there is none."""
    rng = np.random.default_rng(seed)
    host = (rng.random(size) < rng.choice([0.02, 0.3, 0.9])).astype(np.uint8)
    for _ in range(4):
        first, last = some_range(rng, size)
        host[first:last] = rng.integers(0, 2)
    for align in (1, 4, 7, 64):
        for want in (1, 2, 16, 65, 130):
            for start in (0, 5, size):
                agree(scan.find_free_run, twins.find_free_run, host, start, align, want)


def test_scans_of_metadata_look_at_a_vector_at_once():
    """Design: no page costs an instruction of its own; AVX-512, AVX2, SSE or Neon, whichever this computer has."""
    state, owner, host = np.zeros(64, np.uint8), np.zeros(64, np.uint16), np.zeros(64, np.uint8)
    compare = re.compile(r"v?pcmp\w*[bw]\b|vptestn?m[bw]|vpminub|cmeq|cmhi|cmtst|uminv")
    for kernel, arguments in (
        (scan.count_frames, (state, owner, host, 0, 0, 0, 0, 64)),
        (scan.census, (state, owner, 0, 64, np.zeros((1, 8), np.int64))),
        (scan.find_free_run, (host, 0, 1, 64)),
    ):
        compiled = numba.njit(kernel.py_func)  # code from the cache cannot be looked at
        compiled(*arguments)
        assert compare.search("".join(compiled.inspect_asm().values())), kernel.__name__


@every_size
@seeds(3)
def test_frames_that_contradict_an_invariant_are_counted(seed, size):
    """Invariants 1, 2, 4, and nothing held while nothing runs; owners here fit nothing."""
    rng = np.random.default_rng(seed)
    state, owner = random_state(rng, size), rng.integers(0, 2, size).astype(np.uint16)
    host = rng.choice(np.array([0, 1, 0x80, 0x81], np.uint8), size)
    agree(
        scan.count_broken_frames, twins.count_broken_frames, state, owner, host, *some_range(rng, size),
        np.zeros(4, np.int64),
    )  # fmt: skip


@every_size
@seeds(3)
def test_references_are_counted_and_compared_with_what_is_expected(seed, size):
    """Each mapping is one reference."""
    rng = np.random.default_rng(seed)
    host, expected = rng.integers(0, 256, size).astype(np.uint8), rng.integers(0, 64, size).astype(np.uint8)
    agree(scan.count_references, twins.count_references, host, random_pte(rng, size, 40), expected, 3, 40)
    for room in (0, 3, 200):
        agree(
            scan.compare_references, twins.compare_references, host, expected, *some_range(rng, size),
            np.zeros(room, np.int64),
        )  # fmt: skip


@every_size
@seeds(2)
def test_frames_that_hold_a_stamp_are_found(seed, size):
    """Remanence: in any aligned word, asking neither state nor owner."""
    rng = np.random.default_rng(seed)
    words, stamps = random_words(rng, size), rng.integers(0, 2**64, 3, np.uint64)
    for frame in np.flatnonzero(rng.random(size) < 0.3):
        words[frame, rng.integers(0, 512)] = stamps[rng.integers(0, 3)]
    for room in (0, 2, 200):
        agree(scan.find_words, twins.find_words, words, stamps, *some_range(rng, size), np.zeros(room, np.int64))


@every_size
@seeds(2)
def test_frames_whose_content_is_known_by_hash_are_found(seed, size):
    """Remanence: old page hashes, looked up over all frames."""
    rng = np.random.default_rng(seed)
    words = random_words(rng, size)
    _, arguments = agree(scan.hash_frames, twins.hash_frames, words, 0, size, np.zeros(size, np.uint64))
    hashes = arguments[3]
    known = np.concatenate([hashes[::3], hashes[:1], np.zeros(2, np.uint64), rng.integers(1, 2**64, 9, np.uint64)])
    table = np.zeros(512, np.uint64)
    scan.fill_hash_table(table, known)
    expected = np.zeros(512, np.uint64)
    twins.fill_hash_table(expected, known)
    np.testing.assert_array_equal(np.sort(table), np.sort(expected))
    for room in (0, 2, 200):
        hits, _ = agree(scan.find_hashes, twins.find_hashes, words, table, 0, size, np.zeros(room, np.int64))
        assert hits == len(range(0, size, 3))


@pytest.mark.parametrize("frames", [[], [0], [3, 9], [3, 10], [-1, 2], [9, 9, 11, -4]])
def test_the_first_frame_outside_the_machine_is_found(frames):
    frames = np.array(frames, np.int64)
    assert scan.first_outside(frames, 10) == twins.first_outside(frames, 10)
