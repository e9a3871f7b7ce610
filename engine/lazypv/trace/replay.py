"""The model, driven along a trace: one run of the very same texts, in the order of the lines.

Where an operation takes its effect, between the line that begins it and the line that ends it, is not said by the
trace; whoever drives a replay chooses it, by :meth:`Replay.effect`.

A page of a bulk step is one step of the model, with everything that belongs to it. On real threads it is not quite:
while operations overlap, one can meet what another has claimed or holds a reference to for a moment longer. Those
answers, and no others, are taken from the trace then (:meth:`Replay.effect`), and what they leave is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from lazypv.clocks.explore import Choice, ExploringClock, describe
from lazypv.clocks.trace import END, KINDS, Line, counts_of, noted
from lazypv.errors import LazyPVError
from lazypv.host.secure_pages import FREEZE_FAILED
from lazypv.steps import Acquire, Alloc, Bulk, Call, Release, Spawn, Step, Touch
from lazypv.ultravisor import Answer, BulkAnswer
from lazypv.ultravisor.interface import UVC_CC_BUSY, UVC_CC_PARTIAL
from lazypv_kernels.layout import NO_FRAME, RC_BUSY, RC_DONE, RC_DTYPE

if TYPE_CHECKING:
    from lazypv.explore.world import Scene, World


MAKE_SECURE: Final = "make secure"
"""The bulk step whose pages are exported before they are imported (patch 07)."""
_AGAIN: Final = (UVC_CC_BUSY, UVC_CC_PARTIAL)


class Refused(Exception):  # noqa: N818  (what the model does, not what went wrong with it)
    """The model does not allow a line: where it stands, and why not."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at = at
        self.why = why


@dataclass
class Operation:
    """An operation that has begun and not ended: what the trace says of it, and how far the model is with it.

    Attributes
    ----------
    end : int
        The line that ends it.
    left : int
        How many effects, pages or the one of a call, have still to come.
    prepared : bool
        The next page has been exported before its import already.
    """

    end: int
    left: int
    answers: list[Any] = field(default_factory=list)
    prepared: bool = False


class Outcome:
    """What an operation of the model gives back: done when its effect comes, handed out when its text goes on."""

    def __init__(self, operation: Callable[[], Any]) -> None:
        self.answer: Any = None
        self.error: LazyPVError | None = None
        try:
            self.answer = operation()
        except LazyPVError as error:
            self.error = error

    def __call__(self) -> Any:
        """What the clock takes for the operation."""
        if self.error is not None:
            raise self.error
        return self.answer


class Replay:
    """One run.

    Parameters
    ----------
    lines : list of dict
        The trace's, without its header; a line's place in it is what `at` counts.

    Attributes
    ----------
    at : int
        The next line.
    open : dict of int to Operation
        Operations under way, by their actors' numbers.
    """

    def __init__(self, world: World, scene: Scene, lines: list[Line]) -> None:
        self.world = world
        self.lines = lines
        self.at = 0
        self.open: dict[int, Operation] = {}
        self._numbers: dict[str, int] = {}
        self._ended: set[int] = set()
        world.restore()
        self.clock = ExploringClock()
        for name, text in scene(world):
            self._numbers[name] = len(self.clock.actors)
            self.clock.start(text, name)
        self._look()

    def close(self) -> None:
        """Let the texts go."""
        self.clock.close()

    # --- where it stands -----------------------------------------------------------------------------------------

    def digest(self) -> int:
        """The state, the texts' positions included."""
        return self.world.digest([actor.text for actor in self.clock.actors])

    def progress(self) -> tuple[tuple[int, int, bool, tuple[int, ...]], ...]:
        """How far each operation under way is, and what it has been answered: the state does not show whose call it was
        that changed a page."""
        return tuple(
            (number, each.left, each.prepared, tuple(answer.done for answer in each.answers))
            for number, each in sorted(self.open.items())
        )

    def may_go_on(self) -> bool:
        """Whether the next line could be followed: not if it ends an operation whose effects have still to come."""
        line = self.lines[self.at]
        operation = self.open.get(self._numbers.get(line["actor"], -1))
        return operation is None or line.get("at") != "end" or not operation.left

    def pending_effects(self) -> list[int]:
        """Actors whose operation has an effect to come; whose operation ends first comes first."""
        under_way = [(operation.end, number) for number, operation in self.open.items() if operation.left]
        return [number for _, number in sorted(under_way)]

    def allowed(self) -> list[tuple[str, str]]:
        """Who could take which step here."""
        names = {number: name for name, number in self._numbers.items()}
        found = []
        for number in self.clock.enabled():
            actor = self.clock.actors[number]
            step = actor.pending
            if step is not None:
                found.append((names.get(number, actor.name), _tell(step, actor.page)))
        return found

    # --- driving -------------------------------------------------------------------------------------------------

    def effect(self, number: int) -> None:
        """The next page of an actor's bulk step, or its call, takes effect now, and answers as the trace says."""
        operation, step = self.open[number], self.clock.actors[number].pending
        operation.left -= 1
        operation.prepared = False
        if isinstance(step, Call):
            self._call(operation, step)
        elif isinstance(step, Bulk):
            self._page(number, operation, step)

    def prepare(self, number: int) -> None:
        """The next page is exported before its import, and no more: then an unexpected reference is in the way."""
        operation, step = self.open[number], self.clock.actors[number].pending
        operation.prepared = True
        if isinstance(step, Bulk):
            at = self.clock.actors[number].page
            self._with_references(step.operation, *(column[at : at + 1] for column in step.columns))

    def can_prepare(self, number: int) -> bool:
        """Whether the next effect has a part that another operation could tell from the rest."""
        step = self.clock.actors[number].pending
        return step is not None and step.label == MAKE_SECURE and not self.open[number].prepared

    def _call(self, operation: Operation, step: Call[Any]) -> None:
        end = self.lines[operation.end]
        says = end.get("answer")
        if len(self.open) > 1 and isinstance(says, dict) and says.get("cc") in _AGAIN and says.get("pages") == 0:
            outcome = Outcome(lambda: Answer(**says))
        else:
            outcome = Outcome(step.operation)
        step.operation = outcome
        _compare(operation.end, outcome.answer, outcome.error, end)

    def _page(self, number: int, operation: Operation, step: Bulk[Any]) -> None:
        end = self.lines[operation.end]
        codes = end["answer"]["rc"] if "answer" in end else []
        at = len(operation.answers)
        if at >= len(codes):
            raise Refused(operation.end, f"{len(codes)} codes cannot be those of {at + 1 + operation.left} pages")
        page = int(step.columns[0][self.clock.actors[number].page])
        says = codes[at] if len(self.open) > 1 else RC_DONE
        answer = self._watched(number, operation, step, says)
        operation.answers.append(answer)
        code = int(answer.rc[0])
        if code != codes[at]:
            raise Refused(operation.end, f"page {page}: the model answers {code:#06x}, not {codes[at]:#06x}")

    def _watched(self, number: int, operation: Operation, step: Bulk[Any], says: int) -> Any:
        """Take a page; its answer. `says` is busy or a failed freeze where others may be in its way now."""
        do, given = step.operation, []

        def watched(*columns: Any) -> Any:
            if says == RC_BUSY:
                given.append(BulkAnswer(np.full(1, RC_BUSY, RC_DTYPE), 0, busy=1))
            elif says == FREEZE_FAILED:
                given.append(self._with_references(do, *columns))
            else:
                given.append(do(*columns))
            return given[-1]

        step.operation = watched
        try:
            self._take(number, operation.end)
        finally:
            step.operation = do
        return given[0]

    def _with_references(self, operation: Callable[..., Any], *columns: Any) -> Any:
        """Do `operation` while somebody else holds a reference to its page."""
        pages, frames = columns[0], self.world.machine.frames
        entries = [vm.gmap.pte[pages] for vm in self.world.vms if pages.max() < vm.guest_pages]
        held = np.unique(np.concatenate([entry[entry != NO_FRAME] for entry in entries]).astype(np.int64) - 1)
        frames.get(held)
        try:
            return operation(*columns)
        finally:
            frames.put(held)

    def follow(self) -> None:
        """Do what the next line says.

        Raises
        ------
        Refused
            The model does not allow it.
        """
        line = self.lines[self.at]
        number = self._numbers.get(line["actor"])
        if number is None:
            self._refuse(f"there is no actor {line['actor']!r}")
        step = self.clock.actors[number].pending
        if line["kind"] == END:
            self._end(line, number, step)
        elif step is None:
            self._refuse(f"{line['actor']} has ended")
        else:
            self._compare_step(line, number, step)
            how = {"begin": self._begin, "end": self._end_operation, "resume": self._resume}
            how.get(line.get("at", ""), self._instant)(line, number, step)
        self.at += 1
        self._look()

    def finish(self) -> None:
        """After the last line: everybody has ended, and nothing is broken."""
        missing = [name for name, number in self._numbers.items() if number not in self._ended]
        if missing:
            self._refuse(f"the trace ends without the end of {', '.join(missing)}")
        violation = self.world.look_at_the_end()
        if violation is not None:
            self._refuse(f"invariant {violation.number} is broken: {violation.text}")

    def _instant(self, line: Line, number: int, step: Step[Any]) -> None:
        """A step that is one line."""
        if number not in self.clock.enabled():
            what = "the lock is not free" if isinstance(step, Acquire) else "the condition does not hold"
            self._refuse(f"{line['actor']} cannot go on: {what}")
        if isinstance(step, Acquire | Release) and step.shared != line["shared"]:
            self._refuse(f"{line['actor']} holds it {'shared' if step.shared else 'alone'}")
        if isinstance(step, Touch) and step.write != line["write"]:
            self._refuse(f"{line['actor']} only {'writes' if step.write else 'reads'} it")
        if isinstance(step, Spawn):
            self._spawn(line, number)
        elif isinstance(step, Alloc):
            step.operation = outcome = Outcome(step.operation)
            _compare(self.at, outcome.answer, outcome.error, line)
            self._take(number, self.at)
        else:
            self._take(number, self.at)

    def _spawn(self, line: Line, number: int) -> None:
        child, name = len(self.clock.actors), line.get("answer")
        if not isinstance(name, str) or name in self._numbers:
            self._refuse(f"a new thread has a name of its own, which {name!r} is not")
        self._take(number, self.at)
        self._numbers[name] = child

    def _begin(self, line: Line, number: int, step: Step[Any]) -> None:
        page = self.clock.actors[number].page
        if isinstance(step, Call) and isinstance(step.operation, Outcome):
            self._refuse(f"{line['actor']} is in the middle of {step.label}")
        effects = 1
        if isinstance(step, Bulk):
            pages = step.footprint[page:].tolist()
            effects = len(line["pages"])
            if pages[:effects] != line["pages"] or (step.pages and not effects):
                self._refuse(f"{step.label} of {line['actor']} is about pages {pages}, in that order")
        self.open[number] = Operation(self._end_of(line), effects)

    def _end_of(self, begin: Line) -> int:
        """Where the operation that begins here ends: the actor's next line."""
        later = range(self.at + 1, len(self.lines))
        at = next((at for at in later if self.lines[at]["actor"] == begin["actor"]), None)
        if at is None or (self.lines[at]["kind"], self.lines[at].get("at")) != (begin["kind"], "end"):
            self._refuse(f"{begin['what']} of {begin['actor']} begins and has no end")
        return at

    def _end_operation(self, line: Line, number: int, step: Step[Any]) -> None:
        operation = self.open.pop(number, None)
        if operation is None:
            self._refuse(f"{step.label} of {line['actor']} has not begun")
        if isinstance(step, Bulk):
            total = {name: 0 for name in line["answer"] if name != "rc"} if "answer" in line else {}
            for answer in operation.answers:
                for name, count in counts_of(answer).items():
                    total[name] += count
            merged = {"rc": [int(answer.rc[0]) for answer in operation.answers], **total}
            if merged != line.get("answer"):
                self._refuse(f"the model answers {merged}")

    def _resume(self, line: Line, number: int, step: Step[Any]) -> None:
        actor = self.clock.actors[number]
        if isinstance(step, Bulk):
            is_over = number not in self.open and actor.page == step.pages
        else:
            is_over = isinstance(step, Call) and isinstance(step.operation, Outcome)
        if not is_over:
            self._refuse(f"{step.label} of {line['actor']} has not come to its end")
        self._take(number, self.at)

    def _end(self, line: Line, number: int, step: Step[Any] | None) -> None:
        if step is not None or number in self._ended:
            self._refuse(f"{line['actor']} has {'not ended' if step is not None else 'ended before'}")
        if "error" in line:
            self._refuse(f"{line['actor']} does not end with {line['error']}")
        self._ended.add(number)

    def _take(self, number: int, at: int) -> None:
        try:
            self.clock.take(Choice(number))
        except LazyPVError as error:
            raise Refused(at, f"the model breaks down: {error}") from error

    # --- comparing -----------------------------------------------------------------------------------------------

    def _compare_step(self, line: Line, number: int, step: Step[Any]) -> None:
        if (line["kind"], line["what"]) != (KINDS[type(step)], step.label):
            self._refuse(f"the next step of {line['actor']} is another: {_tell(step, self.clock.actors[number].page)}")

    def _look(self) -> None:
        """What no step may break."""
        errors = [actor.error for actor in self.clock.actors if actor.error is not None]
        if errors:
            raise Refused(max(self.at - 1, 0), f"a text of the model breaks down: {errors[0]}")
        violation = self.world.look()
        if violation is not None:
            raise Refused(max(self.at - 1, 0), f"invariant {violation.number} is broken: {violation.text}")

    def _refuse(self, why: str) -> NoReturn:
        raise Refused(self.at, why)


def _compare(at: int, answer: Any, error: LazyPVError | None, line: Line) -> None:
    """Whether the model's answer is that of `line`."""
    if error is not None or "error" in line:
        says = type(error).__name__ if error is not None else f"no error, but {noted(answer)}"
        if error is None or says != line.get("error"):
            raise Refused(at, f"the model answers {says}")
    elif noted(answer) != line["answer"]:
        raise Refused(at, f"the model answers {noted(answer)}")


def _tell(step: Step[Any], page: int) -> str:
    if isinstance(step, Bulk):
        left = step.footprint[page:].tolist()
        return f"{step.label} {left}" if left else f"go on after {step.label}"
    return describe(step)
