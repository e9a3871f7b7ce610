"""Random orders: uniform, by priorities that change at a few points, or each run in a manner of its own.

A run is drawn from the seed, its scenario's name and its number, so that it does not matter who draws it.

Sources: priorities, Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010;
swarms, Groce et al., "Swarm Testing", 2012.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from lazypv.clocks.explore import Choice
from lazypv.explore.search import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lazypv.explore.run import Run
    from lazypv.explore.search import Explorer


class Manner(StrEnum):
    """How random orders are drawn."""

    RANDOM = "random"
    PCT = "pct"
    SWARM = "swarm"


_CHANGES = 3
_CHANGES_WITHIN = 120
"""Points at which priorities change, and among how many first steps they are drawn: runs have 60 to 200 steps."""
_LONGEST_ALONE = 100
"""Steps after which an actor is left for another that could go on."""
_FAULT_RATE = 0.03
_RATES = (0.01, 0.05, 0.2)
_STAYS = (0.0, 0.5, 0.9)


@dataclass
class Habits:
    """What one run leans towards.

    Attributes
    ----------
    by_priority : bool
        The actor with the highest priority goes on; else any.
    stays : float
        How likely the actor that is on turn goes on without a draw.
    fault_rate : float
        How likely a step fails that may.
    spared : float
        The share of the kinds of faults that never happen in this run.
    """

    by_priority: bool = False
    stays: float = 0.0
    fault_rate: float = _FAULT_RATE
    spared: float = 0.0
    rank: dict[int, float] = field(default_factory=dict)
    changes: frozenset[int] = frozenset()
    kinds: dict[str, bool] = field(default_factory=dict)
    last: int = -1
    alone: int = 0

    @classmethod
    def drawn(cls, manner: Manner, draw: random.Random) -> Habits:
        """Those of one run."""
        changes = frozenset(draw.randrange(1, _CHANGES_WITHIN) for _ in range(_CHANGES))
        if manner is not Manner.SWARM:
            return cls(by_priority=manner is Manner.PCT, changes=changes)
        return cls(draw.random() < 0.5, draw.choice(_STAYS), draw.choice(_RATES), draw.random(), changes=changes)

    def actor(self, run: Run, enabled: list[int], draw: random.Random) -> int:
        """Who goes on."""
        last = run.choices[-1].actor if run.choices else -1
        self.alone = self.alone + 1 if last == self.last else 0
        self.last = last
        if self.alone > _LONGEST_ALONE and len(enabled) > 1:
            # Whoever asks again and again for what another has would never let that one give it up.
            self.rank[last] = -draw.random()
            return draw.choice([actor for actor in enabled if actor != last])
        if last in enabled and self.stays and draw.random() < self.stays:
            return last
        if not self.by_priority:
            return draw.choice(enabled)
        for actor in enabled:
            self.rank.setdefault(actor, draw.random())
        actor = max(enabled, key=self.rank.__getitem__)
        if len(run.choices) in self.changes:
            self.rank[actor] = -draw.random()
        return actor

    def fault(self, run: Run, actor: int, draw: random.Random) -> int:
        """Which fault its step meets; 0 for none."""
        if draw.random() >= self.fault_rate:
            return 0
        allowed = [
            number
            for number, (name, _) in enumerate(run.clock.faults_of(actor), 1)
            if self.kinds.setdefault(name, draw.random() >= self.spared)
        ]
        return draw.choice(allowed) if allowed else 0


def sample(
    explorer: Explorer, numbers: Iterable[int], seed: str, manner: Manner, stop: Callable[[], bool] | None = None
) -> Outcome:
    """Run as many random orders as there are `numbers`; the first that breaks something ends it."""
    outcome = Outcome(exhausted=False)
    for number in numbers:
        if stop is not None and stop():
            break
        draw = random.Random(f"{seed}/{number}")
        _sample_one(explorer, outcome, draw, Habits.drawn(manner, draw))
        if outcome.broken:
            break
    outcome.met = outcome.final_states
    return outcome


def _sample_one(explorer: Explorer, outcome: Outcome, draw: random.Random, habits: Habits) -> None:
    run = explorer.run()
    faults = 0
    outcome.schedules += 1
    try:
        while enabled := run.enabled():
            actor = habits.actor(run, enabled, draw)
            fault = habits.fault(run, actor, draw) if faults < explorer.bounds.faults else 0
            faults += fault != 0
            run.step(Choice(actor, fault))
        explorer.ended(run, outcome)
    finally:
        outcome.steps += run.clock.steps
        run.close()
