"""What a live clock writes down: each step in the order in which it took effect, an operation where it began and ended.

Source: issue 3, item 8.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

from lazypv.clocks.trace import Jitter, Trace
from lazypv.errors import UsageError
from lazypv.steps import Alloc, Bulk, Call, Lock, Spawn, Touch, Wait
from lazypv.ultravisor import Answer, BulkAnswer


def done(pages):
    return BulkAnswer(np.ones(pages.size, np.uint16), pages.size)


def told(trace):
    return [tuple(str(line[field]) for field in ("actor", "what", "at") if field in line) for line in trace.lines]


@pytest.fixture
def trace(clock):
    clock.trace = Trace()
    return clock.trace


def test_a_clock_that_is_not_asked_writes_nothing(clock):
    async def text():
        await Touch(None, "nothing")

    clock.run(text())
    assert clock.trace is None


def test_steps_are_written_with_what_they_gave_back(clock, trace):
    lock = Lock("mmap_lock")

    async def text():
        async with lock.shared():
            await Touch(None, "mm_users", write=True)
        await Alloc("record", lambda: None)
        await Alloc("table", lambda: np.arange(2))
        await Wait(lambda: True, "nothing")
        await Bulk("destroy pages", done, np.array([5, 6]))
        await Call("gather", lambda: (np.array([7]), 8))
        await Call("DESTROY_SEC_CONF", lambda: Answer(0, 1, pages=3))

    clock.run(text(), "qemu")
    bulk = {"actor": "qemu", "kind": "Bulk", "what": "destroy pages"}
    gather = {"actor": "qemu", "kind": "Call", "what": "gather"}
    destroy = {"actor": "qemu", "kind": "Call", "what": "DESTROY_SEC_CONF"}
    assert trace.lines == [
        {"actor": "qemu", "kind": "Acquire", "what": "mmap_lock", "shared": True},
        {"actor": "qemu", "kind": "Touch", "what": "mm_users", "write": True},
        {"actor": "qemu", "kind": "Release", "what": "mmap_lock", "shared": True},
        {"actor": "qemu", "kind": "Alloc", "what": "record", "answer": None},
        {"actor": "qemu", "kind": "Alloc", "what": "table", "answer": [0, 1]},
        {"actor": "qemu", "kind": "Wait", "what": "nothing"},
        {**bulk, "at": "begin", "pages": [5, 6]},
        {**bulk, "at": "end", "answer": {"rc": [1, 1], "done": 2, "noop": 0, "busy": 0, "refused": 0}},
        {**bulk, "at": "resume"},
        {**gather, "at": "begin"},
        {**gather, "at": "end", "answer": [[7], 8]},
        {**gather, "at": "resume"},
        {**destroy, "at": "begin"},
        {**destroy, "at": "end", "answer": {"cc": 0, "rc": 1, "rrc": 0, "handle": 0, "pages": 3}},
        {**destroy, "at": "resume"},
        {"actor": "qemu", "kind": "End"},
    ]


def test_threads_of_one_name_are_numbered_and_named_where_they_are_made(clock, trace):
    async def child():
        await Touch(None, "nothing")

    async def text():
        first = await Spawn("worker", child)
        second = await Spawn("worker", child)
        await Wait(lambda: first.done and second.done, "both")

    clock.run(text(), "main")
    made = [line["answer"] for line in trace.lines if line["kind"] == "Spawn"]
    assert made == ["worker", "worker 2"]
    assert {actor.name for actor in trace.actors} == {"main", "worker"}
    ended = [line["actor"] for line in trace.lines if line["kind"] == "End"]
    assert sorted(ended) == ["main", "worker", "worker 2"]


def test_an_operation_ends_in_the_trace_before_its_text_has_the_mutex_again(clock, trace):
    """The other text holds the mutex, and knows that the operation is over only from its end in the trace."""
    has_begun, may_end = threading.Event(), threading.Event()

    def operation(pages):
        has_begun.set()
        may_end.wait(20)
        return done(pages)

    async def slow():
        await Bulk("slow", operation, np.arange(1))

    async def other():
        await Wait(has_begun.is_set, "the operation", outside=True)
        may_end.set()
        while ("slow", "slow", "end") not in told(trace):
            pass
        await Touch(None, "noticed")

    clock.join([clock.spawn(other(), "other"), clock.spawn(slow(), "slow")])
    lines = told(trace)
    assert lines.index(("slow", "slow", "begin")) < lines.index(("slow", "slow", "end"))
    assert lines.index(("slow", "slow", "end")) < lines.index(("other", "noticed"))
    assert lines.index(("other", "noticed")) < lines.index(("slow", "slow", "resume"))


def test_an_error_of_a_step_or_of_a_text_is_written(clock, trace):
    def refuses():
        raise UsageError("no")

    async def text():
        try:
            await Call("refused", refuses)
        except UsageError:
            await Touch(None, "went on")
        await Alloc("refused", refuses)

    with pytest.raises(UsageError):
        clock.run(text(), "main")
    errors = [(line["kind"], line.get("at")) for line in trace.lines if line.get("error") == "UsageError"]
    assert errors == [("Call", "end"), ("Call", "resume"), ("Alloc", None), ("End", None)]


def test_what_a_text_does_while_it_is_being_ended_is_not_written(clock, trace):
    lock = Lock("mmap_lock")

    async def breaks():
        await Wait(lambda: bool(lock.readers), "the other")
        raise ZeroDivisionError

    async def text():
        async with lock.shared():
            try:
                await Wait(lambda: False, "ever", outside=True)
            finally:
                await Bulk("clean up", done, np.arange(1))

    waiting = clock.spawn(text(), "waiting")
    clock.spawn(breaks(), "breaks").join()
    clock.stop()
    assert waiting.unwinding
    assert lock.holders() == []
    assert told(trace) == [("waiting", "mmap_lock"), ("breaks", "the other"), ("breaks",)]
    assert trace.lines[-1]["error"] == "ModelError"


def test_jitter_holds_all_at_their_first_step_until_it_is_told_to_go(clock):
    jitter = Jitter(3)
    clock.trace = Trace(jitter)

    async def text():
        await Touch(None, "first")

    actors = [clock.spawn(text(), f"text{number}") for number in range(2)]
    while len(jitter.arrived) < 2:
        assert clock.trace.lines == []
    assert clock.trace.lines == []
    jitter.go.set()
    clock.join(actors)
    assert [line["kind"] for line in clock.trace.lines].count("Touch") == 2


def test_jitter_cuts_bulk_steps_into_parts_that_make_the_whole(clock):
    jitter = Jitter(1)
    jitter.go.set()
    clock.trace = Trace(jitter)
    answers = []

    async def text():
        answers.extend([await Bulk("all", done, np.arange(6)) for _ in range(8)])

    clock.join([clock.spawn(text(), "text")])
    parts = [line["pages"] for line in clock.trace.lines if line.get("at") == "begin"]
    assert [page for part in parts for page in part] == list(range(6)) * 8
    assert len(parts) > 8
    assert [answer.done for answer in answers] == [6] * 8
