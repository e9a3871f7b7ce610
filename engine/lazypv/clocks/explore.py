"""The exploring clock: one small world, one step at a time, in an order that somebody chooses.

A step is what a text awaits and what it does then until it awaits again; a bulk step is as many steps as it has pages,
since another CPU can come between any two, and going on after the last page is a step of its own. Nothing here is
random and nothing waits: who chooses asks :meth:`ExploringClock.choices` and calls :meth:`ExploringClock.take`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from lazypv.errors import LazyPVError
from lazypv.steps import Acquire, Alloc, Bulk, Call, Lock, Release, Several, Spawn, Step, Text, Touch, Wait

Fault = Callable[[Callable[[], Any]], Any]
"""Does a step, given as a function, in the way in which it fails; what the text is given."""
Faults = Callable[[Step[Any]], list[tuple[str, Fault]]]
LetGo = Callable[[], None]
Claims = Callable[[Bulk[Any], int], LetGo | None]

MOST_STEPS = 20_000
"""A run longer than this is taken to go on for ever."""


class Choice(NamedTuple):
    """Whose turn it is, and which fault its step meets (0: none)."""

    actor: int
    fault: int = 0


class Taken(NamedTuple):
    """A step as it happened: who, what, about which pages, and whether it failed."""

    actor: str
    step: str
    pages: tuple[int, ...] = ()
    fault: str = ""
    answer: str = ""


@dataclass(eq=False)
class Actor:
    """A text on its way.

    Attributes
    ----------
    pending : Step or None
        What it awaits; None when it has ended.
    page : int
        How many pages of a pending bulk step are done; of a call, whether it is done.
    answers : list
        What they gave back.
    claim : callable or None
        The next page of it is claimed; how to let go of that.
    """

    name: str
    text: Text[Any]
    pending: Step[Any] | None = None
    page: int = 0
    answers: list[Any] = field(default_factory=list)
    holds: list[Lock] = field(default_factory=list)
    error: LazyPVError | None = None
    claim: LetGo | None = None

    def __repr__(self) -> str:
        return self.name


class ExploringClock:
    """Drives texts one step at a time.

    Parameters
    ----------
    faults : callable
        ``faults(step)``: what may go wrong with a step, as a list of (name, how it is done then).

    Attributes
    ----------
    claims : callable or None
        ``claims(step, page)``: claim that page of a bulk step as a first half of doing it, and give back how to let go
        of it; None if there is nothing to claim. With it a call, too, is two steps: what it does, and going on. Without
        it a page, and a call, is one step.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        self.actors: list[Actor] = []
        self.faults = faults
        self.claims: Claims | None = None
        self.steps = 0

    def start(self, text: Text[Any], name: str) -> Actor:
        """Let `text` run up to what it awaits first."""
        actor = Actor(name, text)
        self.actors.append(actor)
        self._resume(actor, None)
        return actor

    def close(self) -> None:
        """Give up all texts. None of them runs on: the world is thrown away or restored."""
        for actor in self.actors:
            if actor.pending is not None:
                actor.pending = None
                _drop(actor.text)
        self.actors.clear()

    # --- choosing ------------------------------------------------------------------------------------------------

    def enabled(self) -> list[int]:
        """Actors whose step can be taken now."""
        return [number for number, actor in enumerate(self.actors) if _is_enabled(actor.pending)]

    def is_enabled(self, number: int) -> bool:
        """Whether that actor's step can be taken now."""
        return _is_enabled(self.actors[number].pending)

    def alive(self) -> list[Actor]:
        """Actors that have not ended."""
        return [actor for actor in self.actors if actor.pending is not None]

    def faults_of(self, number: int) -> list[tuple[str, Fault]]:
        """What may go wrong with an actor's next step."""
        step = self.actors[number].pending
        if self.faults is None or step is None:
            return []
        done = self.actors[number].page
        if done and done >= (step.pages if isinstance(step, Bulk) else 1):
            return []
        return self.faults(step)

    # --- taking --------------------------------------------------------------------------------------------------

    def take(self, choice: Choice) -> Taken:
        """Take one step, and tell what happened."""
        actor = self.actors[choice.actor]
        step, page = actor.pending, actor.page
        fault = self.faults_of(choice.actor)[choice.fault - 1][0] if choice.fault else ""
        answer = self.step(choice)
        if step is None or (not isinstance(step, Bulk) and not page):
            return Taken(actor.name, describe(step) if step else "", (), fault, _short(answer))
        if not isinstance(step, Bulk):
            return Taken(actor.name, f"go on after {describe(step)}")
        if page == step.pages:
            return Taken(actor.name, f"go on after {step.name}")
        if actor.claim is not None:
            return Taken(actor.name, f"claim for {step.name}", (int(step.columns[0][page]),))
        return Taken(actor.name, step.name, (int(step.columns[0][page]),), fault, _short(answer))

    def step(self, choice: Choice) -> Any:
        """Take one step; what it gave back, or the error that was thrown into the text."""
        number, which = choice
        actor = self.actors[number]
        step = actor.pending
        if step is None:
            raise LookupError(f"{actor.name} has ended")
        self.steps += 1
        fault = self.faults_of(number)[which - 1][1] if which else None
        if type(step) is Bulk:
            try:
                return self._page(actor, step, fault)
            except LazyPVError:
                raise
            except Exception as error:
                _raised_in(actor.text, error)
                raise
        if actor.page:
            actor.page = 0
            self._resume(actor, actor.answers.pop())
            return None
        if fault is None and type(step) in _PASSED:
            self._resume(actor, None)
            return None
        perform = _PERFORM[type(step)]
        try:
            answer = fault(partial(perform, self, actor, step)) if fault else perform(self, actor, step)
        except LazyPVError as error:
            self._resume(actor, None, error)
            return error
        except Exception as error:
            _raised_in(actor.text, error)
            raise
        if self.claims is not None and type(step) is Call:
            actor.page = 1
            actor.answers.append(answer)
        else:
            self._resume(actor, answer)
        return answer

    def _page(self, actor: Actor, step: Bulk[Any], fault: Fault | None) -> Any:
        at = actor.page
        if at == len(step.columns[0]):
            answers, actor.answers, actor.page = actor.answers, [], 0
            if len(answers) == 1:
                answer = answers[0]
            else:
                answer = type(answers[0]).merge(answers) if answers else step.operation(*step.columns)
            self._resume(actor, answer)
            return None
        if actor.claim is not None:
            actor.claim()
            actor.claim = None
        elif self.claims is not None and fault is None:
            actor.claim = self.claims(step, at)
            if actor.claim is not None:
                return None
        actor.page = at + 1
        columns = step.columns if len(step.columns[0]) == 1 else [column[at : at + 1] for column in step.columns]
        answer = fault(partial(step.operation, *columns)) if fault else step.operation(*columns)
        actor.answers.append(answer)
        return answer

    def _acquire(self, actor: Actor, step: Acquire) -> None:
        lock = step.lock
        if step.shared:
            lock.readers.add(actor.name)
        else:
            lock.writer = actor.name
        actor.holds.append(lock)

    def _release(self, actor: Actor, step: Release) -> None:
        step.lock.give_up(actor.name, step.shared)
        actor.holds.remove(step.lock)

    def _operate(self, _actor: Actor, step: Call[Any] | Alloc[Any]) -> Any:
        return step.operation()

    def _spawn(self, _actor: Actor, step: Spawn) -> Actor:
        return self.start(step.text(), f"{step.name} {len(self.actors)}")

    def _pass(self, _actor: Actor, _step: Touch | Wait) -> None:
        """Nothing happens."""

    def _resume(self, actor: Actor, value: Any, thrown: LazyPVError | None = None) -> None:
        try:
            step = actor.text.send(value) if thrown is None else actor.text.throw(thrown)
            while type(step) not in _STEPS:
                if type(step) is Several:
                    step = actor.text.send(step.none)
                else:
                    step = actor.text.throw(TypeError(f"{step!r} is not a step"))
            actor.pending = step
        except StopIteration:
            actor.pending = None
        except LazyPVError as error:
            actor.pending = None
            actor.error = error


_PERFORM: dict[type, Callable[[ExploringClock, Actor, Any], Any]] = {
    Acquire: ExploringClock._acquire,
    Release: ExploringClock._release,
    Call: ExploringClock._operate,
    Alloc: ExploringClock._operate,
    Spawn: ExploringClock._spawn,
    Touch: ExploringClock._pass,
    Wait: ExploringClock._pass,
}
_STEPS = frozenset({Bulk, *_PERFORM})
_PASSED = frozenset(kind for kind, perform in _PERFORM.items() if perform is ExploringClock._pass)
"""Nothing happens at the step itself, unless it is made to fail."""


def _raised_in(text: Text[Any], error: Exception) -> None:
    """A step breaks down where it is awaited: so that its trace says in whose text."""
    if _is_suspended(text):
        text.throw(error)


def _is_suspended(text: Text[Any]) -> bool:
    return getattr(text, "cr_frame", None) is not None


def _is_enabled(step: Step[Any] | None) -> bool:
    if type(step) is Acquire:
        lock = step.lock
        return lock.writer is None and (step.shared or not lock.readers)
    if type(step) is Wait:
        return step.condition()
    return step is not None


def describe(step: Step[Any]) -> str:
    """A step in the field's words."""
    if isinstance(step, Acquire):
        return f"take {step.lock.name}{' shared' if step.shared else ''}"
    if isinstance(step, Release):
        return f"release {step.lock.name}"
    if isinstance(step, Touch):
        return f"{'write' if step.write else 'read'} {step.name}"
    if isinstance(step, Wait):
        return f"wait for {step.why}"
    if isinstance(step, Alloc):
        return f"allocate {step.what}"
    if isinstance(step, Spawn):
        return f"create thread {step.name}"
    return step.name if isinstance(step, Call | Bulk) else repr(step)


def _short(answer: Any) -> str:
    rc = getattr(answer, "rc", None)
    if rc is None:
        return ""
    return f"rc {int(rc if isinstance(rc, int) else rc[0]):#06x}"


class _GivenUpError(BaseException):
    """Thrown into a text that nobody goes on with."""


def _drop(text: Text[Any]) -> None:
    """Unwind a suspended text now, so that no later collection does it; what it awaits on its way out it is given.

    What it changes meanwhile is of no account: its world is thrown away or put back.
    """
    if not _is_suspended(text):
        return
    try:
        text.throw(_GivenUpError)
        for _ in range(MOST_STEPS):
            text.send(None)
    except (_GivenUpError, StopIteration, LazyPVError):
        pass
