"""Four threads on the same frames: whatever comes between, nothing is lost, and nothing is done twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from twins import on_lines

from lazypv_kernels import access, allocation, batches, claims, references, scan, sweep
from lazypv_kernels.layout import (
    COUNT_BUSY,
    COUNT_DONE,
    COUNT_NOOP,
    MARK_SECURE,
    NS,
    PAGE_SIZE,
    RC_BUSY,
    RC_DONE,
    REFERENCES,
    SEC,
    STATE_MASK,
)

from .worlds import codes_and_counts, no_tracking

THREADS = 4
PAGES = 512
ROUNDS = 12


def together(*works):
    """Each in a thread of its own, all beginning at once; what they give back."""
    gate = threading.Barrier(len(works))

    def one(work):
        gate.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(one, work) for work in works]]


def orders(rng):
    """The same frames for each thread: ascending, in runs at odd places, and in no order."""
    ascending = np.arange(PAGES)
    return [ascending, np.roll(ascending, 5), rng.permutation(PAGES), np.roll(ascending, 64)]


@pytest.mark.parametrize("contents", [True, False])
def test_each_frame_is_destroyed_once_whoever_comes_first(contents):
    """Eight at once or one by one: claims are exact, and who comes second finds it clean, or busy."""
    rng = np.random.default_rng(0)
    for _ in range(ROUNDS):
        pages = on_lines(np.full((PAGES if contents else 0, PAGE_SIZE), 0xAA, np.uint8))
        state, owner = np.full(PAGES, SEC, np.uint8), rng.integers(1, 3, PAGES).astype(np.uint16)
        answers = [codes_and_counts(PAGES) for _ in range(THREADS)]

        def destroy(frames, answer, pages=pages, state=state, owner=owner):
            sweep.destroy_pages(pages, state, owner, no_tracking(), 0xF01, frames, 0, PAGES, *answer)

        together(*[lambda f=f, a=a: destroy(f, a) for f, a in zip(orders(rng), answers, strict=True)])
        counts = np.sum([counts for _, counts in answers], axis=0)
        assert counts[COUNT_DONE] == PAGES
        assert counts[COUNT_DONE] + counts[COUNT_NOOP] + counts[COUNT_BUSY] == THREADS * PAGES
        assert {int(code) for rc, _ in answers for code in rc} <= {RC_BUSY, RC_DONE}
        assert not pages.any()
        assert not state.any()
        assert not owner.any()


def test_references_that_are_taken_and_dropped_beside_each_other_balance():
    """Gathered in words and one by one, settled in words and one by one, over the same bytes."""
    rng = np.random.default_rng(1)
    host = np.full(PAGES, 1 | MARK_SECURE, np.uint8)
    done = np.full(PAGES, RC_DONE, np.uint16)

    def churn(pte, seed):
        random = np.random.default_rng(seed)
        for _ in range(50 * ROUNDS):
            at = int(random.integers(0, PAGES - 70))
            frames = np.empty(70, np.int64)
            count, _, overflow = references.gather(pte, at, at + 70, host, 70, frames)
            assert (count, overflow) == (70, 0)
            assert references.settle(host, frames, 0, 70, done, seed % 2 == 0, True) == (0, 70, False)

    tables = [(order + 1).astype(np.uint32) for order in orders(rng)]
    together(*[lambda t=t, s=s: churn(t, s) for s, t in enumerate(tables)])
    assert (host & REFERENCES == 1).all()
    assert not (host & MARK_SECURE).all()


def test_free_frames_go_to_one_only():
    """One by one and in runs, from the same machine."""
    for _ in range(ROUNDS):
        host = np.zeros(PAGES, np.uint8)
        host[::37] = 1
        held = host.copy()

        def single(start, host=host):
            frames = np.empty(40, np.int64)
            count, _ = allocation.allocate(host, start, 40, frames)
            return frames[:count]

        def run(align, host=host):
            first = allocation.allocate_run(host, 0, align, 16)
            return np.arange(first, first + 16) if first >= 0 else np.empty(0, np.int64)

        taken = together(lambda: single(0), lambda: single(3), lambda: run(1), lambda: run(8))
        every = np.concatenate(taken)
        assert np.unique(every).size == every.size == 112
        assert not held[every].any()
        assert (host[every] == 1).all()
        assert np.count_nonzero(host) == np.count_nonzero(held) + every.size


def test_walks_guests_and_sweeps_meet_on_the_same_frames():
    """Two walks in one piece, a guest that reads, and single destroys: all clean, references as at first."""
    for _ in range(ROUNDS):
        pages = on_lines(np.full((PAGES, PAGE_SIZE), 0xAA, np.uint8))
        words = pages.view(np.uint64)
        state, owner = np.full(PAGES, SEC, np.uint8), np.ones(PAGES, np.uint16)
        guest_page = np.arange(PAGES, dtype=np.uint32)
        host = np.full(PAGES, 1 | MARK_SECURE, np.uint8)
        pte = np.arange(1, PAGES + 1, dtype=np.uint32)
        flag = np.zeros(1, np.uint8)
        whole = access.hash_words(words, 0)
        frames = np.arange(PAGES)

        def walk(batch, pages=pages, state=state, owner=owner, host=host, pte=pte, flag=flag):
            at, done = 0, 0
            while at < PAGES:
                left = np.empty(batch, np.int64)
                rc, counts = codes_and_counts(batch)
                how, at, count, settled = batches.destroy_batches(
                    pages, state, owner, no_tracking(), 0xF01, host, pte, at, PAGES, PAGES, True, True, flag, flag,
                    left, rc, counts, np.zeros(3, np.int64),
                )  # fmt: skip
                done += counts[COUNT_DONE]
                if how == batches.GATHERED:
                    rc, counts = codes_and_counts(batch)
                    sweep.destroy_pages(
                        pages, state, owner, no_tracking(), 0xF01, left, 0, count, rc, counts
                    )  # fmt: skip
                    done += counts[COUNT_DONE]
                references.settle(host, left, settled, count, rc, True, True)
            return done

        def read(words=words, state=state, owner=owner, guest_page=guest_page, pte=pte, whole=whole, frames=frames):
            code, counts = codes_and_counts(PAGES)
            values = np.zeros(PAGES, np.uint64)
            access.guest_access(
                words, state, owner, guest_page, no_tracking(), pte, 1, frames, access.LOAD, values,
                np.zeros((1, 512), np.uint64), frames, 0, PAGES, code, counts,
            )  # fmt: skip
            assert (values[code == RC_DONE] == whole).all(), "a page was half cleared while it was read"
            return 0

        def single(pages=pages, state=state, owner=owner, frames=frames):
            rc, counts = codes_and_counts(PAGES)
            sweep.destroy_pages(pages, state, owner, no_tracking(), 0xF01, frames[::-1].copy(), 0, PAGES, rc, counts)
            return counts[COUNT_DONE]

        done = together(lambda: walk(32), lambda: walk(7), read, single)
        busy = np.flatnonzero(state != NS)
        again, counts = codes_and_counts(busy.size)
        sweep.destroy_pages(pages, state, owner, no_tracking(), 0xF01, busy, 0, busy.size, again, counts)
        assert sum(done) + counts[COUNT_DONE] == PAGES
        assert not pages.any()
        assert not (state & STATE_MASK).any()
        assert (host & REFERENCES == 1).all()


def test_scans_beside_changes_find_only_what_was_there_at_some_time():
    """They claim nothing; a frame that is claimed counts as what it is."""
    state, owner, host = np.zeros(PAGES, np.uint8), np.zeros(PAGES, np.uint16), np.zeros(PAGES, np.uint8)
    state[::2] = SEC

    def hold():
        for _ in range(200 * ROUNDS):
            for frame in range(0, 64, 8):
                if claims.claim(state, frame) != claims.BUSY:
                    claims.publish(state, frame, SEC)

    def look():
        frames = np.empty(PAGES, np.int64)
        for _ in range(50 * ROUNDS):
            count, _ = scan.find_frames(state, owner, host, SEC, scan.ANY_OWNER, 0, 0, PAGES, frames)
            assert count == PAGES // 2
            assert scan.count_frames(state, owner, host, NS, 0, 0, 0, PAGES) == PAGES // 2

    together(hold, look, look, hold)
