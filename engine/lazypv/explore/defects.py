"""Which known defects of the series exploring finds: from the series as posted, one after the other.

The series as posted is searched from small to large. What breaks is laid to one of its defects: the one that breaks
the same thing when it is there alone, and without which the search does not see it. That one is repaired, and the
search goes on, until nothing breaks any more or the ladder ends. Each find is then shown with only that defect, as
small as can be; that it is gone without it is what the repaired series shows in the same searches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lazypv.explore.ablate import require_whole
from lazypv.explore.hunt import LADDER, Case, Kind, Rung, smallest
from lazypv.explore.scenarios import SCENARIOS
from lazypv.explore.shrink import shrink, size_of
from lazypv.explore.story import story
from lazypv.explore.switches import Switches
from lazypv.series import DEFECTS, NOT_SWITCHED

if TYPE_CHECKING:
    from lazypv.explore.run import Broken
    from lazypv.scenario.compare import ProgressReport

SCHEMA: Final = "lazypv.defects/1"
LAST_OF_THE_SERIES: Final = 27
"""D28 and later belong to later versions of the series."""
TWO_RUNS: Final[tuple[tuple[str, ...], ...]] = ((), ("09",))
"""The series as posted, whole; and less patch 09, which brought the reference that one of its defects lacks (D2)."""
NOT_FOUND: Final = "not found in any search of the ladder"


@dataclass(frozen=True)
class Find:
    """A defect that was found.

    Attributes
    ----------
    case, broken : Case, Broken
        The search of the series with this defect alone, and the smallest counterexample of it.
    posted : Switches
        The series in which it was met first: as posted, less the defects that had been found before.
    """

    defect: str
    case: Case
    broken: Broken
    posted: Switches

    @property
    def story(self) -> list[str]:
        """Numbered lines."""
        return story(self.broken)


@dataclass
class Findings:
    """All known defects: found, or why not."""

    finds: dict[str, Find] = field(default_factory=dict)

    def reason(self, number: str) -> str | None:
        """Why a defect was not found; None if it was."""
        return None if number in self.finds else NOT_SWITCHED.get(number, NOT_FOUND)

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": SCHEMA, "defects": [self._row(number) for number in known()]}

    def _row(self, number: str) -> dict[str, Any]:
        find = self.finds.get(number)
        if find is None:
            return {
                "defect": number,
                "found": False,
                "scenario": None,
                "steps": None,
                "reason": self.reason(number),
            }
        return {
            "defect": number,
            "found": True,
            "scenario": find.case.scenario.name,
            "steps": len(find.story),
            "reason": None,
            "invariant": find.broken.violation.number,
            "without": list(find.case.switches.without),
            "story": find.story,
        }

    def as_text(self) -> str:
        """For people."""
        lines = []
        for number in known():
            find = self.finds.get(number)
            if find is None:
                lines += ["", f"{number}: {self.reason(number)}"]
                continue
            less = f", without patch {', '.join(find.case.switches.without)}" if find.case.switches.without else ""
            lines += ["", f"{number} {title_of(number)}", f"  {find.case.scenario.name}{less}:"]
            lines += [f"    {line}" for line in find.story]
        return "\n".join(lines[1:])


def known() -> list[str]:
    """Numbers of the defects of version 1, in order."""
    numbers = [*(each.number for each in DEFECTS), *NOT_SWITCHED]
    return sorted((number for number in numbers if _order(number)[0] <= LAST_OF_THE_SERIES), key=_order)


def title_of(number: str) -> str:
    """What a defect that has a switch is called."""
    return next(each.title for each in DEFECTS if each.number == number)


def _order(number: str) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, number))
    return int(digits), number


def find_defects(progress: ProgressReport) -> Findings:
    """Find them.

    Raises
    ------
    ViolationError
        The repaired series breaks an invariant in the same searches.
    """
    progress.expect(len(TWO_RUNS) * len(LADDER) + 1)
    findings = Findings()
    highest = dict.fromkeys(TWO_RUNS, 0)
    for without in TWO_RUNS:
        left = tuple(each.number for each in DEFECTS if not set(without) & set(each.needs))
        hunt = Hunt(without, tuple(number for number in left if number not in findings.finds))
        for rung in LADDER:
            progress(f"posted{' without ' if without else ''}{', '.join(without)}: {rung}")
            if set(hunt.left) - beyond_reach(without):
                hunt.climb(rung)
                highest[without] = LADDER.index(rung)
        findings.finds |= {find.defect: find for find in hunt.finds}
    progress("repaired")
    for without in TWO_RUNS:
        require_whole(LADDER[: highest[without] + 1], without)
    return findings


def beyond_reach(without: tuple[str, ...]) -> set[str]:
    """Defects that do nothing in a series: D2 while patch 09 brings the reference that it lacks."""
    return set() if "09" in without else {"D2"}


class Hunt:
    """One series as posted, and what is left of its defects.

    Attributes
    ----------
    left : tuple of str
        Defects that were not found yet, in force all of them.
    """

    def __init__(self, without: tuple[str, ...], left: tuple[str, ...]) -> None:
        self.without = without
        self.left = left
        self.finds: list[Find] = []

    def climb(self, rung: Rung) -> None:
        """Search every scenario on one rung."""
        for scenario in SCENARIOS.values():
            self.search(Case(scenario, rung, Switches()))

    def search(self, case: Case) -> None:
        """Search again and again, until nothing breaks or what breaks is nobody's alone."""
        while self._find_one(case.of(self._with(self.left))):
            pass

    def _with(self, defects: tuple[str, ...]) -> Switches:
        return Switches(without=self.without, defects=defects)

    def _find_one(self, case: Case) -> bool:
        """Search, lay what breaks to a defect, and repair that; false if nothing breaks, or nobody can be blamed."""
        if not self.left:
            return False
        met = smallest(case.search().broken)
        for kind, _ in sorted(met.items(), key=lambda item: size_of(item[1])):
            for number in self.left:
                alone = self._alone(case, number, kind)
                if alone is not None and self._gone_without(case, number, kind):
                    mine = case.of(self._with((number,)))
                    self.finds.append(Find(number, mine, shrink(mine.explorer(), alone), case.switches))
                    self.left = tuple(each for each in self.left if each != number)
                    return True
        return False

    def _alone(self, case: Case, number: str, kind: Kind) -> Broken | None:
        """The same thing broken by that defect alone."""
        return smallest(case.of(self._with((number,))).search().broken).get(kind)

    def _gone_without(self, case: Case, number: str, kind: Kind) -> bool:
        others = tuple(each for each in self.left if each != number)
        return kind not in smallest(case.of(self._with(others)).search().broken)
