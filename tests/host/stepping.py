"""Texts one step at a time: for tests that put one text's step exactly between two of another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lazypv.steps import Acquire, Alloc, Bulk, Call, Lock, Release, Several, Spawn, Step, Text, Touch, Wait


class Driven:
    """A text that goes no further than it is told.

    Attributes
    ----------
    pending : Step or None
        What it awaits and has not got yet; None once it has ended.
    """

    def __init__(self, stepper: Stepper, text: Text[Any]) -> None:
        self._stepper = stepper
        self._text = text
        self.result: Any = None
        self.pending: Step[Any] | None = None
        self.locks: list[Lock] = []
        self._send(None)

    def _send(self, value: object) -> None:
        try:
            self.pending = self._text.send(value)
            while isinstance(self.pending, Several):
                self.pending = self._text.send(self.pending.none)
        except StopIteration as stop:
            self.pending, self.result = None, stop.value

    def step(self) -> None:
        """Do the pending step, and go on to the next."""
        assert self.pending is not None, "the text has ended"
        self._send(self._stepper.perform(self, self.pending))

    def until(self, wanted: Callable[[Step[Any]], bool]) -> Driven:
        """Go on to the first step that is `wanted`, which is not done yet."""
        while self.pending is not None and not wanted(self.pending):
            self.step()
        assert self.pending is not None, "the text ended before"
        return self

    def finish(self) -> Any:
        """Go on to the end; what the text returns."""
        while self.pending is not None:
            self.step()
        return self.result


class Stepper:
    """Drives texts in the calling thread. Kernel threads are started, but stand still until they are driven.

    Attributes
    ----------
    history : list of (str, list of str)
        Bulk steps, calls and allocations by name, and which locks their text held, ``name`` or ``name (shared)``.
    """

    def __init__(self, *, no_memory_for: tuple[str, ...] = ()) -> None:
        self.threads: list[Driven] = []
        self.history: list[tuple[str, list[str]]] = []
        self._no_memory_for = no_memory_for

    def start(self, text: Text[Any]) -> Driven:
        """Bring `text` to its first step."""
        return Driven(self, text)

    def run(self, text: Text[Any]) -> Any:
        """Drive `text` to its end."""
        return self.start(text).finish()

    def locks_held_at(self, name: str) -> list[list[str]]:
        """Each set of locks that was held at a step of that name, once."""
        found = [sorted(set(locks)) for step, locks in self.history if step == name]
        return [locks for number, locks in enumerate(found) if locks not in found[:number]]

    def perform(self, actor: Driven, step: Step[Any]) -> Any:
        if isinstance(step, Bulk | Call | Alloc):
            held = [lock.name if lock.writer is actor else f"{lock.name} (shared)" for lock in actor.locks]
            self.history.append((step.label, held))
        match step:
            case Acquire():
                assert step.lock.try_take(actor, step.shared), f"{step.lock} is held"
                actor.locks.append(step.lock)
            case Release():
                step.lock.give_up(actor, step.shared)
                actor.locks.remove(step.lock)
            case Bulk():
                return step.operation(*step.columns)
            case Alloc():
                return None if step.what in self._no_memory_for else step.operation()
            case Call():
                return step.operation()
            case Wait():
                assert step.condition(), f"nobody can help it: it waits for {step.why}"
            case Spawn():
                self.threads.append(self.start(step.text()))
                return self.threads[-1]
            case _:
                assert isinstance(step, Touch)
        return None


def acquires(name: str) -> Callable[[Step[Any]], bool]:
    """The step is about to take the lock of that name."""
    return lambda step: isinstance(step, Acquire) and step.lock.name == name


def named(name: str) -> Callable[[Step[Any]], bool]:
    """The step is a bulk step, call, allocation or touch of that name."""
    return lambda step: step.label == name
