"""Orders: which ones there are, which ones were seen, and the shortest one that breaks something.

Every schedule is run from the start of the world, which is put back for it. Exhaustive search goes depth first and
leaves out a state that it has been in before with at least as many preemptions left.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lazypv.clocks.explore import MOST_STEPS, Choice, ExploringClock, Faults, Taken
from lazypv.errors import EXIT_VIOLATION, LazyPVError
from lazypv.explore.world import Scene, World
from lazypv.invariants import Violation
from lazypv.scenario.boot import GuestStartError

Schedule = tuple[Choice, ...]


@dataclass(frozen=True)
class Broken:
    """A schedule that breaks an invariant."""

    violation: Violation
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

    def ended(self, run: Run) -> None:
        """Enter the end of a run: a counterexample, or one more final state."""
        if run.violation is not None:
            self.broken.append(Broken(run.violation, tuple(run.choices), tuple(run.taken), run.fingerprint()))
        else:
            self.final_states.add(run.digest())


class Run:
    """One run of a scene in a world that was put back to its start."""

    def __init__(self, world: World, scene: Scene, faults: Faults | None) -> None:
        self.world = world
        world.restore()
        self.clock = ExploringClock(faults)
        self.taken: list[Taken] = []
        self.choices: list[Choice] = []
        self.violation: Violation | None = None
        for name, text in scene(world):
            self.clock.start(text, name)
        self.violation = self._look()

    def take(self, choice: Choice) -> None:
        """One step, and a look at what it left behind."""
        self.choices.append(choice)
        self.world.faulted |= choice.fault != 0
        try:
            self.taken.append(self.clock.take(choice))
        except LazyPVError as error:
            self.violation = Violation(_number_of(error), str(error))
            return
        self.violation = self._look()

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
        return self.world.digest(self._texts())

    def fingerprint(self) -> str:
        """The same for other processes."""
        return self.world.fingerprint(self._texts())

    def _texts(self) -> list[Any]:
        texts = [(actor.text, actor.page, [_rc(answer) for answer in actor.answers]) for actor in self.clock.actors]
        return [text for each in texts for text in each]

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


def _rc(answer: Any) -> tuple[int, ...]:
    return tuple(int(code) for code in answer.rc)


_BY_WORDS = ((24, "last reference"), (26, "list"), (25, "dropped"), (25, "reference"))


def _number_of(error: LazyPVError) -> int:
    """The invariant behind what a text broke down with: a process that was killed made no progress (35)."""
    if error.exit_status == EXIT_VIOLATION:
        return 35
    return next((number for number, words in _BY_WORDS if words in str(error)), 25)


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
        todo: list[Schedule] = [()]
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
        prefix: Schedule,
        todo: list[Schedule],
        seen: dict[int, list[tuple[int, int]]],
        outcome: Outcome,
        prune: bool,
    ) -> None:
        """Run `prefix`, then go on with the first choice each time; what else could be chosen is put on `todo`."""
        run = Run(self.world, self.scene, self._faults)
        outcome.schedules += 1
        preemptions, faults, last = 0, 0, -1
        try:
            for choice in prefix:
                preemptions += self._preempts(run, last, choice)
                faults += choice.fault != 0
                run.take(choice)
                last = choice.actor
            while enabled := run.enabled():
                if prune and not self._is_new(seen, run.digest(), preemptions, faults, last):
                    return
                choices = [*self._choices(run, enabled, last, preemptions, faults)]
                todo += [(*run.choices, other) for other in choices[1:]]
                preemptions += self._preempts(run, last, choices[0])
                run.take(choices[0])
                last = choices[0].actor
            outcome.ended(run)
        finally:
            outcome.steps += run.clock.steps
            run.close()

    def _choices(self, run: Run, enabled: list[int], last: int, preemptions: int, faults: int) -> Iterator[Choice]:
        """Going on first, then the others as far as the bound allows, then each as often as its step may fail."""
        bound = self.bounds.preemptions
        if last in enabled:
            order = [last]
            if bound is None or preemptions < bound:
                order += [actor for actor in enabled if actor != last]
        else:
            order = enabled
        yield from (Choice(actor) for actor in order)
        if faults < self.bounds.faults:
            for actor in order:
                yield from (Choice(actor, at + 1) for at in range(len(run.clock.faults_of(actor))))

    @staticmethod
    def _preempts(run: Run, last: int, choice: Choice) -> int:
        return int(last != -1 and choice.actor != last and last in run.clock.enabled())

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
                options = run.clock.faults_of(actor)
                fault = 0
                if options and faults < self.bounds.faults and choose.random() < 0.03:
                    fault = choose.randrange(len(options)) + 1
                    faults += 1
                run.take(Choice(actor, fault))
            outcome.ended(run)
        finally:
            outcome.steps += run.clock.steps
            run.close()

    def replay(self, schedule: Schedule) -> Run:
        """Run exactly that schedule, then go on as it comes; the run, over and still open."""
        run = Run(self.world, self.scene, self._faults)
        for choice in schedule:
            if choice.actor not in run.enabled():
                break
            run.take(choice)
        while enabled := run.enabled():
            run.take(Choice(enabled[0]))
        return run
