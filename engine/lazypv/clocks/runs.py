"""Batches that the live clock does as one, and what makes such a run end behind the batch in hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.clocks.actors import Actor
    from lazypv.steps import Several, Touch


@dataclass(eq=False)
class Run:
    """One run.

    Attributes
    ----------
    stop : uint8[1]
        Not 0: the batch in hand is the last.
    """

    step: Several[Any]
    stop: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(1, np.uint8))


class Runs:
    """All runs of a clock; used under its mutex."""

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def begin(self, step: Several[Any]) -> Run:
        """One begins."""
        run = Run(step)
        self._runs.append(run)
        return run

    def over(self, run: Run) -> None:
        """It has ended."""
        self._runs.remove(run)

    def end_all(self) -> None:
        """The clock ends."""
        for run in self._runs:
            run.stop[0] = 1

    def end_for_writer(self, step: Touch) -> None:
        """Somebody is about to write what a text looks at before each batch."""
        for run in self._runs:
            if run.step.watched[0] is step.what and run.step.watched[1] == step.name:
                run.stop[0] = 1

    def end_for_sleeper(self, actor: Actor) -> None:
        """Somebody goes to sleep, for a lock or for what a batch may bring about."""
        for run in self._runs:
            if actor.queued is run.step.lock or waits_for_batches(actor):
                run.stop[0] = 1


def may_begin(step: Several[Any], actor: Actor, parked: list[Actor]) -> bool:
    """Whether nobody sleeps who has to be looked at after each batch, and the next batch would be done at all."""
    return not actor.holds and not any(waits_for_batches(sleeper) for sleeper in parked) and step.may_begin()


def waits_for_batches(actor: Actor) -> bool:
    """Whether what a sleeper waits for may be brought about by a batch, so that it has to be looked at after each."""
    return actor.waiting is not None and not actor.waiting.outside and not actor.waiting.patient
