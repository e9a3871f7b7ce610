"""The live clock: every step at once, real threads, real bytes.

One mutex belongs to the texts: between two awaits a text runs alone. Bulk steps, calls and waits let go of it. Who has
to wait is parked until the one who runs sees that it may go on; nobody is woken to find that nothing has changed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from lazypv.errors import DeadlockError, LazyPVError, ModelError
from lazypv.steps import Acquire, Alloc, Bulk, Call, Lock, Release, Spawn, Step, Text, Touch, Wait

T = TypeVar("T")

OUTSIDE_POLL_SECONDS = 0.0005


class Cancelled(BaseException):
    """Thrown into a text at its next step when the clock ends."""


class Fault(NamedTuple):
    """What a step gives back instead of being done."""

    value: Any


class Event(NamedTuple):
    """One row of the timeline: seconds since the clock began, who, which step, and its counts."""

    start: float
    end: float
    actor: str
    step: str
    pages: int
    done: int
    noop: int
    refused: int


@dataclass
class LongestHold:
    """The longest hold of a modelled lock, in pages handled, in calls made, in seconds."""

    pages: int = 0
    calls: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class Actor:
    """A text being driven."""

    name: str
    signal: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    holds: dict[Lock, LongestHold] = field(default_factory=dict)
    waits_for: str = ""
    waiting: Wait | None = None
    queued: Lock | None = None
    thread: threading.Thread | None = None
    error: BaseException | None = None
    result: Any = None
    unwinding: bool = False
    done: bool = False

    def __repr__(self) -> str:
        return self.name


class LiveClock:
    """Drives texts on real threads.

    Attributes
    ----------
    timeline : list of Event or None
        Bulk steps and calls as they happened, while it is a list.
    holds : dict of str to LongestHold
        The longest hold of each modelled lock, by its name.
    faults : callable or None
        Asked before each step that may fail; gives a :class:`Fault` to give back instead, or None.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._actors: list[Actor] = []
        self._parked: list[Actor] = []
        self._ending = False
        self._poison: LazyPVError | None = None
        self._began = time.perf_counter()
        self.timeline: list[Event] | None = None
        self.holds: dict[str, LongestHold] = {}
        self.faults: Callable[[Step[Any]], Fault | None] | None = None
        self._perform: dict[type, Callable[[Actor, Any], Any]] = {
            Touch: self._touch,
            Acquire: self._acquire,
            Release: self._release,
            Bulk: self._bulk,
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
        self._admit(actor)
        self._drive(actor, text)
        if actor.error is not None:
            raise actor.error
        result: T = actor.result
        return result

    def spawn(self, text: Text[Any], name: str) -> Actor:
        """Drive `text` in a thread of its own."""
        actor = Actor(name)
        actor.thread = threading.Thread(target=self._drive, args=(actor, text), name=f"lazypv-{name}")
        self._admit(actor)
        actor.thread.start()
        return actor

    def join(self, actors: list[Actor]) -> None:
        """Wait for spawned texts to end; their first error is raised here."""
        for actor in actors:
            if actor.thread is not None:
                actor.thread.join()
        for actor in actors:
            if actor.error is not None and not isinstance(actor.error, Cancelled):
                raise actor.error

    def stop(self) -> None:
        """End all texts at their next step and join their threads."""
        with self._mutex:
            self._end()
            threads = [actor.thread for actor in self._actors if actor.thread is not None]
        for thread in threads:
            thread.join()

    def check(self) -> None:
        """Raise what a text that ran in the background broke down with."""
        if self._poison is not None:
            raise self._poison

    def _admit(self, actor: Actor) -> None:
        with self._mutex:
            if self._poison is not None:
                raise self._poison
            if self._ending:
                raise ModelError(f"{actor.name} was started on a clock that has been stopped")
            self._actors.append(actor)

    def _drive(self, actor: Actor, text: Text[Any]) -> None:
        self._mutex.acquire()
        step: Step[Any] | None = None
        try:
            actor.result = self._drive_locked(actor, text)
        except Cancelled as end:
            actor.error = self._poison or end
        except LazyPVError as error:
            actor.error = error
            if isinstance(error, ModelError):
                self._poisoned(error)
        except KeyboardInterrupt as error:
            actor.error = error
            self._end()
        except BaseException as error:
            broken = ModelError(f"{actor.name} broke down in {step or actor.waits_for or 'its text'}: {error!r}")
            broken.__cause__ = error
            actor.error = broken
            self._poisoned(broken)
        finally:
            actor.done = True
            self._actors.remove(actor)
            self._after_step()
            self._look_for_deadlock()
            self._mutex.release()

    def _drive_locked(self, actor: Actor, text: Coroutine[Step[Any], Any, Any]) -> Any:
        value: Any = None
        thrown: BaseException | None = None
        while True:
            try:
                step = text.send(value) if thrown is None else text.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown, value = None, None
            kind = type(step)
            actor.waits_for = kind.__name__
            if self._ending and not actor.unwinding and kind is not Release:
                actor.unwinding = True
                thrown = Cancelled()
                continue
            try:
                value = self._perform[kind](actor, step)
            except (Cancelled, DeadlockError, KeyboardInterrupt) as error:
                actor.unwinding = True
                thrown = error

    def _end(self) -> None:
        self._ending = True
        for parked in self._parked:
            parked.signal.release()

    def _poisoned(self, error: LazyPVError) -> None:
        if self._poison is None:
            self._poison = error
        self._end()

    # --- steps ---------------------------------------------------------------------------------------------------

    def _touch(self, _actor: Actor, _step: Touch) -> None:
        self._after_step()

    def _acquire(self, actor: Actor, step: Acquire) -> None:
        if not step.lock.try_take(actor, step.shared):
            step.lock.queue.append((actor, step.shared))
            actor.queued = step.lock
            try:
                self._park(actor, f"{step.lock.name}, held by {step.lock.holders()}")
            except BaseException:
                if actor.queued is not None:
                    step.lock.queue.remove((actor, step.shared))
                    actor.queued = None
                else:
                    self._give_up(actor, step.lock, step.shared)
                raise
        actor.holds[step.lock] = LongestHold(seconds=time.perf_counter())

    def _release(self, actor: Actor, step: Release) -> None:
        hold = actor.holds.pop(step.lock)
        longest = self.holds.setdefault(step.lock.name, LongestHold())
        longest.pages = max(longest.pages, hold.pages)
        longest.calls = max(longest.calls, hold.calls)
        longest.seconds = max(longest.seconds, time.perf_counter() - hold.seconds)
        self._give_up(actor, step.lock, step.shared)
        self._after_step()

    @staticmethod
    def _give_up(actor: Actor, lock: Lock, shared: bool) -> None:
        lock.give_up(actor, shared)
        while (following := lock.next_in_queue()) is not None:
            following.queued = None
            following.signal.release()

    def _bulk(self, actor: Actor, step: Bulk[Any]) -> Any:
        fault = self.faults(step) if self.faults is not None else None
        if fault is not None:
            return fault.value
        pages = step.pages
        for hold in actor.holds.values():
            hold.pages += pages
            hold.calls += pages if step.uvc else 0
        start = self.now()
        self._mutex.release()
        try:
            answer = step.operation(*step.columns)
        finally:
            self._mutex.acquire()
        if self.timeline is not None:
            self.timeline.append(
                Event(start, self.now(), actor.name, step.name, pages, answer.done, answer.noop, answer.refused)
            )
        self._after_step()
        return answer

    def _call(self, actor: Actor, step: Call[Any]) -> Any:
        fault = self.faults(step) if self.faults is not None else None
        if fault is not None:
            return fault.value
        start = self.now()
        self._mutex.release()
        try:
            answer = step.operation()
        finally:
            self._mutex.acquire()
        pages = step.pages_of(answer)
        for hold in actor.holds.values():
            hold.pages += pages
            hold.calls += step.uvc
        if self.timeline is not None:
            self.timeline.append(Event(start, self.now(), actor.name, step.name, pages, pages, 0, 0))
        self._after_step()
        return answer

    def _alloc(self, _actor: Actor, step: Alloc[Any]) -> Any:
        fault = self.faults(step) if self.faults is not None else None
        return fault.value if fault is not None else step.operation()

    def _spawn(self, _actor: Actor, step: Spawn) -> Actor | None:
        fault = self.faults(step) if self.faults is not None else None
        if fault is not None:
            value: Actor | None = fault.value
            return value
        actor = Actor(step.name)
        actor.thread = threading.Thread(target=self._drive, args=(actor, step.text()), name=f"lazypv-{step.name}")
        self._actors.append(actor)
        actor.thread.start()
        return actor

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
        actor.waits_for = why
        self._parked.append(actor)
        self._look_for_deadlock()
        timeout = OUTSIDE_POLL_SECONDS if actor.waiting is not None and actor.waiting.outside else None
        self._mutex.release()
        try:
            actor.signal.acquire(timeout=timeout)
        finally:
            self._mutex.acquire()
            self._parked.remove(actor)
        if isinstance(self._poison, DeadlockError) and not actor.unwinding:
            raise self._poison
        if self._ending and not actor.unwinding:
            raise Cancelled

    def _after_step(self) -> None:
        """Wake those whose condition holds now. The one who runs looks, so that nobody is woken for nothing."""
        for parked in self._parked:
            if parked.waiting is not None and parked.waiting.condition():
                parked.signal.release()

    def _look_for_deadlock(self) -> None:
        if not self._parked or len(self._parked) < len(self._actors) or self._ending:
            return
        for parked in self._parked:
            granted = parked.queued is None and parked.waiting is None
            waiting = parked.waiting
            if granted or (waiting is not None and (waiting.outside or waiting.condition())):
                return
        cycle = "; ".join(f"{parked.name} waits for {parked.waits_for}" for parked in self._parked)
        self._poisoned(DeadlockError(f"all actors wait: {cycle}"))
