"""What a live clock writes down of the steps that it drives: each with what it gave back, in the order in which they
took effect.

A step that is done under the clock's mutex is one line. An operation runs outside it, beside those of others, so it is
three: where it begins (noted under the mutex), where it has ended (noted at once, outside), where its text goes on
(under the mutex again). Its effect lies somewhere between the first two, and that is all that anybody can know of it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from lazypv.clocks.actors import take_patiently
from lazypv.errors import LazyPVError
from lazypv.steps import Acquire, Alloc, Bulk, Call, Release, Spawn, Step, Touch, Wait

if TYPE_CHECKING:
    from lazypv.clocks.actors import Actor

Line = dict[str, Any]

KINDS: Final[dict[type[Step[Any]], str]] = {
    Acquire: "Acquire",
    Release: "Release",
    Touch: "Touch",
    Bulk: "Bulk",
    Call: "Call",
    Alloc: "Alloc",
    Wait: "Wait",
    Spawn: "Spawn",
}
"""Each step's name in a trace; the end of an actor is `END`."""
END: Final = "End"
LONGEST_PAUSE_SECONDS: Final = 0.0004


def noted(answer: Any) -> Any:
    """What a step gave back, in numbers and text; of anything else that it was there."""
    if answer is None or isinstance(answer, bool | int | str):
        return answer
    if hasattr(answer, "rc") and hasattr(answer, "refused"):
        return {"rc": answer.rc.tolist(), **counts_of(answer)}
    if hasattr(answer, "_asdict"):
        return {name: noted(value) for name, value in answer._asdict().items()}
    if hasattr(answer, "tolist"):
        return answer.tolist()
    if isinstance(answer, list | tuple):
        return [noted(each) for each in answer]
    return True


def counts_of(answer: Any) -> dict[str, int]:
    """Counts of a bulk step."""
    return {name: int(getattr(answer, name)) for name in ("done", "noop", "busy", "refused")}


class Jitter:
    """Holds texts back at random, and cuts bulk steps into parts, so that real threads meet in ever other orders.

    Parameters
    ----------
    seed : int
        Of the pauses; what comes of them is the computer's business.

    Attributes
    ----------
    arrived : set of str
        Actors that have come to their first step; none takes it before `go` is set.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._chances: dict[str, random.Random] = {}
        self.arrived: set[str] = set()
        self.go = threading.Event()

    def pause(self, actor: str) -> None:
        """Let others go on for a moment, perhaps; called without the mutex."""
        self.arrived.add(actor)
        self.go.wait()
        chance = self._chance(actor)
        if chance.random() < 0.4:
            time.sleep(chance.random() * LONGEST_PAUSE_SECONDS)

    def parts(self, actor: str, pages: int) -> list[int]:
        """How many pages each part of a bulk step has."""
        chance = self._chance(actor)
        sizes: list[int] = []
        while (left := pages - sum(sizes)) > 0:
            sizes.append(chance.randint(1, left))
        return sizes or [0]

    def _chance(self, actor: str) -> random.Random:
        return self._chances.setdefault(actor, random.Random(f"{self._seed}/{actor}"))


class Trace:
    """The steps of a live clock, once it is its ``trace``.

    Parameters
    ----------
    jitter : Jitter, optional
        Makes orders vary. Only for texts that are spawned: the mutex is let go of at every step.

    Attributes
    ----------
    lines : list of dict
        As they are written to a file; ``docs/traces.md`` says what stands in them.
    """

    def __init__(self, jitter: Jitter | None = None) -> None:
        self.lines: list[Line] = []
        self._jitter = jitter
        self._names: dict[Actor, str] = {}

    @property
    def actors(self) -> list[Actor]:
        """Who has been seen so far, in order."""
        return list(self._names)

    def take(self, mutex: threading.Lock, actor: Actor, step: Step[Any], perform: Callable[[Actor, Any], Any]) -> Any:
        """Have `step` done by `perform`, and write it down; under the clock's mutex, as `perform` wants it."""
        if actor.unwinding:
            return perform(actor, step)
        name = self._name(actor)
        if self._jitter is not None:
            with _let_go(mutex):
                self._jitter.pause(name)
        line: Line = {"actor": name, "kind": KINDS[type(step)], "what": step.label}
        if isinstance(step, Bulk | Call):
            self._follow(mutex, name, step, line)
            line = {**line, "at": "resume"}
        elif isinstance(step, Acquire | Release):
            line["shared"] = step.shared
        elif isinstance(step, Touch):
            line["write"] = step.write
        try:
            answer = perform(actor, step)
        except LazyPVError as error:
            self._write(actor, {**line, "error": type(error).__name__})
            raise
        if isinstance(step, Alloc):
            line["answer"] = noted(answer)
        elif isinstance(step, Spawn):
            line["answer"] = None if answer is None else self._name(answer)
        self._write(actor, line)
        return answer

    def ended(self, actor: Actor) -> None:
        """The text of `actor` has come to its end; under the mutex."""
        line: Line = {"actor": self._name(actor), "kind": END}
        if actor.error is not None:
            line["error"] = type(actor.error).__name__
        self._write(actor, line)

    def _follow(self, mutex: threading.Lock, name: str, step: Bulk[Any] | Call[Any], line: Line) -> None:
        """Note where the operation of `step` begins, and have it note where it ends."""
        if isinstance(step, Call):
            self.lines.append({**line, "at": "begin"})
            step.operation = self._followed_call(name, step.operation, line)
        else:
            sizes = [step.pages] if self._jitter is None else self._jitter.parts(name, step.pages)
            self._begin_part(line, step.footprint[: sizes[0]])
            step.operation = self._followed_bulk(mutex, name, step.operation, line, sizes)

    def _followed_call(self, name: str, operation: Callable[[], Any], line: Line) -> Callable[[], Any]:
        def followed() -> Any:
            with self._ending(name, line) as end:
                answer = operation()
                end["answer"] = noted(answer)
            return answer

        return followed

    def _followed_bulk(
        self, mutex: threading.Lock, name: str, operation: Callable[..., Any], line: Line, sizes: list[int]
    ) -> Callable[..., Any]:
        def followed(*columns: Any) -> Any:
            answers: list[Any] = []
            at = 0
            for size in sizes:
                part = [column[at : at + size] for column in columns]
                if at:
                    with mutex:
                        self._begin_part(line, part[0])
                with self._ending(name, line) as end:
                    answers.append(operation(*part))
                    end["answer"] = noted(answers[-1])
                at += size
            return answers[0] if len(answers) == 1 else type(answers[0]).merge(answers)

        return followed

    def _begin_part(self, line: Line, pages: Any) -> None:
        self.lines.append({**line, "at": "begin", "pages": pages.tolist()})

    @contextmanager
    def _ending(self, name: str, line: Line) -> Iterator[Line]:
        """What is done here is an operation that has ended afterwards; one line says so, at once."""
        end: Line = {**line, "at": "end"}
        try:
            yield end
        except LazyPVError as error:
            end["error"] = type(error).__name__
            raise
        finally:
            self.lines.append(end)
            if self._jitter is not None:
                self._jitter.pause(name)

    def _write(self, actor: Actor, line: Line) -> None:
        """One more line; what an actor does while it is being ended tells nothing of the model."""
        if not actor.unwinding:
            self.lines.append(line)

    def _name(self, actor: Actor) -> str:
        """The actor's own name in this trace: threads of one name are numbered."""
        if actor not in self._names:
            taken = set(self._names.values())
            number, name = 1, actor.name
            while name in taken:
                number += 1
                name = f"{actor.name} {number}"
            self._names[actor] = name
        return self._names[actor]


@contextmanager
def _let_go(mutex: threading.Lock) -> Iterator[None]:
    mutex.release()
    try:
        yield
    finally:
        take_patiently(mutex)
