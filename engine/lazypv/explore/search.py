"""Orders: which ones there are, which ones were seen, and the shortest one that breaks something.

Every schedule is run from the start of the world, which is put back for it. Exhaustive search goes depth first and
leaves out a state that it has been in before with at least as many preemptions left; without a bound on these it leaves
out steps, too (:mod:`lazypv.explore.sleep`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from lazypv.clocks.explore import Choice, ExploringClock, Faults
from lazypv.errors import ModelError
from lazypv.explore.run import Broken, NewClock, Replayed, Run, Schedule
from lazypv.explore.sleep import Place, SleepSets
from lazypv.explore.world import Scene, World

LOOKED_UP = 6
"""Where missing a state costs few runs, states are looked up only behind a multiple of so many steps.

A digest costs as much as ten steps. Orders of the same steps meet behind the same number of them, so that all runs look
where others have looked.
"""


@dataclass(frozen=True)
class Bounds:
    """How far a search goes.

    Attributes
    ----------
    preemptions : int or None
        How often an actor that could go on is left for another; None for no bound.
    faults : int
        How many steps may fail in one run.
    finer : bool
        A call on a page is two steps, its claim and its finish, with others in between that meet it busy.
    """

    preemptions: int | None = 2
    faults: int = 0
    finer: bool = False


class Branch(NamedTuple):
    """A schedule still to be followed, and what it has used up of the bounds.

    Attributes
    ----------
    place : Place or None
        With sleep sets, where its last choice is taken.
    """

    schedule: Schedule = ()
    preemptions: int = 0
    faults: int = 0
    place: Place | None = None


@dataclass
class Outcome:
    """What a search has seen.

    Attributes
    ----------
    final_states : set of int
        Digests of the states in which runs ended well.
    met : set of int
        What tells states apart that were met here for the first time.
    left : list of Branch
        What was not followed because somebody stopped the search.
    """

    schedules: int = 0
    steps: int = 0
    exhausted: bool = True
    met: set[int] = field(default_factory=set)
    broken: list[Broken] = field(default_factory=list)
    final_states: set[int] = field(default_factory=set)
    left: list[Branch] = field(default_factory=list)

    @property
    def states(self) -> int:
        """How many states were met."""
        return len(self.met)

    def add(self, more: Outcome) -> None:
        """What another piece of the same search has seen. Whether all is done, only who shared it out can say."""
        self.schedules += more.schedules
        self.steps += more.steps
        self.met |= more.met
        self.broken += more.broken
        self.final_states |= more.final_states


def _never() -> bool:
    return False


class Explorer:
    """Searches the orders of one scene in one world.

    What it has seen it remembers from one call of :meth:`exhaust` to the next.

    Parameters
    ----------
    faults : callable
        What may go wrong with a step; asked only if the bounds allow a fault.
    throughout : bool
        Look at every invariant after every step, not only at those whose inputs have changed.
    """

    def __init__(
        self,
        world: World,
        scene: Scene,
        bounds: Bounds = Bounds(),
        faults: Faults | None = None,
        *,
        throughout: bool = False,
        new_clock: NewClock = ExploringClock,
    ) -> None:
        self.world = world
        self.scene = scene
        self.bounds = bounds
        self._faults = faults if bounds.faults else None
        self._throughout = throughout
        self._new_clock = new_clock
        self._seen: dict[int, list[tuple[int, int]]] = {}
        self._met: set[int] = set()
        self._sleep: SleepSets | None = None

    def run(self, *, tell: bool = False) -> Run:
        """A run from the start."""
        world = self.world
        run = Run(world, self.scene, self._faults, tell=tell or self._throughout, new_clock=self._new_clock)
        if self.bounds.finer:
            run.clock.claims = world.claim
        return run

    def exhaust(
        self,
        todo: list[Branch] | None = None,
        *,
        prune: bool = True,
        reduce: bool = True,
        most_schedules: int | None = None,
        stop_at_first: bool = True,
        stop: Callable[[], bool] = _never,
    ) -> Outcome:
        """Every order within the bounds; with `prune`, each state only once.

        Parameters
        ----------
        todo : list of Branch or None
            What to follow, last first; None for everything from the start.
        reduce : bool
            Without a bound on preemptions, follow one order of two steps that come to the same in either
            (:mod:`lazypv.explore.sleep`). The scene's texts keep to the rules of texts.
        stop : callable
            Asked before each schedule; what is left then is in the outcome.
        """
        outcome = Outcome()
        if todo is None:
            self._seen.clear()
        self._met = outcome.met
        follow: Callable[[Branch, list[Branch], Outcome], None] = partial(self._follow, prune=prune)
        if prune and reduce and self._may_sleep():
            if self._sleep is None or todo is None:
                self._sleep = SleepSets(self, LOOKED_UP)
            follow = self._sleep.follow
        todo = [Branch()] if todo is None else list(todo)
        while todo:
            if (most_schedules is not None and outcome.schedules >= most_schedules) or stop():
                outcome.exhausted = False
                outcome.left = todo
                break
            follow(todo.pop(), todo, outcome)
            if outcome.broken and stop_at_first:
                outcome.exhausted = False
                break
        return outcome

    def _may_sleep(self) -> bool:
        """Whether sleep sets leave out no state: not with a bound on preemptions.

        What a text may look at was read from ours, and from steps that are not cut in two.
        """
        return self.bounds.preemptions is None and not self.bounds.finer and self.world.policy is None

    def _follow(self, branch: Branch, todo: list[Branch], outcome: Outcome, prune: bool) -> None:
        """Run a branch, then go on with the first choice each time; what else could be chosen is put on `todo`."""
        run = self.run()
        outcome.schedules += 1
        schedule, preemptions, faults, _ = branch
        last = -1
        try:
            if schedule:
                run.follow(schedule[:-1])
                run.step(schedule[-1])
                last = schedule[-1].actor
            while enabled := run.enabled():
                first, *others = self.choices(run, enabled, last, preemptions, faults)
                rarely = not others or self._is_the_last(enabled, last, preemptions, faults)
                looked_up = not rarely or len(run.choices) % LOOKED_UP == 0
                if prune and looked_up and not self._is_new(run.digest(), preemptions, faults, last):
                    return
                for other in others:
                    used = preemptions + (other.actor != last and last in enabled)
                    todo.append(Branch((*run.choices, other), used, faults + (other.fault != 0)))
                run.step(first)
                last = first.actor
            self.ended(run, outcome)
        finally:
            outcome.steps += run.clock.steps
            run.close()

    def ended(self, run: Run, outcome: Outcome) -> None:
        """Enter the end of a run: one more final state, wound up, or a counterexample.

        A counterexample is told by running it again, which is also the check that nothing but its choices decides.
        """
        if run.violation is None:
            state = run.digest()
            if state in outcome.final_states:
                return
            run.wind_up()
            if run.violation is None:
                outcome.final_states.add(state)
                return
        again = self.replay(tuple(run.choices))
        if again.violation is None:
            raise ModelError(f"{run.violation} was met once, and not again in the very same order")
        outcome.broken.append(Broken(again.violation, again.schedule, again.steps, again.fingerprint))

    def choices(self, run: Run, enabled: list[int], last: int, preemptions: int, faults: int) -> list[Choice]:
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

    def _is_the_last(self, enabled: list[int], last: int, preemptions: int, faults: int) -> bool:
        """Whether any other choice than going on uses up all that is left of the bounds."""
        bounds = self.bounds
        return bounds.preemptions == preemptions + 1 and faults == bounds.faults and last in enabled

    def _is_new(self, digest: int, preemptions: int, faults: int, last: int) -> bool:
        """Whether the state was never met with as many preemptions and faults left, by the same actor on turn."""
        if self.bounds.preemptions is None:
            key, preemptions = digest, 0
        else:
            key = hash((digest, last))
        met = self._seen.get(key)
        if met is None:
            self._seen[key] = [(preemptions, faults)]
            self._met.add(key)
            return True
        if any(p <= preemptions and f <= faults for p, f in met):
            return False
        met[:] = [(p, f) for p, f in met if not (preemptions <= p and faults <= f)]
        met.append((preemptions, faults))
        return True

    def replay(self, schedule: Schedule) -> Replayed:
        """Run exactly that schedule as far as it goes, then go on as it comes, and tell every step.

        All invariants are looked at after each step, and if there is nothing wrong at the end, everybody leaves.
        """
        run = self.run(tell=True)
        try:
            left, strayed = list(reversed(schedule)), False
            while enabled := run.enabled():
                if left and not _is_possible(run, enabled, left[-1]):
                    left.clear()
                    strayed = True
                run.step(left.pop() if left else Choice(enabled[0]))
            if run.violation is None:
                run.wind_up()
            fingerprint = self.world.fingerprint(run.steps)
        finally:
            run.close()
        return Replayed(run.violation, tuple(run.choices), tuple(run.steps), fingerprint, strayed)


def _is_possible(run: Run, enabled: list[int], choice: Choice) -> bool:
    """A schedule that somebody wrote, or of another version, may say what cannot be."""
    return choice.actor in enabled and 0 <= choice.fault <= len(run.clock.faults_of(choice.actor))
