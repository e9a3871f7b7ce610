"""The live clock: every step at once, real threads, real bytes.

One mutex belongs to the texts: between two awaits a text runs alone. Bulk steps, calls and waits let go of it. Who has
to wait is parked until the one who runs sees that it may go on; nobody is woken to find that nothing has changed.

What a step raises is thrown into its text at that step and the text driven on, so that locks are given up by awaited
steps. A text that breaks down in a way that no text may ends all others at their next step and poisons the clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lazypv.clocks.actors import Actor, Cancelled, Event, Fault, Hold, LongestHold, grant, take_patiently
from lazypv.clocks.runs import Runs, may_begin
from lazypv.clocks.trace import Trace
from lazypv.errors import DeadlockError, LazyPVError, MemoryShortageError, ModelError
from lazypv.steps import Acquire, Alloc, Bulk, Call, Release, Several, Spawn, Step, Text, Touch, Wait

T = TypeVar("T")

OUTSIDE_POLL_SECONDS = 0.0005


class LiveClock:
    """Drives texts on real threads.

    Attributes
    ----------
    timeline : list of Event or None
        Bulk steps and calls as they happened, while it is a list.
    trace : Trace or None
        Writes every step down; set before the first text is started.
    holds : dict of (str, str) to LongestHold
        The longest hold of each modelled lock by each actor, by their names.
    last_end : float
        When the last text that another text had spawned ended.
    faults : callable or None
        Asked before each step that may fail; gives a :class:`Fault` to give back instead, or None.
    blame : callable or None
        ``blame(where, error, text)``: what to report instead of a bug of the model, if it is somebody else's, or None.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._actors: list[Actor] = []
        self._parked: list[Actor] = []
        self._ended: list[Actor] = []
        self._runs = Runs()
        self._ending = False
        self._poison: LazyPVError | None = None
        self._began = time.perf_counter()
        self.timeline: list[Event] | None = None
        self.trace: Trace | None = None
        self.holds: dict[tuple[str, str], LongestHold] = {}
        self.last_end = 0.0
        self.faults: Callable[[Step[Any]], Fault | None] | None = None
        self.blame: Callable[[str, BaseException, Text[Any]], LazyPVError | None] | None = None
        self._perform: dict[type[Step[Any]], Callable[[Actor, Any], Any]] = {
            Touch: self._touch,
            Acquire: self._acquire,
            Release: self._release,
            Bulk: self._bulk,
            Several: self._several,
            Call: self._call,
            Alloc: self._alloc,
            Wait: self._wait,
            Spawn: self._spawn,
        }

    def now(self) -> float:
        """Seconds since the clock began."""
        return time.perf_counter() - self._began

    # --- driving -------------------------------------------------------------------------------------------------

    def run(self, text: Text[T], name: str = "main") -> T:
        """Drive `text` to its end in the calling thread; what it returns.

        Raises
        ------
        ModelError
            This text or another broke down in a way that no text may.
        DeadlockError
            All texts wait for each other.
        """
        actor = Actor(name)
        with self._mutex:
            self._admit(actor, text)
        self._drive(actor, text)
        if actor.error is not None:
            raise actor.error
        result: T = actor.result
        return result

    def spawn(self, text: Text[Any], name: str) -> Actor:
        """Drive `text` in a thread of its own.

        Raises
        ------
        MemoryShortageError
            The computer has no thread for it.
        """
        actor = Actor(name)
        with self._mutex:
            self._admit(actor, text)
            if not self._start(actor, text):
                raise MemoryShortageError(f"the computer has no thread left for {name}")
        return actor

    def join(self, actors: list[Actor]) -> None:
        """Wait for spawned texts to end; their first error is raised here."""
        self._join(actors)
        for actor in actors:
            if actor.error is not None and not isinstance(actor.error, Cancelled):
                raise actor.error

    def stop(self) -> None:
        """End all texts at their next step and join their threads."""
        with self._mutex:
            self._end()
            actors = [actor for actor in (*self._actors, *self._ended) if actor.thread is not None]
        for actor in actors:
            actor.join()
        with self._mutex:
            self._ended.clear()

    def join_ended(self) -> None:
        """Join the threads of background texts that have ended; raise what one of them broke down with."""
        with self._mutex:
            ended = list(self._ended)
        self._join(ended)
        self.check()

    def _join(self, actors: list[Actor]) -> None:
        for actor in actors:
            actor.join()
        with self._mutex:
            self._ended = [actor for actor in self._ended if actor not in actors]

    def check(self) -> None:
        """Raise what a text that ran in the background broke down with."""
        if self._poison is not None:
            raise self._poison

    def _admit(self, actor: Actor, text: Text[Any]) -> None:
        refusal = self._poison
        if refusal is None and self._ending:
            refusal = ModelError(f"{actor.name} was started on a clock that has been stopped")
        if refusal is not None:
            text.close()
            raise refusal
        self._actors.append(actor)

    def _start(self, actor: Actor, text: Text[Any]) -> bool:
        actor.thread = threading.Thread(target=self._drive, args=(actor, text), name=f"lazypv-{actor.name}")
        try:
            actor.thread.start()
        except RuntimeError:
            self._actors.remove(actor)
            text.close()
            return False
        return True

    def _drive(self, actor: Actor, text: Text[Any]) -> None:
        try:
            take_patiently(self._mutex)
            actor.result = self._drive_locked(actor, text)
        except Cancelled as end:
            actor.error = self._poison or end
        except LazyPVError as error:
            actor.error = error
            if isinstance(error, ModelError) or actor.unattended:
                self._poisoned(error)
        except KeyboardInterrupt as error:
            actor.error = error
            self._end()
        except BaseException as error:
            if not actor.unwinding:
                self._broke_down(actor, text, "after", error)
            actor.error = self._poison
        finally:
            actor.done = True
            self._actors.remove(actor)
            if actor.thread is not None:
                self._ended.append(actor)
            if actor.unattended:
                self.last_end = self.now()
            if self.trace is not None:
                self.trace.ended(actor)
            self._wake()
            self._look_for_deadlock()
            self._mutex.release()
            actor.finished.set()

    def _drive_locked(self, actor: Actor, text: Coroutine[Step[Any], Any, Any]) -> Any:
        value: Any = None
        thrown: BaseException | None = None
        while True:
            try:
                step = text.send(value) if thrown is None else text.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown, value = None, None
            actor.step = step
            if self._parked:
                self._wake()
            if self._ending and not actor.unwinding and not isinstance(step, Release):
                actor.unwinding = True
                thrown = Cancelled()
                continue
            try:
                value = self._step(actor, step)
            except LazyPVError as error:
                actor.unwinding |= isinstance(error, ModelError)
                thrown = error
            except (Cancelled, KeyboardInterrupt) as error:
                actor.unwinding = True
                self._end()
                thrown = error
            except BaseException as error:
                actor.unwinding = True
                self._broke_down(actor, text, "in", error)
                thrown = error

    def _step(self, actor: Actor, step: Step[Any]) -> Any:
        perform = self._perform.get(type(step))
        if perform is None:
            raise TypeError(f"{step!r} is not a step")
        if self.trace is None or type(step) is Several:  # which nobody does while somebody writes steps down
            return perform(actor, step)
        return self.trace.take(self._mutex, actor, step, perform)

    def _end(self) -> None:
        self._ending = True
        self._runs.end_all()
        for parked in self._parked:
            parked.signal.give()

    def _broke_down(self, actor: Actor, text: Text[Any], where: str, error: BaseException) -> None:
        place = "before its first step" if actor.step is None else f"{where} {actor.step}"
        blamed = self.blame(f"{actor.name}, {place}", error, text) if self.blame is not None else None
        broken = blamed or ModelError(f"{actor.name} broke down {place}: {error!r}")
        broken.__cause__ = error
        self._poisoned(broken)

    def _poisoned(self, error: LazyPVError) -> None:
        if self._poison is None:
            self._poison = error
        self._end()

    # --- steps ---------------------------------------------------------------------------------------------------

    def _touch(self, _actor: Actor, step: Touch) -> None:
        """Whoever may go on now was woken when this step was awaited; who looks at this before each batch looks now."""
        if step.write:
            self._runs.end_for_writer(step)

    def _acquire(self, actor: Actor, step: Acquire) -> None:
        lock, shared = step.lock, step.shared
        if not lock.try_take(actor, shared):
            lock.queue.append((actor, shared))
            actor.queued = lock
            try:
                while actor.is_queued:
                    self._park(actor, f"{lock.name}, held by {lock.holders()}")
            except BaseException:
                if actor.is_queued:
                    lock.queue.remove((actor, shared))
                    actor.queued = None
                else:
                    lock.give_up(actor, shared)
                raise
        actor.holds[lock] = Hold(time.perf_counter())

    def _release(self, actor: Actor, step: Release) -> None:
        hold = actor.holds.pop(step.lock)
        longest = self.holds.setdefault((step.lock.name, actor.name), LongestHold())
        longest.note(hold.pages, hold.calls, time.perf_counter() - hold.since)
        step.lock.give_up(actor, step.shared)
        grant(step.lock)

    def _fault(self, step: Step[Any]) -> Fault | None:
        return self.faults(step) if self.faults is not None else None

    def _bulk(self, actor: Actor, step: Bulk[Any]) -> Any:
        if (fault := self._fault(step)) is not None:
            return fault.value
        pages = step.pages
        actor.charge(pages, pages if step.uvc else 0)
        start = self.now()
        self._mutex.release()
        try:
            answer = step.operation(*step.columns)
        finally:
            take_patiently(self._mutex)
        if self.timeline is not None:
            counts = (answer.done, answer.noop, answer.refused)
            self.timeline.append(Event(start, self.now(), actor.name, step.name, pages, *counts))
        return answer

    def _several(self, actor: Actor, step: Several[Any]) -> Any:
        """Many batches in one piece, while nobody could tell: nobody looks on, and nobody waits for what they do.

        The lock is held all the time, but nobody waits for it longer than for one batch: that is what counts as a hold.
        """
        looked_at = self.faults is not None or self.timeline is not None or self.trace is not None
        if looked_at or not may_begin(step, actor, self._parked) or not step.lock.try_take(actor, shared=True):
            return step.none
        run, start = self._runs.begin(step), time.perf_counter()
        try:
            self._mutex.release()
            try:
                batches = step.operation(run.stop)
            finally:
                take_patiently(self._mutex)
        finally:
            self._runs.over(run)
            step.lock.give_up(actor, shared=True)
            grant(step.lock)
        if batches.done:
            longest = self.holds.setdefault((step.lock.name, actor.name), LongestHold())
            longest.note(batches.largest, 0, (time.perf_counter() - start) / batches.done)
        return batches.answer

    def _call(self, actor: Actor, step: Call[Any]) -> Any:
        if (fault := self._fault(step)) is not None:
            return fault.value
        start = self.now()
        self._mutex.release()
        try:
            answer = step.operation()
        finally:
            take_patiently(self._mutex)
        pages = step.pages_of(answer)
        actor.charge(pages, step.uvc)
        if self.timeline is not None:
            self.timeline.append(Event(start, self.now(), actor.name, step.name, pages, pages, 0, 0))
        return answer

    def _alloc(self, _actor: Actor, step: Alloc[Any]) -> Any:
        fault = self._fault(step)
        return fault.value if fault is not None else step.operation()

    def _spawn(self, _actor: Actor, step: Spawn) -> Any:
        if (fault := self._fault(step)) is not None:
            return fault.value
        actor = Actor(step.name, unattended=True)
        self._actors.append(actor)
        return actor if self._start(actor, step.text()) else None

    def _wait(self, actor: Actor, step: Wait) -> None:
        actor.waiting = step
        try:
            while not step.condition():
                self._park(actor, step.why)
        finally:
            actor.waiting = None

    # --- parking -------------------------------------------------------------------------------------------------

    def _park(self, actor: Actor, why: str) -> None:
        """Sleep until somebody signals; raises when the clock has ended meanwhile."""
        if actor.unwinding:
            raise Cancelled
        actor.waits_for = why
        self._parked.append(actor)
        self._runs.end_for_sleeper(actor)
        try:
            self._look_for_deadlock()
            timeout = OUTSIDE_POLL_SECONDS if actor.waiting is not None and actor.waiting.outside else -1
            self._mutex.release()
            try:
                actor.signal.wait(timeout)
            finally:
                take_patiently(self._mutex)
        finally:
            self._parked.remove(actor)
            actor.signal.take_back()
        if self._ending:
            raise self._poison if isinstance(self._poison, DeadlockError) else Cancelled

    def _wake(self) -> None:
        """Wake those who may go on now. The one who runs looks, so that nobody is woken for nothing."""
        for sleeper in self._parked:
            if sleeper.waiting is not None and sleeper.may_go_on():
                sleeper.signal.give()

    def _look_for_deadlock(self) -> None:
        if not self._parked or len(self._parked) < len(self._actors) or self._ending:
            return
        for parked in self._parked:
            if parked.may_go_on() or (parked.waiting is not None and parked.waiting.outside):
                return
        cycle = "; ".join(f"{parked.name} waits for {parked.waits_for}" for parked in self._parked)
        self._poisoned(DeadlockError(f"all actors wait: {cycle}"))
