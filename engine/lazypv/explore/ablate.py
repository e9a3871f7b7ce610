"""What each patch is for: the series without it, explored until something breaks; or counted, where it only costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lazypv.errors import ViolationError
from lazypv.explore.costs import Cost, measure_costs
from lazypv.explore.hunt import LADDER, Case, Rung, search_all
from lazypv.explore.shrink import Size, shrink, size_of
from lazypv.explore.story import story
from lazypv.explore.switches import Switches
from lazypv.series import PATCHES

if TYPE_CHECKING:
    from lazypv.explore.run import Broken
    from lazypv.scenario.compare import ProgressReport

SCHEMA: Final = "lazypv.ablate/1"

USED_WRONGLY: Final = "11"
"""The patch that is there to save a call where that is safe: nothing breaks without it, but by using it elsewhere."""
ONLY_COSTS: Final = frozenset({"02", "05", "09"})
"""Patches without which everything goes on, at a price."""
STORY: Final = {
    "01": (35, "DESTROY_SEC_CONF refused"),
    "03": (35, "0x003f"),
    "04": (35, "0x003d"),
    "06": (10, "DESTROY_SEC_CONF"),
    "07": (35, "make secure"),
    "08": (40, "destroy pages"),
    "10": (38, "create thread"),
    "11": (35, "make secure"),
}
"""What the story of semantics 4 ends with: a guest that is killed or cannot start (35), hooks that are off while
pages are owned (10), a reboot that takes the longer the more memory there is (40), a parameter that is not heard (38).
With it a step, its fault or its answer that the story names. What is told so comes first.
"""


@dataclass(frozen=True)
class Break:
    """One thing that goes wrong without a patch: an invariant, with the search that shows it; or a cost."""

    patch: str
    case: Case | None = None
    broken: Broken | None = None
    cost: Cost | None = None

    @property
    def story(self) -> list[str]:
        """Numbered lines; none for a cost."""
        return story(self.broken) if self.broken else []

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        if self.cost is not None:
            cost = {"name": self.cost.name, "with": self.cost.with_it, "without": self.cost.without_it}
            return {"invariant": None, "cost": cost, "scenario": self.cost.scenario, "steps": self.cost.steps}
        if self.case is None or self.broken is None:
            raise AssertionError("a break is a counterexample or a cost")
        return {
            "invariant": self.broken.violation.number,
            "cost": None,
            "scenario": self.case.scenario.name,
            "steps": len(self.story),
            "story": self.story,
        }


@dataclass
class Ablation:
    """Patches, and what breaks without each."""

    breaks: dict[str, list[Break]] = field(default_factory=dict)

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "patches": [
                {"patch": patch, "breaks": [each.as_object() for each in breaks]}
                for patch, breaks in self.breaks.items()
            ],
        }

    def as_text(self) -> str:
        """For people."""
        lines = []
        for patch in PATCHES:
            lines += ["", f"{patch.number} {patch.title}"]
            for each in self.breaks.get(patch.number, []):
                lines += [f"  {line}" for line in _told(each)]
        return "\n".join(lines[1:])


def _told(each: Break) -> list[str]:
    if each.cost is not None:
        return [f"{each.cost.scenario}: {each.cost.name}: {each.cost.with_it} with it, {each.cost.without_it} without"]
    scenario = each.case.scenario.name if each.case else ""
    return [f"{scenario}:", *(f"  {line}" for line in each.story)]


def ablate(progress: ProgressReport) -> Ablation:
    """Take each patch away in turn.

    Raises
    ------
    ViolationError
        The series with all patches breaks an invariant in the same searches.
    """
    progress.expect(len(PATCHES) + 1)
    found: dict[str, list[Break]] = {}
    highest = 0
    for patch in PATCHES:
        progress(f"without {patch.number}")
        found[patch.number] = []
        if patch.number not in ONLY_COSTS:
            found[patch.number], rung = broken_without(patch.number)
            highest = max(highest, LADDER.index(rung))
    progress("repaired")
    require_whole(LADDER[: highest + 1])
    for cost in measure_costs():
        found[cost.patch].append(Break(cost.patch, cost=cost))
    return Ablation(found)


def broken_without(patch: str) -> tuple[list[Break], Rung]:
    """Each invariant that breaks in the smallest searches that break any, and how large those are."""
    switches = Switches(misread=True) if patch == USED_WRONGLY else Switches(without=(patch,))
    for rung in LADDER:
        by_number: dict[int, tuple[Case, Broken]] = {}
        for case, outcome in search_all(rung, switches):
            for broken in outcome.broken:
                number = broken.violation.number
                if number not in by_number or _rank(patch, broken) < _rank(patch, by_number[number][1]):
                    by_number[number] = (case, broken)
        if by_number:
            shrunk = [Break(patch, case, shrink(case.explorer(), broken)) for case, broken in by_number.values()]
            return sorted(shrunk, key=_by_story), rung
    return [], LADDER[-1]


def _rank(patch: str, broken: Broken) -> tuple[bool, Size]:
    """Those first that go as the story of semantics 4 does, then the small ones."""
    number, words = STORY[patch]
    told = any(words in f"{taken.step} {taken.fault} {taken.answer}" for taken in broken.steps)
    return not (told and broken.violation.number == number), size_of(broken)


def _by_story(each: Break) -> tuple[bool, int]:
    if each.broken is None:
        return True, 0
    return _rank(each.patch, each.broken)[0], each.broken.violation.number


def require_whole(rungs: tuple[Rung, ...], without: tuple[str, ...] = ()) -> None:
    """Search the repaired series, less some patches that only cost, in every scenario.

    Raises
    ------
    ViolationError
        It breaks an invariant.
    """
    for rung in rungs:
        for case, outcome in search_all(rung, Switches(without=without)):
            if outcome.broken:
                first = outcome.broken[0].violation
                raise ViolationError(
                    f"the repaired series breaks invariant {first.number} in {case.scenario.name}, {rung}: {first.text}"
                )
