"""What an exploration has found: figures of each scenario, stories, capsules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lazypv.explore.capsule import Capsule
from lazypv.explore.jobs import Job, in_pieces, share_out, work_here
from lazypv.explore.run import Broken
from lazypv.explore.sampling import Manner
from lazypv.explore.scenarios import SCENARIOS, Scenario, scenario
from lazypv.explore.search import Bounds, Outcome
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

    def add(self, job: Job, outcome: Outcome) -> None:
        """One more scenario."""
        self.explored.append(Explored(job.name, job.pages, job.bounds, outcome))
        for broken in outcome.broken:
            self.counterexamples.append((job.name, broken))
            self.capsules.append(
                Capsule.of(
                    job.name,
                    job.pages,
                    job.switches,
                    broken,
                    finer=job.bounds.finer,
                    seed=job.seed if job.manner else "",
                )
            )

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
    jobs: int = 1,
) -> Exploration:
    """Explore one scenario, or all.

    Parameters
    ----------
    strategy : str
        ``"exhaustive"``, or a :class:`Manner` in which `runs` orders are drawn, shared among the scenarios; a swarm
        draws the size of the guests too.
    jobs : int
        Processes that share the work.

    Raises
    ------
    UsageError
        An unknown scenario, preset, patch or defect, or a combination that cannot be.
    """
    chosen = list(SCENARIOS.values()) if name == "all" else [scenario(name)]
    switches.series()
    manner = None if strategy == "exhaustive" else Manner(strategy)
    searches = [
        Job(of.name, size, bounds, switches, manner)
        for of in chosen
        for size in _sizes(of, pages, every=manner is Manner.SWARM)
    ]
    share = -(-runs // len(searches))
    searches = [replace(job, numbers=range(share), seed=f"{seed}/{job.name}/{job.pages}") for job in searches]
    outcomes = {job.search: Outcome() for job in searches}
    unfinished = {job.search: len(in_pieces(job)) for job in searches}
    progress.expect(sum(unfinished.values()))
    for job, outcome in work_here(searches) if jobs == 1 else share_out(searches, jobs):
        outcomes[job.search].add(outcome)
        if not outcome.left:
            unfinished[job.search] -= 1
            progress(job.name)
    found = Exploration()
    for job in searches:
        outcome = outcomes[job.search]
        outcome.exhausted = manner is None and not outcome.broken
        found.add(job, outcome)
    return found


def _sizes(of: Scenario, pages: int | None, *, every: bool) -> range:
    """Pages of a guest: as many as asked for, but no fewer than lie below the limit; or `every` number up to that."""
    most = of.shape.pages if pages is None else max(pages, of.shape.sync_below)
    return range(max(2, of.shape.sync_below) if every else most, most + 1)
