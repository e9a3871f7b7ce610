"""One range over many cores: every piece once, in order, by whoever is free; and stopped between pieces."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lazypv_kernels.workers import ALONE, CHUNK, CancelledError, Workers

SECONDS = 20


@pytest.fixture(params=[1, 2, 4])
def workers(request):
    made = Workers(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 95])
def test_every_element_is_in_one_piece_and_answers_are_in_order(workers, size):
    """Whatever the number of cores, and also where the last piece is a part of one."""
    pieces = workers.run(size, lambda first, last: (first, last), chunk=10)
    assert [at for first, last in pieces for at in range(first, last)] == list(range(size))
    chunk = 10 * ALONE if workers.threads == 1 else 10
    assert all(last - first == chunk for first, last in pieces[:-1])


def test_counts_are_added_up(workers):
    """Each piece has counters of its own."""

    def work(first, last, counts):
        counts[0] += last - first
        counts[3] += 1

    size = 3 * CHUNK * ALONE + 1
    counts = workers.add_up(size, work)
    assert counts[0] == size
    assert counts[3] == (4 if workers.threads == 1 else 3 * ALONE + 1)
    assert workers.add_up(0, work).tolist() == [0, 0, 0, 0]


def test_a_slow_core_does_not_hold_the_rest():
    """Whoever has the first piece waits until all others are done: they are done by the others."""
    workers = Workers(3)
    others = threading.Semaphore(0)
    by = {}

    def work(first, _last):
        by[first] = threading.get_ident()
        if first == 0:
            assert all(others.acquire(timeout=SECONDS) for _ in range(29))
        else:
            others.release()

    workers.run(300, work, chunk=10)
    workers.close()
    assert len(by) == 30
    assert [first for first, who in by.items() if who == by[0]] == [0]


def test_a_run_inside_a_run_ends():
    """All threads of the pool are inside the outer run: the inner ones are done by their callers."""
    workers = Workers(2)

    def outer(first, last):
        return sum(workers.run(40, lambda a, b: b - a, chunk=10)) + last - first

    assert sum(workers.run(40, outer, chunk=10)) == 4 * 40 + 40
    workers.close()


def test_two_callers_share_the_threads():
    """Each gets its own answers."""
    workers = Workers(2)
    answers = {}
    callers = [
        threading.Thread(target=lambda n=n: answers.update({n: workers.run(1000, lambda a, b: n, chunk=1)}))
        for n in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(SECONDS)
    assert answers == {n: [n] * 1000 for n in range(4)}
    workers.close()


# --- stopping ----------------------------------------------------------------------------------------------------


def test_a_token_stops_between_pieces(workers):
    """What was begun is done whole, what was not is never begun; the error says how much that is."""
    stop = threading.Event()
    done = []

    def work(first, last):
        if len(done) >= 5:
            stop.set()
        done.append((first, last))

    chunk = 10
    size = 200 * chunk * (ALONE if workers.threads == 1 else 1)
    with pytest.raises(CancelledError) as stopped:
        workers.run(size, work, chunk=chunk, stop=stop)
    assert stopped.value.done == len(done) < stopped.value.pieces == 200
    assert 6 <= len(done) <= 6 + workers.threads - 1


def test_a_token_that_was_set_before_lets_nothing_begin(workers):
    """Not even a single piece."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError, match="stopped after 0 of 1 pieces"):
        workers.run(1, lambda first, last: pytest.fail("this was begun"), stop=stop)


def test_cancel_stops_all_runs_from_another_thread(workers):
    """And the workers can be used again."""
    begun, errors = threading.Event(), []

    def work(_first, _last):
        begun.set()
        time.sleep(0.001)

    def endless():
        try:
            workers.run(1 << 40, work, chunk=1 << 20)
        except CancelledError as error:
            errors.append(error)

    thread = threading.Thread(target=endless)
    thread.start()
    assert begun.wait(SECONDS)
    workers.cancel()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert errors[0].done < errors[0].pieces
    assert workers.run(3, lambda first, last: last - first) == [3]


def test_what_a_piece_raises_ends_the_run(workers):
    """The first error is the caller's; no further piece is begun."""
    begun = []

    def work(first, _last):
        begun.append(first)
        raise ValueError(f"at {first}")

    with pytest.raises(ValueError, match="at "):
        workers.run(100 * ALONE * 10, work, chunk=10)
    assert len(begun) <= workers.threads


def test_pieces_are_whole_pages_of_an_array(workers):
    """As kernels use it: every row is written once."""
    rows = np.zeros(3 * CHUNK + 17, np.int64)

    def work(first, last):
        rows[first:last] += 1

    workers.run(rows.size, work)
    assert (rows == 1).all()
