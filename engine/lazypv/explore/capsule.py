"""A counterexample in a file: small, and replayed bit for bit or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lazypv._version import __version__
from lazypv.clocks.explore import MOST_STEPS, Choice
from lazypv.errors import UsageError
from lazypv.explore.faults import faults_for
from lazypv.explore.run import Broken, Replayed
from lazypv.explore.scenarios import scenario
from lazypv.explore.search import Bounds, Explorer
from lazypv.explore.switches import Switches
from lazypv.files import replaced_atomically

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = "lazypv.capsule/1"


@dataclass(frozen=True)
class Capsule:
    """Everything that one run was: scenario, size, switches, schedule, and what it left.

    Attributes
    ----------
    finer : bool
        Calls were two steps.
    seed : str
        What the order was drawn from; empty where all orders were searched.
    """

    scenario: str
    pages: int
    switches: Switches
    schedule: tuple[Choice, ...]
    fingerprint: str
    invariant: int
    finer: bool = False
    seed: str = ""

    @classmethod
    def of(
        cls, name: str, pages: int, switches: Switches, broken: Broken, *, finer: bool = False, seed: str = ""
    ) -> Capsule:
        """The capsule of a counterexample."""
        number = broken.violation.number
        return cls(name, pages, switches, broken.schedule, broken.fingerprint, number, finer, seed)

    def as_object(self) -> dict[str, Any]:
        """For JSON; the schedule is run-length coded as [actor, fault, how often]."""
        return {
            "schema": SCHEMA,
            "version": __version__,
            "scenario": self.scenario,
            "pages": self.pages,
            "switches": self.switches.as_object(),
            "finer": self.finer,
            "seed": self.seed,
            "invariant": self.invariant,
            "schedule": [[c.actor, c.fault, len(list(same))] for c, same in groupby(self.schedule)],
            "fingerprint": self.fingerprint,
        }

    def save(self, path: Path) -> None:
        """Write it."""
        with replaced_atomically(path) as file:
            file.write(json.dumps(self.as_object(), indent=1).encode())

    @classmethod
    def load(cls, path: Path, policy: str | None = None) -> Capsule:
        """Read one; `policy` says where the policy is that it was made with, if not where it was then.

        Raises
        ------
        UsageError
            No capsule, or one of another version, or of a policy that is not there any more or has changed.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["schema"] != SCHEMA:
                raise UsageError(f"{path}: schema {found['schema']!r} is not {SCHEMA!r}")
            if found["version"] != __version__:
                raise UsageError(f"{path}: was written by version {found['version']}, this is {__version__}")
            return cls(
                scenario=scenario(str(found["scenario"])).name,
                pages=int(found["pages"]),
                switches=Switches.from_object(found["switches"], policy),
                schedule=_schedule([(int(a), int(f), int(n)) for a, f, n in found["schedule"]]),
                fingerprint=str(found["fingerprint"]),
                invariant=int(found["invariant"]),
                finer=bool(found["finer"]),
                seed=str(found["seed"]),
            )
        except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: is not a capsule ({error!r})") from error

    def replay(self) -> Replayed:
        """Run it again.

        Raises
        ------
        UsageError
            The world of today does not come to the same end.
        """
        of = scenario(self.scenario)
        with self.switches.blamed():
            world = self.switches.build(of, self.pages)
            faults = faults_for(world.machine.ultravisor)
            bounds = Bounds(None, len(self.schedule), self.finer)
            run = Explorer(world, of.scene, bounds, faults).replay(self.schedule)
        if run.strayed:
            raise UsageError("the capsule's schedule cannot be followed here: it ends differently after some steps")
        if run.violation is None or run.violation.number != self.invariant or run.fingerprint != self.fingerprint:
            what = "no violation" if run.violation is None else f"invariant {run.violation.number}"
            raise UsageError(f"the capsule's schedule ends differently here: {what}, not invariant {self.invariant}")
        return run


def _schedule(stretches: list[tuple[int, int, int]]) -> tuple[Choice, ...]:
    if sum(times for _, _, times in stretches) > MOST_STEPS + 1:
        raise ValueError(f"a run has at most {MOST_STEPS} steps")
    return tuple(Choice(actor, fault) for actor, fault, times in stretches for _ in range(times))
