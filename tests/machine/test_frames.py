"""The host's books: references, marks, free frames."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

from lazypv.errors import FrameError, ModelError
from lazypv.hardware import Machine
from lazypv.machine import HostFrames, PageTable
from lazypv_kernels import batches, references
from lazypv_kernels.layout import MARK_SECURE, MARK_WRITEBACK, PTE_DTYPE, RC_DONE, RC_DTYPE


def frames_of(*numbers):
    return np.array(numbers, np.int64)


def codes(*numbers):
    return np.array(numbers, RC_DTYPE)


@pytest.fixture
def books():
    return HostFrames(40)


def test_a_reference_dropped_twice_is_a_bug_of_the_model(books):
    """Invariant 25: each reference is undone exactly once."""
    frames = books.allocate(3)
    books.put(frames)
    with pytest.raises(ModelError, match="frame 1: a reference was dropped twice"):
        books.put(frames[1:])
    books.allocate(40)
    with pytest.raises(ModelError, match="frame 5: a reference was dropped twice"):
        books.put(frames_of(4, 5, 5))


def test_a_reference_on_a_free_frame_is_a_bug_of_the_model(books):
    """Nobody holds it, so nobody can pass one on."""
    with pytest.raises(ModelError, match="frame 7"):
        books.get(frames_of(7))
    assert books.free() == 40


def test_the_mark_goes_only_where_the_call_succeeded(books):
    """Invariant 3, semantics 2.4: never cleared on failure of the call."""
    frames = books.allocate(4)
    books.byte[frames] |= MARK_SECURE
    books.settle(frames, codes(RC_DONE, 0, 0xF01, RC_DONE), clear_mark=True, drop=False)
    assert books.marked(frames).tolist() == [False, True, True, False]
    assert [books.reference_count(frame) for frame in frames] == [1] * 4
    books.byte[frames] |= MARK_SECURE
    books.settle(frames, codes(RC_DONE, RC_DONE, 0, 0), clear_mark=False, drop=False)
    assert books.marked(frames).all()


def test_the_mark_goes_with_the_last_reference(books):
    """Semantics 2.4: cleared by the page allocator when a page is freed."""
    frames = books.allocate(2)
    books.get(frames[:1])
    books.byte[frames] |= MARK_SECURE
    assert books.settle(frames, codes(0, 0), clear_mark=True, drop=True) == 1
    assert books.marked(frames).tolist() == [True, False]
    assert books.free() == 39


def test_the_mark_of_a_frame_in_the_side_table_goes_only_where_the_call_succeeded(books):
    """The same rule, kept by Python rather than by the kernel."""
    frame = books.allocate(1)
    books.get(np.repeat(frame, 69))
    books.byte[frame] |= MARK_SECURE
    for code, marked in ((0, True), (0xF01, True), (RC_DONE, False)):
        books.settle(frame, codes(code), clear_mark=True, drop=True)
        assert books.marked(frame).tolist() == [marked]
    assert books.reference_count(0) == 67


@pytest.mark.parametrize("most", [61, 62, 63, 64, 70, 200])
def test_references_are_counted_exactly_beyond_what_a_byte_holds(books, most):
    """Counts beyond 62 live in a side table; marks stay in the byte."""
    frame = books.allocate(1)
    books.byte[frame] |= MARK_SECURE
    for expected in range(2, most + 1):
        books.get(frame)
        assert books.reference_count(0) == expected
    assert books.marked(frame).all()
    assert books.settle(frame, codes(RC_DONE), clear_mark=True, drop=True) == 0
    assert not books.marked(frame).any()
    for expected in range(most - 2, 0, -1):
        assert books.put(frame) == 0
        assert books.reference_count(0) == expected
    assert books.put(frame) == 1
    assert books.free() == 40


def test_one_call_counts_a_frame_as_often_as_it_is_named(books):
    """Across the border of the side table, up and down, among other frames."""
    frames = books.allocate(2)
    named = np.array([0] * 70 + [1] + [0] * 30, np.int64)
    books.get(named)
    assert (books.reference_count(0), books.reference_count(1)) == (101, 2)
    assert books.put(named) == 0
    assert books.put(frames) == 2


def test_gathering_and_looking_up_work_for_frames_in_the_side_table(books):
    """Patch 05: one extra reference each, in order of the table, at most the limit."""
    frames = books.allocate(6)
    books.get(np.repeat(frames[1:3], 80))
    pte = PageTable(np.array([0, 1, 2, 0, 3, 2, 40], PTE_DTYPE), 0, 7)
    gathered, at = books.gather(pte, 0, 7, 4)
    assert (gathered.tolist(), at) == ([0, 1, 2, 1], 6)
    gathered, at = books.gather(pte, at, 7, 4)
    assert (gathered.tolist(), at) == ([], 7)
    assert [books.reference_count(frame) for frame in range(3)] == [2, 83, 82]
    assert books.look_up(pte, frames_of(1, 0, 2, 4, 6, 99, -1)).tolist() == [0, -1, 1, 2, -1, -1, -1]
    assert [books.reference_count(frame) for frame in range(3)] == [3, 84, 83]


def test_all_frames_or_none_are_allocated(books):
    """An allocation that fails leaves nothing behind."""
    first = books.allocate(30)
    assert books.allocate(11) is None
    assert books.free() == 10
    assert len(set(first.tolist()) | set(books.allocate(10).tolist())) == 40
    assert books.allocate(1) is None
    assert books.allocate(0).size == 0


def test_a_run_is_consecutive_and_aligned(books):
    """Base storage is contiguous; a top table is four aligned pages."""
    assert books.allocate_run(1).tolist() == [0]
    assert books.allocate_run(4, 4).tolist() == [4, 5, 6, 7]
    assert books.allocate_run(3).tolist() == [1, 2, 3]
    assert books.allocate_run(2, start=38).tolist() == [38, 39]
    assert books.allocate_run(31) is None
    assert books.free() == 30


def test_only_an_expected_number_of_references_freezes_a_frame(books):
    """Semantics 2.5, invariants 5, 6; the mark is set before the call and stays, whatever the call says."""
    frames = books.allocate(4)
    books.get(frames[1:2])
    books.set_writeback(frames[2:3], True)
    asked = np.append(frames, -1)
    rc, count = books.freeze(asked, 1, absent=0x10A, held=0xFFFF)
    assert (rc.tolist(), count) == ([RC_DONE, 0xFFFF, 0xFFFF, RC_DONE, 0x10A], 2)
    assert books.marked(frames).tolist() == [True, False, False, True]
    assert books.allocate(37) is None
    books.unfreeze(asked, 1, rc)
    assert [books.reference_count(frame) for frame in frames] == [1, 2, 1, 1]
    books.set_writeback(frames[2:3], False)
    assert books.freeze(frames[2:3], 1, absent=0, held=0)[1] == 1


def test_a_frame_outside_the_machine_has_no_references(books):
    """The caller's error, with the number in it."""
    with pytest.raises(FrameError, match="frame 40 lies outside a machine of 40 frames"):
        books.reference_count(40)


def in_threads(*works):
    """Run all at once; the first exception of any of them is raised here."""
    problems, barrier = [], threading.Barrier(len(works))

    def guarded(work):
        barrier.wait()
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def test_four_threads_lose_no_reference_at_the_border_of_the_side_table(books, quick_switches):
    """Kernels change the byte beside Python: every change is a compare-and-swap, so no mark is lost either."""
    frame, others = books.allocate(1), books.allocate(20)
    books.get(np.repeat(frame, 59))
    done = threading.Event()

    def take_and_drop():
        several = np.repeat(frame, 3)
        while not done.is_set():
            books.get(several)
            books.put(several)

    def mark():
        # In the middle of a long kernel, which lets the others run meanwhile.
        long_way = np.tile(others, 200)
        column = np.concatenate([long_way, frame, long_way])
        try:
            for on in (True, False) * 300:
                books.set_writeback(column, on)
                assert (int(books.byte[0]) & MARK_WRITEBACK != 0) == on
        finally:
            done.set()

    in_threads(take_and_drop, take_and_drop, take_and_drop, mark)
    assert books.reference_count(0) == 60
    assert int(books.byte[0]) == 60


@pytest.fixture
def unmapped_meanwhile(monkeypatch, books):
    """Kernels of the page table in Python; between a reference and the second look at the entry, `meanwhile` runs."""

    def make(table, meanwhile):
        looks = []

        def look(page, what):
            looks.append(what)
            if looks.count(what) == 2 and table.arrays[page]:
                meanwhile(page)

        def load_entry(pte, page):
            look(page, page)
            return pte[page]

        def maps_eight(pte, page, _value):
            look(page, "eight")
            return bool((np.diff(pte[page : page + 8].astype(np.int64)) == 1).all())

        def word_at(frame):
            return books.byte[int(frame) : int(frame) + 8].view(np.uint64)

        def swap_word_at(frame, seen, after):
            word_at(frame)[0] = after
            return True

        for name in ("hold_mapped", "hold_eight", "gather", "look_up"):
            monkeypatch.setattr(references, name, getattr(references, name).py_func)
        monkeypatch.setattr(references, "load_entry", load_entry)
        monkeypatch.setattr(references, "maps_eight", maps_eight)
        monkeypatch.setattr(references, "table_size", lambda pte: pte.size)
        monkeypatch.setattr(references, "address_of", lambda _array, frame: np.uint64(frame))
        monkeypatch.setattr(references, "load_word_at", lambda frame: word_at(frame)[0])
        monkeypatch.setattr(references, "swap_word_at", swap_word_at)
        return table

    return make


@pytest.mark.parametrize("pages", [1, 8])
@pytest.mark.parametrize("how", ["gather", "look up"])
def test_a_reference_that_is_taken_back_is_found_in_the_side_table_too(books, unmapped_meanwhile, pages, how):
    """Invariant 25: it was taken from a count in the byte, which has overflowed before the entry is read again."""
    frames = books.allocate(16)
    table = PageTable((frames + 1).astype(PTE_DTYPE), 0, 16)

    def meanwhile(page):
        some = np.arange(page, page + pages)
        books.get(np.repeat(frames[some], 100))
        table.arrays[some] = 0

    unmapped_meanwhile(table, meanwhile)
    if how == "gather":
        found, at = books.gather(table, 0, pages, 16)
        assert (found.tolist(), at) == ([], pages)
    else:
        assert books.look_up(table, np.arange(1)).tolist() == [-1]
    expected = pages if how == "gather" else 1
    assert [books.reference_count(frame) for frame in range(expected)] == [101] * expected
    assert [books.reference_count(frame) for frame in range(8, 16)] == [1] * 8


def test_a_walk_in_one_piece_has_references_taken_back_too(monkeypatch):
    """As the kernel says it: frames behind those that it has gathered have a reference too many."""
    machine = Machine("2MiB", uv_base_pages=1, contents=False)
    frames = machine.frames.allocate(4)
    machine.frames.get(np.repeat(frames, 100))

    def kernel(*arguments):
        arguments[14][:3] = frames[:3]
        return batches.GATHERED, 5, 1, 2

    monkeypatch.setattr(batches, "destroy_batches", kernel)
    table, flag = machine.frames.page_table(8).window(2, 8), np.zeros(1, np.uint8)
    run = machine.destroy_batches(table, 0, 6, 4, 99, clear_mark=True, refused_stay=True, stop=flag, gate=flag.copy())
    assert (run.frames.tolist(), run.at, run.answer, run.settled) == ([frames[0]], 3, None, 0)
    assert [machine.frames.reference_count(int(frame)) for frame in frames] == [101, 100, 100, 101]
    machine.close()


def test_no_frame_is_allocated_to_two_threads(quick_switches):
    """Free is a byte of zero, taken by compare-and-swap."""
    books, taken = HostFrames(300), []

    def allocate():
        for size in (1, 3, 5, 7) * 40:
            mine = books.allocate(size)
            if mine is not None:
                taken.append(mine)

    in_threads(allocate, allocate, allocate, allocate)
    owners = Counter(np.concatenate(taken).tolist())
    assert max(owners.values()) == 1
    assert len(owners) == 300 - books.free()
