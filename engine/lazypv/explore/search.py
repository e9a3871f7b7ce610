"""Orders: which ones there are, which ones were seen, and the shortest one that breaks something.

Every schedule is run from the start of the world, which is put back for it. Exhaustive search goes depth first and
leaves out a state that it has been in before with at least as many preemptions left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lazypv.clocks.explore import MOST_STEPS, Actor, Choice, ExploringClock, Faults, Taken
from lazypv.errors import EXIT_VIOLATION, LazyPVError, ModelError
from lazypv.explore.world import Scene, World
from lazypv.invariants import Violation
from lazypv.scenario.boot import GuestStartError
from lazypv.steps import Bulk

Schedule = tuple[Choice, ...]


@dataclass(frozen=True)
class Broken:
    """A schedule that breaks an invariant."""

    violation: Violation
    schedule: Schedule
    steps: tuple[Taken, ...]
    fingerprint: str


class Replayed(NamedTuple):
    """A schedule that was run once more, told step by step."""

    violation: Violation | None
    schedule: Schedule
    steps: tuple[Taken, ...]
    fingerprint: str


@dataclass(frozen=True)
class Bounds:
    """How far a search goes.

    Attributes
    ----------
    preemptions : int or None
        How often an actor that could go on is left for another; None for no bound.
    faults : int
        How many steps may fail in one run.
    """

    preemptions: int | None = 2
    faults: int = 0


@dataclass
class Outcome:
    """What a search has seen."""

    schedules: int = 0
    steps: int = 0
    states: int = 0
    exhausted: bool = True
    broken: list[Broken] = field(default_factory=list)
    final_states: set[int] = field(default_factory=set)


class Run:
    """One run of a scene in a world that was put back to its start.

    Attributes
    ----------
    choices : list of Choice
        What was taken so far.
    violation : Violation or None
        What the last step left broken.
    """

    def __init__(self, world: World, scene: Scene, faults: Faults | None) -> None:
        self.world = world
        world.restore()
        self.clock = ExploringClock(faults)
        self.choices: list[Choice] = []
        self.violation: Violation | None = None
        for name, text in scene(world):
            self.clock.start(text, name)
        self.violation = self._look()

    def follow(self, choices: Schedule) -> None:
        """Steps that were taken before, in the same order, and left nothing broken then: nobody looks again."""
        step = self.clock.step
        for choice in choices:
            if choice.fault:
                self.world.faulted = True
            step(choice)
        self.choices += choices

    def step(self, choice: Choice) -> None:
        """One step, and a look at what it left behind."""
        self._one(choice, self.clock.step)

    def take(self, choice: Choice) -> Taken | None:
        """The same, and what happened in words; None if the step broke down."""
        taken: Taken | None = self._one(choice, self.clock.take)
        return taken

    def _one(self, choice: Choice, how: Callable[[Choice], Any]) -> Any:
        self.choices.append(choice)
        if choice.fault:
            self.world.faulted = True
        try:
            answer = how(choice)
        except LazyPVError as error:
            self.violation = Violation(_number_of(error), str(error))
            return None
        self.violation = self._look()
        return answer

    def enabled(self) -> list[int]:
        """Actors that can go on; none when the run is over."""
        if self.violation is not None:
            return []
        enabled = self.clock.enabled()
        if not enabled:
            self._end()
        elif self.clock.steps > MOST_STEPS:
            self.violation = Violation(35, f"after {MOST_STEPS} steps the run has not come to an end")
            return []
        return enabled

    def digest(self) -> int:
        """The state, each text's position and what its pending step has come to included."""
        return self.world.digest([_standing(actor) for actor in self.clock.actors])

    def close(self) -> None:
        """Let the texts go."""
        self.clock.close()

    def _look(self) -> Violation | None:
        for actor in self.clock.actors:
            if actor.error is not None and not (self.world.faulted and isinstance(actor.error, GuestStartError)):
                return Violation(_number_of(actor.error), f"{actor.name}: {actor.error}")
        return self.world.look()

    def _end(self) -> None:
        stuck = self.clock.alive()
        if stuck:
            waits = "; ".join(f"{actor.name} at {actor.pending!r}" for actor in stuck)
            self.violation = Violation(34, f"nobody can go on: {waits}")
        else:
            self.violation = self.world.look_at_the_end()


def _standing(actor: Actor) -> list[Any]:
    """Where an actor stands: its text, and how far its bulk step has come."""
    step = actor.pending
    if not isinstance(step, Bulk):
        return [actor.text]
    return [actor.text, actor.page, step.columns, [answer.rc for answer in actor.answers]]


_BY_WORDS = ((24, "last reference"), (26, "list"), (25, "dropped"), (25, "reference"))


def _number_of(error: LazyPVError) -> int:
    """The invariant behind what a text broke down with: a process that was killed made no progress (35)."""
    if error.exit_status == EXIT_VIOLATION:
        return 35
    return next((number for number, words in _BY_WORDS if words in str(error)), 25)


class Branch(NamedTuple):
    """A schedule still to be followed, and what it has used up of the bounds."""

    schedule: Schedule
    preemptions: int
    faults: int


class Explorer:
    """Searches the orders of one scene in one world."""

    def __init__(
        self,
        world: World,
        scene: Scene,
        bounds: Bounds = Bounds(),
        faults: Faults | None = None,
    ) -> None:
        self.world = world
        self.scene = scene
        self.bounds = bounds
        self._faults = faults if bounds.faults else None

    def exhaust(self, *, prune: bool = True, most_schedules: int | None = None, stop_at_first: bool = True) -> Outcome:
        """Every order within the bounds; with `prune`, each state only once."""
        outcome = Outcome()
        seen: dict[int, list[tuple[int, int]]] = {}
        todo: list[Branch] = [Branch((), 0, 0)]
        while todo:
            if most_schedules is not None and outcome.schedules >= most_schedules:
                outcome.exhausted = False
                break
            self._follow(todo.pop(), todo, seen, outcome, prune)
            if outcome.broken and stop_at_first:
                outcome.exhausted = False
                break
        outcome.states = len(seen)
        return outcome

    def _follow(
        self,
        branch: Branch,
        todo: list[Branch],
        seen: dict[int, list[tuple[int, int]]],
        outcome: Outcome,
        prune: bool,
    ) -> None:
        """Run a branch, then go on with the first choice each time; what else could be chosen is put on `todo`."""
        run = Run(self.world, self.scene, self._faults)
        outcome.schedules += 1
        schedule, preemptions, faults = branch
        last = -1
        try:
            if schedule:
                run.follow(schedule[:-1])
                run.step(schedule[-1])
                last = schedule[-1].actor
            while enabled := run.enabled():
                if prune and not self._is_new(seen, run.digest(), preemptions, faults, last):
                    return
                first, *others = self._choices(run, enabled, last, preemptions, faults)
                for other in others:
                    used = preemptions + (other.actor != last and last in enabled)
                    todo.append(Branch((*run.choices, other), used, faults + (other.fault != 0)))
                run.step(first)
                last = first.actor
            self._ended(run, outcome)
        finally:
            outcome.steps += run.clock.steps
            run.close()

    def _ended(self, run: Run, outcome: Outcome) -> None:
        """Enter the end of a run: one more final state, or a counterexample, which is told by running it again."""
        if run.violation is None:
            outcome.final_states.add(run.digest())
            return
        again = self.replay(tuple(run.choices))
        if again.violation is None:
            raise ModelError(f"{run.violation} was met once, and not again in the very same order")
        outcome.broken.append(Broken(again.violation, again.schedule, again.steps, again.fingerprint))

    def _choices(self, run: Run, enabled: list[int], last: int, preemptions: int, faults: int) -> list[Choice]:
        """Going on first, then the others as far as the bound allows, then each as often as its step may fail.

        The first one never costs a preemption.
        """
        bound = self.bounds.preemptions
        if last in enabled:
            order = [last]
            if bound is None or preemptions < bound:
                order += [actor for actor in enabled if actor != last]
        else:
            order = enabled
        choices = [Choice(actor) for actor in order]
        if faults < self.bounds.faults:
            for actor in order:
                choices += [Choice(actor, at + 1) for at in range(len(run.clock.faults_of(actor)))]
        return choices

    def _is_new(
        self, seen: dict[int, list[tuple[int, int]]], digest: int, preemptions: int, faults: int, last: int
    ) -> bool:
        """Whether the state was never met with as many preemptions and faults left, by the same actor on turn."""
        key = digest if self.bounds.preemptions is None else hash((digest, last))
        met = seen.setdefault(key, [])
        if any(p <= preemptions and f <= faults for p, f in met):
            return False
        met[:] = [(p, f) for p, f in met if not (preemptions <= p and faults <= f)]
        met.append((preemptions, faults))
        return True

    def sample(self, runs: int, seed: int, *, priorities: bool = False) -> Outcome:
        """Random orders: uniform at each step, or by priorities that change at a few random points (PCT)."""
        outcome = Outcome(exhausted=False)
        for number in range(runs):
            self._sample_one(random.Random(f"{seed}/{number}"), outcome, priorities)
            if outcome.broken:
                break
        outcome.states = len(outcome.final_states)
        return outcome

    def _sample_one(self, choose: random.Random, outcome: Outcome, priorities: bool) -> None:
        run = Run(self.world, self.scene, self._faults)
        rank: dict[int, float] = {}
        changes = {choose.randrange(1, 120) for _ in range(3)}
        faults = 0
        outcome.schedules += 1
        try:
            while enabled := run.enabled():
                if priorities:
                    for actor in enabled:
                        rank.setdefault(actor, choose.random())
                    actor = max(enabled, key=rank.__getitem__)
                    if len(run.choices) in changes:
                        rank[actor] = -choose.random()
                else:
                    actor = choose.choice(enabled)
                fault = 0
                if faults < self.bounds.faults and choose.random() < 0.03:
                    options = run.clock.faults_of(actor)
                    if options:
                        fault = choose.randrange(len(options)) + 1
                        faults += 1
                run.step(Choice(actor, fault))
            self._ended(run, outcome)
        finally:
            outcome.steps += run.clock.steps
            run.close()

    def replay(self, schedule: Schedule) -> Replayed:
        """Run exactly that schedule as far as it goes, then go on as it comes, and tell every step."""
        run = Run(self.world, self.scene, self._faults)
        steps: list[Taken] = []
        try:
            left = list(reversed(schedule))
            while enabled := run.enabled():
                if left and left[-1].actor not in enabled:
                    left.clear()
                taken = run.take(left.pop() if left else Choice(enabled[0]))
                steps += [] if taken is None else [taken]
            fingerprint = self.world.fingerprint(steps)
        finally:
            run.close()
        return Replayed(run.violation, tuple(run.choices), tuple(steps), fingerprint)
