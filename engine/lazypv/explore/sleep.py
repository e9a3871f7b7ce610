"""Sleep sets: of two steps that come to the same in either order, one order is followed.

Where a state has several choices each is followed in turn. One that was followed sleeps in what comes behind the next,
until something happens there that it is not independent of: up to then, whatever it leads to was met behind itself. A
state is left out if it was met with no more asleep than now; otherwise what slept then and is awake now is followed
from it. So steps are left out, and no state: each that can be reached is met, unless every way to it leads past one
that breaks something.

That holds because the orders within the bounds stay within them when neighbours change places. With a bound on
preemptions they do not. A bound on failing steps counts the same in every order.

Source: Godefroid, "Partial-Order Methods for the Verification of Concurrent Systems" (1996), chapter 5; Coons,
Musuvathi, McKinley, "Bounded Partial-Order Reduction" (2013).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazypv.clocks.explore import Choice
    from lazypv.explore.footprints import Footprint, Look
    from lazypv.explore.run import Run
    from lazypv.explore.search import Branch, Explorer, Outcome

    Asleep = dict[Choice, Footprint]


class Place:
    """A state on the way of a run, shared by the branches that begin there.

    Attributes
    ----------
    asleep : dict of Choice to Footprint
        What sleeps there: more and more, as one choice after the other is followed.
    look : Look or None
        The state in parts, if somebody has looked already; it is of no use to another process.
    """

    __slots__ = ("asleep", "look")

    def __init__(self, asleep: Asleep, look: Look | None = None) -> None:
        self.asleep = asleep
        self.look = look

    def __reduce__(self) -> tuple[type[Place], tuple[Asleep]]:
        return Place, (self.asleep,)


class SleepSets:
    """Follows branches of one search as :class:`lazypv.explore.search.Explorer` does, and lets choices sleep."""

    def __init__(self, explorer: Explorer, looked_up: int) -> None:
        self._explorer = explorer
        self._looked_up = looked_up
        self._world = explorer.world
        self._seen: dict[int, dict[int, frozenset[Choice]]] = {}

    def follow(self, branch: Branch, todo: list[Branch], outcome: Outcome) -> None:
        """Run a branch, then go on with the first choice that is awake; what else is awake is put on `todo`.

        Actors come in the same order in every state. Where the one on turn came first, as in a search with a bound,
        what sleeps would be woken far more often.
        """
        explorer = self._explorer
        run = explorer.run()
        outcome.schedules += 1
        schedule, _, faults, place = branch
        try:
            here = Place({})
            if schedule:
                run.follow(schedule[:-1])
                here = self._step(run, schedule[-1], place or here)
            while enabled := run.enabled():
                choices = explorer.choices(run, enabled, -1, 0, faults)
                if len(choices) > 1 or len(run.choices) % self._looked_up == 0:
                    awake = self._awake(run, choices, faults, here, outcome)
                else:
                    awake = _but_for(choices, here)
                if not awake:
                    return
                first, *others = awake
                begun = tuple(run.choices)
                todo += [type(branch)((*begun, other), 0, faults + (other.fault != 0), here) for other in others]
                if others or here.asleep:
                    here = self._step(run, first, here)
                else:
                    run.step(first)
                    here = Place({})
                faults += first.fault != 0
            explorer.ended(run, outcome)
        finally:
            outcome.steps += run.clock.steps
            run.close()

    def _awake(self, run: Run, choices: list[Choice], faults: int, here: Place, outcome: Outcome) -> list[Choice]:
        """What is to be followed from a state; nothing that has been followed from it before goes on sleeping.

        A state that was met with fewer faults has seen all that can come of it with more.
        """
        digest, asleep = run.digest(), here.asleep
        met = self._seen.get(digest)
        if met is None:
            met = self._seen[digest] = {}
            outcome.met.add(digest)
        if any(used <= faults and asleep.keys() >= slept for used, slept in met.items()):
            return []
        slept = met.get(faults)
        if slept is None:
            met[faults] = frozenset(asleep)
            return _but_for(choices, here)
        met[faults] = slept & asleep.keys()
        here.asleep = {choice: asleep[choice] for choice in met[faults]}
        return [choice for choice in choices if choice in slept and choice not in asleep]

    def _step(self, run: Run, choice: Choice, at: Place) -> Place:
        """Take a step from a place, where it sleeps from now on; where it leads, with what goes on sleeping there.

        What breaks something never sleeps: nothing was met behind it.
        """
        world, actor = self._world, run.clock.actors[choice.actor]
        step = actor.pending
        assert step is not None
        reads = world.watcher.reads(choice, actor)
        before = at.look = at.look or world.look_closely(run.standing())
        run.step(choice)
        if run.violation is not None:
            return Place({})
        after = world.look_closely(run.standing())
        footprint = world.watcher.footprint(choice.actor, step, reads, before, after)
        behind = {other: of for other, of in at.asleep.items() if footprint.is_independent_of(of)}
        at.asleep[choice] = footprint
        return Place(behind, after)


def _but_for(choices: list[Choice], here: Place) -> list[Choice]:
    return [choice for choice in choices if choice not in here.asleep]
