"""The live clock: texts alone between awaits, parked in order, woken for a reason, ended in order.

Source: design, "One protocol text, three clocks".
"""

from __future__ import annotations

import gc
import signal
import threading

import numpy as np
import pytest

from lazypv.clocks.actors import Cancelled, Fault
from lazypv.clocks.live import LiveClock
from lazypv.errors import DeadlockError, LazyPVError, ModelError, UsageError
from lazypv.steps import Alloc, Bulk, Call, Lock, Spawn, Touch, Wait


class Count:
    """What a bulk operation answers."""

    def __init__(self, pages):
        self.done, self.noop, self.busy, self.refused = pages, 0, 0, 0


async def until(condition):
    await Wait(condition, "the test", outside=True)


def crowd(clock, texts):
    """Drive all `texts` together to their ends."""
    clock.join([clock.spawn(text, f"text{number}") for number, text in enumerate(texts)])


# --- between two awaits a text runs alone ------------------------------------------------------------------------


def test_between_two_awaits_a_text_runs_alone(clock):
    """Unlocked read, work, write in one segment is never torn, though every text is a thread."""
    state = {"value": 0, "inside": 0}

    async def text():
        for _ in range(300):
            await Call("elsewhere", lambda: None)
            state["inside"] += 1
            seen = state["value"]
            assert state["inside"] == 1
            state["value"] = seen + 1
            state["inside"] -= 1

    crowd(clock, [text() for _ in range(4)])
    assert state["value"] == 4 * 300


def test_bulk_steps_and_calls_of_several_texts_run_beside_each_other(clock):
    """The mutex is let go of: both operations have to be under way for either to end."""
    meeting = threading.Barrier(2, timeout=20)

    async def one():
        await Bulk("bulk", lambda pages: (meeting.wait(), Count(pages.size))[1], np.arange(3))

    async def other():
        await Call("call", meeting.wait)

    crowd(clock, [one(), other()])


def test_what_a_step_gives_back_reaches_its_text(clock):
    """Bulk and Call the answer of their operation, Alloc the object or None, Spawn a handle, the text its result."""

    async def child():
        await Touch(None, "nothing")
        return 5

    async def text():
        handle = await Spawn("child", child)
        await Wait(lambda: handle.done, "the child")
        bulk = await Bulk("bulk", lambda pages: Count(pages.size), np.arange(3))
        call = await Call("call", lambda: "answer")
        return bulk.done, call, await Alloc("memory", lambda: None), handle.result

    assert clock.run(text()) == (3, "answer", None, 5)


# --- locks -------------------------------------------------------------------------------------------------------


def test_who_waits_for_a_lock_gets_it_in_order_of_arrival(clock):
    """FIFO: nobody overtakes."""
    lock, order, waiting = Lock("a lock"), [], []

    async def contender(number):
        await Wait(lambda: len(waiting) == number, "its turn to queue")
        waiting.append(number)
        async with lock.exclusive():
            order.append(number)
            await Call("work", lambda: None)

    async def holder():
        async with lock.exclusive():
            for number in range(6):
                await Spawn(f"contender{number}", lambda number=number: contender(number))
            await until(lambda: len(lock.queue) == 6)
        await until(lambda: len(order) == 6)

    clock.run(holder())
    assert order == list(range(6))


def test_readers_share_a_lock_and_a_writer_has_it_alone(clock):
    """Two readers at once; no one beside the writer."""
    lock, meeting = Lock("a lock"), threading.Barrier(2, timeout=20)
    inside, most = [], []

    async def reader():
        async with lock.shared():
            await Call("both inside", meeting.wait)

    async def writer():
        for _ in range(50):
            async with lock.exclusive():
                inside.append(1)
                await Call("work", lambda: most.append(len(inside)))
                inside.pop()

    crowd(clock, [reader(), reader()])
    crowd(clock, [writer(), writer(), writer()])
    assert set(most) == {1}
    assert lock.holders() == []


def test_a_reader_does_not_overtake_a_waiting_writer(clock):
    """FIFO between readers and writers too, so that a stream of readers cannot keep a writer out."""
    lock, order = Lock("a lock"), []

    async def waiter(name, holding):
        async with holding:
            order.append(name)

    async def text():
        async with lock.shared():
            await Spawn("writer", lambda: waiter("writer", lock.exclusive()))
            await until(lambda: len(lock.queue) == 1)
            await Spawn("reader", lambda: waiter("reader", lock.shared()))
            await until(lambda: len(lock.queue) == 2)
            assert order == []
        await until(lambda: len(order) == 2)

    clock.run(text())
    assert order == ["writer", "reader"]


def test_a_text_woken_more_than_once_does_not_take_a_lock_that_is_held(clock):
    """A wake-up is a reason to look, not a lock."""
    lock, ready, inside = Lock("a lock"), [], []

    async def waiter():
        await Wait(lambda: bool(ready), "ready")
        async with lock.exclusive():
            inside.append(len(lock.holders()))

    async def waker():
        async with lock.exclusive():
            await Spawn("waiter", waiter)
            await Call("let it park", lambda: None)
            ready.append(1)
            for _ in range(200):
                await Touch(ready, "ready", write=True)
            await until(lambda: len(lock.queue) == 1)
            for _ in range(200):
                await Call("a moment", lambda: None)
            assert inside == []

    clock.run(waker())
    clock.run(until(lambda: inside == [1]))


def test_the_longest_hold_is_kept_in_pages_and_in_calls(clock):
    """Per lock and actor: what was handled under it, and what was called under it."""
    lock = Lock("a lock")

    async def text():
        async with lock.shared():
            await Bulk("calls", lambda pages: Count(pages.size), np.arange(5), uvc=True)
        async with lock.exclusive():
            await Bulk("no calls", lambda pages: Count(pages.size), np.arange(9))
            await Call("a call", lambda: 2, pages_of=int)
        await Bulk("without", lambda pages: Count(pages.size), np.arange(99), uvc=True)

    clock.run(text())
    hold = clock.holds["a lock", "main"]
    assert (hold.pages, hold.calls) == (11, 5)
    assert hold.seconds > 0


# --- waits -------------------------------------------------------------------------------------------------------


def test_a_wait_ends_exactly_when_its_condition_holds(clock):
    """Not before, whatever else happens; and at the change, whichever step follows it."""
    state, seen = {"value": 0}, []

    async def waiter():
        await Wait(lambda: state["value"] >= 50, "fifty")
        seen.append(state["value"])

    async def counter():
        await Spawn("waiter", waiter)
        for _ in range(50):
            await Touch(state, "value", write=True)
            state["value"] += 1
        await Wait(lambda: bool(seen), "the waiter")

    clock.run(counter())
    assert seen == [50]


def test_a_change_just_before_parking_wakes_who_waits_for_it(clock):
    """Hand over and wait: the last step before the park is the park itself."""
    turns = []

    async def player(mine):
        for _ in range(100):
            await Wait(lambda: len(turns) % 2 == mine, f"turn of {mine}")
            turns.append(mine)

    async def game():
        await Spawn("other", lambda: player(1))
        await player(0)
        await Wait(lambda: len(turns) == 200, "the other's last turn")

    clock.run(game())
    assert turns == [0, 1] * 100


def test_the_end_of_a_text_wakes_who_waits_for_it(clock):
    """A handle's `done` is a condition like another."""

    async def child():
        await Call("work", lambda: None)

    async def text():
        handle = await Spawn("child", child)
        await Wait(lambda: handle.done, "the child")
        return handle.done

    assert clock.run(text()) is True


def test_an_outside_wait_ends_without_any_other_text(clock):
    """Time, a test, a person: no text is there to make it hold, and that is no deadlock."""
    opened = threading.Event()
    timer = threading.Timer(0.01, opened.set)
    timer.start()
    clock.run(until(opened.is_set))
    timer.join()


# --- deadlock ----------------------------------------------------------------------------------------------------


def test_a_deadlock_of_two_texts_is_reported_with_both_names_and_locks(clock):
    """It never hangs: all are parked, nobody can wake anybody."""
    first, second = Lock("first lock"), Lock("second lock")

    async def text(one, two, met):
        async with one.exclusive():
            met.append(1)
            await until(lambda: len(met) == 2)
            async with two.exclusive():
                raise AssertionError("both have both")

    met = []
    left, right = clock.spawn(text(first, second, met), "left"), clock.spawn(text(second, first, met), "right")
    with pytest.raises(DeadlockError) as error:
        clock.join([left, right])
    for word in ("left", "right", "first lock", "second lock"):
        assert word in str(error.value)
    assert first.holders() == second.holders() == []
    assert not first.queue
    assert not second.queue
    with pytest.raises(DeadlockError):
        clock.run(until(lambda: True))


def test_a_wait_that_nobody_can_end_is_a_deadlock(clock):
    """Of one text, with the reason it gave."""
    with pytest.raises(DeadlockError, match="main waits for a miracle"):
        clock.run(_wait_for("a miracle"))


async def _wait_for(why):
    await Wait(lambda: False, why)


def test_a_deadlock_shows_when_the_last_text_that_could_help_ends(clock):
    """Not only when somebody parks."""

    async def helper():
        await Touch(None, "nothing")

    async def text():
        await Spawn("helper", helper)
        await _wait_for("a helper that does not help")

    with pytest.raises(DeadlockError, match="does not help"):
        clock.run(text())


def test_a_lock_wanted_twice_by_its_holder_is_a_deadlock(clock):
    """Modelled locks are not recursive."""
    lock = Lock("a lock")

    async def text():
        async with lock.exclusive(), lock.exclusive():
            pass

    with pytest.raises(DeadlockError, match=r"main waits for a lock, held by \[main\]"):
        clock.run(text())
    assert lock.holders() == []


# --- errors ------------------------------------------------------------------------------------------------------


def test_an_exception_in_a_text_poisons_the_clock_and_names_the_actor(clock):
    """Any other Python exception is a bug of the model."""

    async def text():
        await Touch(None, "mm_users")
        raise ZeroDivisionError("oops")

    with pytest.raises(
        ModelError, match=r"cpu7 broke down after Touch\(mm_users\): ZeroDivisionError\('oops'\)"
    ) as error:
        clock.run(text(), "cpu7")
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    with pytest.raises(ModelError, match="cpu7"):
        clock.run(until(lambda: True))
    with pytest.raises(ModelError, match="cpu7"):
        clock.check()


def test_an_exception_in_a_step_names_the_step_and_gives_locks_up_by_awaited_steps(clock, recwarn):
    """It is thrown into the text at that step; no coroutine is closed while it holds a lock."""
    lock, cleaned = Lock("a lock"), []

    async def text():
        async with lock.exclusive():
            try:
                await Call("DESTROY_SEC_CONF", lambda: 1 // 0)
            finally:
                cleaned.append(lock.holders())

    with pytest.raises(ModelError, match=r"main broke down in Call\(DESTROY_SEC_CONF\)"):
        clock.run(text())
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []
    assert len(cleaned[0]) == 1
    assert lock.holders() == []


def test_an_error_of_ours_passes_through_and_the_clock_goes_on(clock):
    """What a caller can get wrong, or a guest's death, is no bug of the model."""
    lock = Lock("a lock")

    def refuse():
        raise UsageError("so not")

    async def text():
        async with lock.exclusive():
            await Call("refusal", refuse)

    async def forgiving():
        try:
            await Call("refusal", refuse)
        except UsageError:
            return "forgiven"

    with pytest.raises(UsageError, match="so not"):
        clock.run(text())
    assert lock.holders() == []
    assert clock.run(forgiving()) == "forgiven"
    clock.check()


def test_an_error_in_a_spawned_text_is_raised_where_it_is_joined(clock):
    """The first of them."""

    async def text():
        await Touch(None, "nothing")
        raise UsageError("in a thread")

    actor = clock.spawn(text(), "vcpu0")
    with pytest.raises(UsageError, match="in a thread"):
        clock.join([actor])
    clock.check()


def test_an_error_in_a_kernel_thread_is_not_lost(clock):
    """Nobody joins it: who waits for it hears why it will not come."""

    async def thread():
        await Touch(None, "nothing")
        raise LazyPVError("the thread's own words")

    async def text():
        await Spawn("destroy thread", thread)
        await _wait_for("the thread")

    with pytest.raises(LazyPVError, match="the thread's own words"):
        clock.run(text())
    with pytest.raises(LazyPVError, match="own words"):
        clock.join_ended()


def test_a_breakdown_ends_all_other_texts_at_their_next_step(clock):
    """Their locks are given up by awaited steps."""
    lock, started = Lock("a lock"), []

    async def worker():
        async with lock.shared():
            started.append(1)
            while True:
                await Call("work", lambda: None)

    async def breaker():
        await until(lambda: len(started) == 2)
        raise RuntimeError("bug")

    workers = [clock.spawn(worker(), f"worker{number}") for number in range(2)]
    with pytest.raises(ModelError, match="breaker"):
        clock.run(breaker(), "breaker")
    with pytest.raises(ModelError, match="breaker"):
        clock.join(workers)
    assert lock.holders() == []


def test_something_awaited_that_is_no_step_is_a_bug_of_the_text(clock):
    """It is named."""

    class Odd:
        def __await__(self):
            yield self

        def __repr__(self):
            return "an odd thing"

    async def text():
        await Odd()

    with pytest.raises(ModelError, match="an odd thing is not a step"):
        clock.run(text())


def test_a_condition_that_breaks_is_blamed_on_the_text_that_waits(clock):
    """Though another text's thread looks at it."""
    state = {"broken": False}

    async def waiter():
        await Wait(lambda: 1 // 0 if state["broken"] else False, "an unlucky condition")

    async def other():
        await Spawn("waiter", waiter)
        while True:
            await Call("work", lambda: None)
            state["broken"] = True

    with pytest.raises(ModelError, match=r"waiter broke down in Wait\(an unlucky condition\)"):
        clock.run(other())


# --- injected faults ---------------------------------------------------------------------------------------------


def test_a_fault_is_given_back_instead_of_the_step_being_done(clock):
    """For everything that can fail: bulk steps, calls, allocations, threads."""
    done = []
    clock.faults = lambda step: Fault(step.label)

    async def never():
        done.append(1)

    async def text():
        return [
            await Bulk("bulk", lambda pages: done.append(pages), np.arange(2)),
            await Call("call", lambda: done.append(1)),
            await Alloc("memory", lambda: done.append(1)),
            await Spawn("thread", never),
        ]

    assert clock.run(text()) == ["bulk", "call", "memory", "thread"]
    assert done == []


def test_a_computer_without_another_thread_gives_none(clock, monkeypatch):
    """Spawn: a kernel thread, or None when there is no thread to be had."""

    def refuse(_self):
        raise RuntimeError("can't start new thread")

    async def child():
        pass

    async def text():
        monkeypatch.setattr(threading.Thread, "start", refuse)
        return await Spawn("child", child)

    assert clock.run(text()) is None
    monkeypatch.undo()
    with pytest.raises(DeadlockError):
        clock.run(_wait_for("what shows that the child is not counted as running"))


# --- the end -----------------------------------------------------------------------------------------------------


def test_stop_ends_working_waiting_and_queued_texts_and_joins_their_threads(clock):
    """Locks are given up by awaited steps; who was never granted one gives none up."""
    lock, started = Lock("a lock"), []

    async def holder():
        async with lock.exclusive():
            started.append("holder")
            await Wait(lambda: False, "the end", outside=True)

    async def queued():
        started.append("queued")
        async with lock.exclusive():
            started.append("never")

    async def working():
        started.append("working")
        while True:
            await Call("work", lambda: None)

    actors = [clock.spawn(text, text.__name__) for text in (holder(), working())]
    clock.run(until(lambda: len(started) == 2))
    actors.append(clock.spawn(queued(), "queued"))
    clock.run(until(lambda: len(lock.queue) == 1))
    clock.stop()
    assert lock.holders() == []
    assert not lock.queue
    assert "never" not in started
    assert not any(actor.thread.is_alive() for actor in actors)
    assert all(isinstance(actor.error, Cancelled) for actor in actors)
    with pytest.raises(ModelError, match="stopped"):
        clock.run(until(lambda: True))


def test_a_text_that_wants_a_lock_while_it_is_ended_does_not_hang(clock):
    """Whoever is being ended is not parked again."""
    first, second, started = Lock("first lock"), Lock("second lock"), []

    async def stubborn(one, two):
        async with one.exclusive():
            started.append(1)
            try:
                await Wait(lambda: False, "the end", outside=True)
            finally:
                async with two.exclusive():
                    started.append("both")

    clock.spawn(stubborn(first, second), "left")
    clock.spawn(stubborn(second, first), "right")
    clock.run(until(lambda: len(started) == 2))
    clock.stop()
    assert first.holders() == second.holders() == []


def test_a_text_that_waits_while_it_is_ended_does_not_hang(clock):
    """Though nobody is left to wake it."""
    started = []

    async def incurable():
        started.append(1)
        try:
            await Wait(lambda: False, "the end", outside=True)
        finally:
            await _wait_for("what will never be")

    actor = clock.spawn(incurable(), "incurable")
    clock.run(until(lambda: bool(started)))
    clock.stop()
    assert isinstance(actor.error, Cancelled)


def test_a_keyboard_interrupt_in_the_main_text_ends_all_and_is_raised(clock):
    """Exit status 130 is somebody else's business; locks are given up, threads can be joined."""
    lock, started = Lock("a lock"), []

    def interrupt():
        raise KeyboardInterrupt

    async def worker():
        async with lock.shared():
            started.append(1)
            await Wait(lambda: False, "the end", outside=True)

    async def text():
        async with lock.shared():
            await until(lambda: bool(started))
            await Call("a long call", interrupt)

    actor = clock.spawn(worker(), "worker")
    with pytest.raises(KeyboardInterrupt):
        clock.run(text())
    clock.stop()
    assert isinstance(actor.error, Cancelled)
    assert lock.holders() == []


def test_a_keyboard_interrupt_while_parked_ends_all_and_is_raised(clock):
    """As a person's control-C arrives: in the main thread, wherever it stands."""

    lock = Lock("a lock")

    async def worker():
        async with lock.exclusive():
            await until(lambda: len(lock.queue) == 1)
            await Call("control-C", lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
            await Wait(lambda: False, "the end", outside=True)

    async def text():
        await Spawn("worker", worker)
        await until(lambda: lock.writer is not None)
        async with lock.exclusive():
            raise AssertionError("the worker has it")

    with pytest.raises(KeyboardInterrupt):
        clock.run(text())
    clock.stop()
    assert lock.holders() == []
    assert not lock.queue


def test_texts_of_a_stopped_clock_are_not_left_unawaited(recwarn):
    """No "coroutine was never awaited" behind an error."""
    clock = LiveClock()
    clock.stop()
    with pytest.raises(ModelError):
        clock.run(until(lambda: True))
    with pytest.raises(ModelError):
        clock.spawn(until(lambda: True), "late")
    assert [str(warning.message) for warning in recwarn] == []


def test_the_timeline_says_who_did_which_step_when(clock):
    """Rows of bulk steps and calls, in order of their ends, while it is a list."""
    clock.timeline = []

    async def text():
        await Bulk("destroy pages", lambda pages: Count(pages.size), np.arange(4))
        await Call("DESTROY_SEC_CONF", lambda: 3, pages_of=int)

    clock.run(text(), "thread")
    assert [(row.actor, row.step, row.pages, row.done) for row in clock.timeline] == [
        ("thread", "destroy pages", 4, 4),
        ("thread", "DESTROY_SEC_CONF", 3, 3),
    ]
    assert all(row.start <= row.end for row in clock.timeline)
