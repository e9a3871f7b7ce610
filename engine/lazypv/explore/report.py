"""What an exploration has found: figures of each scenario, stories, capsules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lazypv.explore.capsule import Capsule
from lazypv.explore.faults import faults_for
from lazypv.explore.scenarios import SCENARIOS, Scenario, scenario
from lazypv.explore.search import Bounds, Broken, Explorer, Outcome
from lazypv.explore.story import story

if TYPE_CHECKING:
    from lazypv.explore.switches import Switches
    from lazypv.scenario.compare import ProgressReport

SCHEMA = "lazypv.explore/1"


@dataclass(frozen=True)
class Explored:
    """One scenario."""

    name: str
    pages: int
    bounds: Bounds
    outcome: Outcome


@dataclass
class Exploration:
    """All scenarios that were asked for.

    Attributes
    ----------
    counterexamples : list of (scenario, Broken)
    capsules : list of Capsule
        Of the counterexamples, in the same order.
    """

    explored: list[Explored] = field(default_factory=list)
    counterexamples: list[tuple[str, Broken]] = field(default_factory=list)
    capsules: list[Capsule] = field(default_factory=list)

    @classmethod
    def of_replay(cls, capsule: Capsule) -> Exploration:
        """A written counterexample, run again."""
        run = capsule.replay()
        if run.violation is None:
            raise AssertionError("a replay without violation was not refused")
        broken = Broken(run.violation, run.schedule, run.steps, run.fingerprint)
        return cls([], [(capsule.scenario, broken)], [capsule])

    def add(self, of: Scenario, pages: int, bounds: Bounds, switches: Switches, outcome: Outcome) -> None:
        """One more scenario."""
        self.explored.append(Explored(of.name, pages, bounds, outcome))
        for broken in outcome.broken:
            self.counterexamples.append((of.name, broken))
            self.capsules.append(Capsule.of(of.name, pages, switches, broken))

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "scenarios": [
                {
                    "name": each.name,
                    "pages": each.pages,
                    "bounds": each.bounds.preemptions,
                    "faults": each.bounds.faults,
                    "schedules": each.outcome.schedules,
                    "steps": each.outcome.steps,
                    "states": each.outcome.states,
                    "exhausted": each.outcome.exhausted,
                }
                for each in self.explored
            ],
            "schedules": sum(each.outcome.schedules for each in self.explored),
            "states": sum(each.outcome.states for each in self.explored),
            "exhausted": bool(self.explored) and all(each.outcome.exhausted for each in self.explored),
            "violations": [
                {
                    "invariant": broken.violation.number,
                    "scenario": name,
                    "steps": len(broken.steps),
                    "story": story(broken),
                    "capsule": capsule.as_object(),
                }
                for (name, broken), capsule in zip(self.counterexamples, self.capsules, strict=True)
            ],
        }

    def as_text(self) -> str:
        """For people."""
        lines = [
            f"{each.name}, {each.pages} pages: {each.outcome.schedules:,} schedules, {each.outcome.steps:,} steps,"
            f" {each.outcome.states:,} states, {'exhausted' if each.outcome.exhausted else 'not exhausted'}"
            for each in self.explored
        ]
        for name, broken in self.counterexamples:
            lines += ["", f"{name}:", *(f"  {line}" for line in story(broken))]
        if not self.counterexamples:
            lines += ["", "No invariant is violated."]
        return "\n".join(lines)


def explore_all(
    name: str,
    switches: Switches,
    bounds: Bounds,
    *,
    pages: int | None,
    strategy: str,
    runs: int,
    seed: int,
    progress: ProgressReport,
) -> Exploration:
    """Explore one scenario, or all.

    Raises
    ------
    UsageError
        An unknown scenario, preset, patch or defect, or a combination that cannot be.
    """
    chosen = list(SCENARIOS.values()) if name == "all" else [scenario(name)]
    series = switches.series()
    progress.expect(len(chosen))
    found = Exploration()
    for of in chosen:
        progress(of.name)
        size = of.shape.pages if pages is None else max(pages, of.shape.sync_below)
        world = of.build(series, size)
        explorer = Explorer(world, of.scene, bounds, faults_for(world.machine.ultravisor))
        if strategy == "exhaustive":
            outcome = explorer.exhaust()
        else:
            outcome = explorer.sample(runs, seed, priorities=strategy == "pct")
        found.add(of, size, bounds, switches, outcome)
    return found
