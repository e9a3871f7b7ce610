"""What the live clock keeps of each text that it drives, and what it tells of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lazypv.steps import Lock, Step, Wait


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

    def note(self, pages: int, calls: int, seconds: float) -> None:
        """A hold has ended."""
        if pages > self.pages:
            self.pages = pages
        if calls > self.calls:
            self.calls = calls
        if seconds > self.seconds:
            self.seconds = seconds


@dataclass
class Hold:
    """A lock that is held now: since when, and what was done under it."""

    since: float
    pages: int = 0
    calls: int = 0


class Signal:
    """Wakes one sleeper; given and taken back under the mutex. A bare lock, since a control-C must leave it whole."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def give(self) -> None:
        """Wake the sleeper; once is enough."""
        if self._lock.locked():
            self._lock.release()

    def wait(self, timeout: float) -> None:
        """Sleep until it is given, at most `timeout` seconds (-1: for ever)."""
        self._lock.acquire(timeout=timeout)

    def take_back(self) -> None:
        """Whatever was given meanwhile counts no more."""
        self._lock.acquire(blocking=False)


def grant(lock: Lock) -> None:
    """Give a lock to those in front of its queue who can have it now."""
    while (following := lock.next_in_queue()) is not None:
        following.queued = None
        following.signal.give()


def take_patiently(mutex: threading.Lock) -> None:
    """Take `mutex` even if a person loses patience meanwhile; then say so."""
    interruption: KeyboardInterrupt | None = None
    while True:
        try:
            mutex.acquire()
            break
        except KeyboardInterrupt as error:
            interruption = error
    if interruption is not None:
        raise interruption


@dataclass(eq=False)
class Actor:
    """A text being driven.

    Attributes
    ----------
    step : Step or None
        What it awaited last.
    unattended : bool
        A kernel thread: nobody joins it, so what it breaks down with becomes everybody's business.
    unwinding : bool
        Being ended: it is asked for nothing more than to give up what it holds.
    done : bool
        The text has ended; others may wait for that. `finished` comes when its thread, too, has nothing left to do.
    """

    name: str
    unattended: bool = False
    signal: Signal = field(default_factory=Signal)
    holds: dict[Lock, Hold] = field(default_factory=dict)
    step: Step[Any] | None = None
    waits_for: str = ""
    waiting: Wait | None = None
    queued: Lock | None = None
    thread: threading.Thread | None = None
    error: BaseException | None = None
    result: Any = None
    unwinding: bool = False
    done: bool = False
    finished: threading.Event = field(default_factory=threading.Event)

    def join(self) -> None:
        """Wait until its thread, if it has one, is gone.

        A control-C in the middle of ``Thread.join`` makes Python 3.11 take a running thread for an ended one, so the
        event is waited for first.
        """
        if self.thread is not None:
            self.finished.wait()
            self.thread.join()

    def charge(self, pages: int, calls: int) -> None:
        """Something was done under all locks that it holds."""
        for hold in self.holds.values():
            hold.pages += pages
            hold.calls += calls

    @property
    def is_queued(self) -> bool:
        """Whether it still waits for a lock."""
        return self.queued is not None

    def may_go_on(self) -> bool:
        """Whether a sleeper has what it waits for."""
        if self.waiting is None:
            return not self.is_queued
        try:
            return self.waiting.condition()
        except Exception:  # whose condition it is will meet that too, and break down under the right name
            return True

    def __repr__(self) -> str:
        return self.name
