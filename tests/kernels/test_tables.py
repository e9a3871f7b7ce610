"""Page tables below a segment table say what flat ones do, whatever is mapped and taken out in whatever pieces."""

import threading

import numpy as np
import pytest
import twins

from lazypv.machine import HostFrames, PageTable
from lazypv_kernels import references, scan, tables
from lazypv_kernels.layout import MARK_SECURE, REFERENCES
from lazypv_kernels.tables import HAS_ENTRIES, SEGMENT_PAGES

from .worlds import agree, every_size, random_pte, seeds

PAGES = 5 * SEGMENT_PAGES + 77


def both(pages=PAGES):
    """A table of each kind, nothing mapped."""
    return PageTable.of(pages, segmented=False), PageTable.of(pages, segmented=True)


def same(flat, segmented):
    """Looked at in every way there is."""
    expected = flat.arrays[flat.first : flat.first + flat.size].astype(np.int64) - 1
    assert np.array_equal(flat.frames(), expected)
    assert np.array_equal(segmented.frames(), expected)
    assert segmented.count() == flat.count() == np.count_nonzero(expected >= 0)
    assert np.array_equal(np.concatenate([*segmented.mapped_frames()]), expected[expected >= 0])
    pages = np.arange(flat.size)[::-3]
    assert np.array_equal(segmented[pages], flat[pages])
    assert [segmented.entry(page) for page in (0, flat.size - 1)] == [flat.entry(page) for page in (0, flat.size - 1)]


def a_piece(rng):
    """Pages and frames as they come together: a run of neighbours, most often of whole segments, or scattered ones."""
    kind = rng.integers(0, 4)
    if kind == 0:
        pages = np.unique(rng.integers(0, PAGES, 40))
        return pages, rng.integers(0, 9000, pages.size)
    start = int(rng.integers(0, PAGES)) if kind == 1 else int(rng.integers(0, 6)) * SEGMENT_PAGES
    pages = np.arange(start, min(PAGES, start + int(rng.integers(1, 700))))
    frames = pages + int(rng.integers(0, 9000))
    if kind == 2 and frames.size > 3:
        frames[2:] += 1
    return pages, frames


@seeds(40)
def test_both_kinds_are_the_same_after_every_change(seed):
    """Mapped and unmapped in whole segments and in parts of them, with limits, over what is there already."""
    rng = np.random.default_rng(seed)
    flat, segmented = both()
    for _ in range(25):
        if rng.random() < 0.6:
            pages, frames = a_piece(rng)
            assert np.array_equal(flat.map(pages, frames), segmented.map(pages, frames))
        else:
            at = int(rng.integers(0, PAGES + 1))
            if rng.random() < 0.5:
                at = at // SEGMENT_PAGES * SEGMENT_PAGES
            end, limit = int(rng.integers(at, PAGES + 1)), int(rng.integers(0, 900))
            ours, theirs = segmented.unmap(at, end, limit), flat.unmap(at, end, limit)
            assert np.array_equal(ours[0], theirs[0])
            assert ours[1] == theirs[1]
        same(flat, segmented)


@seeds(10)
def test_both_kinds_are_gathered_looked_up_and_counted_alike(seed):
    rng = np.random.default_rng(seed)
    flat, segmented = both()
    for _ in range(6):
        pages, frames = a_piece(rng)
        for table in (flat, segmented):
            table.map(pages, frames)
    host = rng.choice(np.array([0, 1, 1, 1, 1, 61, 62, MARK_SECURE | 1], np.uint8), 11_000)
    answers = []
    for table in (flat, segmented):
        byte, frames = host.copy(), np.full(400, -9)
        answer = [references.gather(table.arrays, at, PAGES, byte, 400, frames) for at in (0, 13, 256, 1000)]
        some = np.arange(-3, PAGES + 3, 7)
        found = np.full(some.size, -9)
        answer.append(references.look_up(table.arrays, some, byte, found, 0, some.size))
        expected = np.zeros(host.size, np.uint8)
        scan.count_references(byte, table.arrays, expected, 0, PAGES)
        answers.append([np.asarray(each) for each in (*answer, byte, frames, found, expected)])
    for ours, theirs in zip(*answers, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_window_has_the_entries_of_the_whole():
    """Memory slots: their ranges begin anywhere."""
    for whole in both():
        part = whole.window(300, 900)
        assert part.map(np.arange(600), np.arange(5000, 5600)).all()
        assert whole[np.array([299, 300, 899, 900])].tolist() == [0, 5001, 5600, 0]
        assert (part.count(), whole.window(200, 400).count()) == (600, 100)
        frames, at = part.unmap(10, 600, 100)
        assert (frames[0], frames.size, at) == (5010, 100, 110)
        inner = part.window(110, 120)
        assert (inner.entry(0), inner.frames()[0]) == (5111, 5110)
        books = HostFrames(6000)
        books.byte[:] = 1
        assert books.gather(part, 5, 600, 7)[0].tolist() == [5005, 5006, 5007, 5008, 5009, 5110, 5111]
        assert books.gather(part, 5, 600, 7)[1] == 112
        assert books.look_up(inner, np.array([0, 9])).tolist() == [5110, 5119]


def test_what_lies_in_one_piece_takes_no_entries():
    """That is what the second kind is for: mapped and taken out whole, a segment's own entries are never touched."""
    _, table = both()
    segment, entry = table.arrays
    whole = np.arange(4 * SEGMENT_PAGES)
    table.map(whole, whole + 7)
    assert not entry.any()
    assert segment[:4].tolist() == [8, 8 + 256, 8 + 512, 8 + 768]
    assert table.unmap(0, 2 * SEGMENT_PAGES, PAGES)[0].size == 2 * SEGMENT_PAGES
    assert not segment[:2].any()
    table.unmap(2 * SEGMENT_PAGES + 5, PAGES, 1)
    assert segment[2:4].tolist() == [HAS_ENTRIES, 8 + 768]
    assert np.count_nonzero(entry) == SEGMENT_PAGES - 1


@every_size
@seeds(4)
def test_the_kernels_of_tables_are_their_twins(seed, size):
    rng = np.random.default_rng(seed)
    pte, pages = random_pte(rng, size, 40), rng.integers(-50, 60, 30)
    agree(tables.load_entries, twins.load_entries, pte, pages, 3, np.empty(30, np.uint32))
    agree(tables.count_mapped, twins.count_mapped, pte, 5, 33)
    agree(tables.frames_between, twins.frames_between, pte, 5, 33, np.empty(28, np.int64))


@seeds(20)
def test_the_kernels_of_segments_are_their_twins(seed):
    """Empty segments, whole ones, ones with entries, and a last one that is not complete."""
    rng = np.random.default_rng(seed)
    _, table = both()
    for _ in range(6):
        table.map(*a_piece(rng))
    table.unmap(int(rng.integers(0, PAGES)), PAGES, 300)
    for page in rng.integers(0, PAGES, 30):
        agree(tables.load_segment_entry, twins.load_segment_entry, *table.arrays, int(page))
    for number in range(PAGES // SEGMENT_PAGES):
        agree(tables.split_segment, twins.split_segment, *table.arrays, number)
        for page in (number * SEGMENT_PAGES, number * SEGMENT_PAGES + 1):
            for end, room in ((PAGES, PAGES), (page + 255, 256), (page + 256, 256), (page + 256, 255)):
                agree(tables.unmap_segment, twins.unmap_segment, table.arrays[0], page, end, room)
            pages, frames = np.arange(page, page + 300), np.arange(9, 309)
            for i, last in ((0, 300), (0, 256), (0, 255), (1, 300)):
                agree(tables.map_segment, twins.map_segment, *table.arrays, pages, frames, i, last)
            frames[200] += 1
            agree(tables.map_segment, twins.map_segment, *table.arrays, pages, frames, 0, 300)
    last = np.arange(PAGES // SEGMENT_PAGES * SEGMENT_PAGES, PAGES)
    agree(tables.map_segment, twins.map_segment, *table.arrays, last, last, 0, last.size)


@pytest.mark.parametrize("segmented", [False, True])
def test_four_threads_that_map_unmap_and_gather_lose_no_page(segmented):
    """Each frame is mapped once or in one thread's hands; what is gathered was mapped; references balance."""
    pages = 4 * SEGMENT_PAGES
    table = PageTable.of(pages, segmented=segmented)
    books = HostFrames(pages + 1)
    books.byte[:] = 1
    everything = np.arange(pages)
    table.map(everything, everything + 1)
    failures = []

    def take_and_put_back(seed):
        rng = np.random.default_rng(seed)
        for _ in range(300):
            at = int(rng.integers(0, 4)) * SEGMENT_PAGES + int(rng.integers(0, 2)) * int(rng.integers(0, SEGMENT_PAGES))
            frames, _ = table.unmap(at, pages, int(rng.integers(1, 600)))
            # Where it came from is free: nobody else maps this frame.
            if not table.map(frames - 1, frames).all():
                failures.append(("taken", frames))

    def gather(seed):
        rng = np.random.default_rng(seed)
        for _ in range(600):
            frames, _ = books.gather(table, int(rng.integers(0, pages)), pages, 64)
            if frames.size and not 1 <= frames.min() <= frames.max() <= pages:
                failures.append(("gathered", frames))
            books.put(frames)

    work = [(take_and_put_back, 1), (take_and_put_back, 2), (gather, 3), (gather, 4)]
    threads = [threading.Thread(target=each, args=(seed,)) for each, seed in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    assert np.array_equal(table.frames(), everything + 1)
    assert (books.byte & REFERENCES == 1).all()


@pytest.mark.parametrize("segmented", [False, True])
def test_a_frame_is_mapped_by_one_of_four_threads(segmented):
    """They race for the same pages with different frames: each page has the frame of the one that was told so."""
    for turn in range(30):
        table = PageTable.of(2 * SEGMENT_PAGES, segmented=segmented)
        pages = np.arange(2 * SEGMENT_PAGES)
        answers = [None] * 4
        start = threading.Barrier(4)

        def run(who, table=table, answers=answers, start=start, pages=pages, turn=turn):
            start.wait()
            part = pages[who:] if (who + turn) % 2 else pages
            answers[who] = (part, table.map(part, part + who * 1000))

        threads = [threading.Thread(target=run, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        owners = np.zeros(pages.size, np.int64)
        for who, (part, mapped) in enumerate(answers):
            owners[part[mapped]] += 1
            assert np.array_equal(table.frames()[part[mapped]], part[mapped] + who * 1000)
        assert (owners == 1).all()
