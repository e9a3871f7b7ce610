"""One run: a scene in a world that was put back to its start, step by step, with a look at what each step left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lazypv.clocks.explore import MOST_STEPS, Actor, Choice, ExploringClock, Faults, Taken
from lazypv.errors import EXIT_VIOLATION, LazyPVError, LifetimeError, ModelError
from lazypv.explore.faults import ONLY_TIME_LOST
from lazypv.explore.world import Scene, World
from lazypv.invariants import Violation
from lazypv.scenario.boot import GuestStartError
from lazypv.steps import Bulk

Schedule = tuple[Choice, ...]
NewClock = Callable[[Faults | None], ExploringClock]


class UnprotectedAccessError(ModelError):
    """A segment of a text had unprotected accesses to several things: says which, and after which step."""


@dataclass(frozen=True)
class Broken:
    """A schedule that breaks an invariant."""

    violation: Violation
    schedule: Schedule
    steps: tuple[Taken, ...]
    fingerprint: str


class Replayed(NamedTuple):
    """A schedule that was run once more, told step by step.

    Attributes
    ----------
    strayed : bool
        One of its choices could not be taken; from there on the run went as it came.
    """

    violation: Violation | None
    schedule: Schedule
    steps: tuple[Taken, ...]
    fingerprint: str
    strayed: bool = False


class Run:
    """One run of a scene in a world that was put back to its start.

    Parameters
    ----------
    tell : bool
        Keep every step in words, and look at everything after it.

    Attributes
    ----------
    choices : list of Choice
        What was taken so far.
    steps : list of Taken
        The same in words, if that was asked for.
    violation : Violation or None
        What the last step left broken.
    """

    def __init__(
        self,
        world: World,
        scene: Scene,
        faults: Faults | None,
        *,
        tell: bool = False,
        new_clock: NewClock = ExploringClock,
    ) -> None:
        self.world = world
        world.restore()
        self.clock = new_clock(faults)
        self.choices: list[Choice] = []
        self.steps: list[Taken] = []
        self._tell = tell
        self._look_around = world.look_at_all if tell else world.look
        self.violation: Violation | None = None
        for name, text in scene(world):
            self.clock.start(text, name)
        self.violation = self._look()

    def follow(self, choices: Schedule) -> None:
        """Steps that were taken before, in the same order, and left nothing broken then: nobody looks again."""
        step = self.clock.step
        for choice in choices:
            if choice.fault:
                self._note_fault(choice)
            step(choice)
        self.choices += choices

    def step(self, choice: Choice) -> None:
        """One step, and a look at what it left behind."""
        self.choices.append(choice)
        self._step(choice)

    def _step(self, choice: Choice) -> None:
        if choice.fault:
            self._note_fault(choice)
        try:
            if self._tell:
                self.steps.append(self.clock.take(choice))
            else:
                self.clock.step(choice)
        except UnprotectedAccessError:
            raise
        except LazyPVError as error:
            self.violation = _violation(error)
            return
        self.violation = self._look()

    def _note_fault(self, choice: Choice) -> None:
        name, _ = self.clock.faults_of(choice.actor)[choice.fault - 1]
        self.world.faulted |= name not in ONLY_TIME_LOST

    def enabled(self) -> list[int]:
        """Actors that can go on; none when the run is over."""
        if self.violation is not None:
            return []
        enabled = self.clock.enabled()
        if not enabled:
            self.violation = self._stuck() or self.world.look_at_the_end()
        elif self.clock.steps > MOST_STEPS:
            self.violation = Violation(35, f"after {MOST_STEPS} steps the run has not come to an end")
            return []
        return enabled

    def wind_up(self) -> None:
        """The run is over. Nothing fails any more, everybody leaves: all comes to be destroyed, or accounted for."""
        self.clock.faults = None
        self.clock.start(self.world.wind_up(), "in the end")
        while self.violation is None and (enabled := self.clock.enabled()):
            if self.clock.steps > 2 * MOST_STEPS:
                self.violation = Violation(35, f"after {MOST_STEPS} more steps not everybody has left")
                return
            self._step(Choice(enabled[0]))
        if self.violation is None:
            self.violation = self._stuck() or self.world.look_when_wound_up()

    def digest(self) -> int:
        """The state, each text's position and what its pending step has come to included."""
        return self.world.digest(self.standing())

    def standing(self) -> list[list[Any]]:
        """Where each actor stands."""
        return [_standing(actor) for actor in self.clock.actors]

    def close(self) -> None:
        """Let the texts go."""
        self.clock.close()

    def _look(self) -> Violation | None:
        for actor in self.clock.actors:
            if actor.error is not None and not (self.world.faulted and isinstance(actor.error, GuestStartError)):
                return _violation(actor.error)
        return self._look_around()

    def _stuck(self) -> Violation | None:
        stuck = self.clock.alive()
        if not stuck:
            return None
        waits = "; ".join(f"{actor.name} at {actor.pending!r}" for actor in stuck)
        return Violation(34, f"nobody can go on: {waits}")


def _standing(actor: Actor) -> list[Any]:
    """Where an actor stands: its text, and how far its bulk step has come."""
    step = actor.pending
    if not isinstance(step, Bulk):
        return [actor.text, actor.page, actor.answers]
    claimed = actor.claim is not None
    return [actor.text, actor.page, claimed, step.columns, [(answer.rc, answer.done) for answer in actor.answers]]


def _violation(error: LazyPVError) -> Violation:
    """The invariant behind what a text broke down with: a process that was killed made no progress (35)."""
    if isinstance(error, LifetimeError):
        return Violation(error.invariant, error.what)
    return Violation(35 if error.exit_status == EXIT_VIOLATION else 25, str(error))
