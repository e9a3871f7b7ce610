"""``python -m lazypv.explore.series_page > docs/series.md``: what each patch is for, and what each defect does.

Every story on the page is followed by the search and the schedule that it comes from, so that it can be run again
(:func:`replayed`); a test does that for all of them.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from lazypv.clocks.explore import Choice
from lazypv.errors import UsageError
from lazypv.explore.ablate import Ablation, Break, ablate
from lazypv.explore.defects import Findings, find_defects, known, title_of
from lazypv.explore.hunt import Case, Rung
from lazypv.explore.run import Broken
from lazypv.explore.scenarios import scenario
from lazypv.explore.story import story
from lazypv.explore.switches import Switches
from lazypv.series import DEFECTS, PATCHES

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH: Final = 120
_CASE: Final = re.compile(r"^```text\n(.*?)^```\n+<!-- case: (.*?) -->$", re.MULTILINE | re.DOTALL)

INTRODUCTION: Final = """\
Made by `python -m lazypv.explore.series_page` from runs of `lazypv ablate` and `lazypv defects`: which invariant breaks
when a patch is taken away, and when a defect of the series as mailed is put back, with the shortest story that was
found. What the patches and defects are is told in [series-patches.md](series-patches.md), what the numbers of the
invariants mean in [invariants.md](invariants.md)."""

HOW_FOUND: Final = """\
All hunts go through the same scenarios and climb the same ladder: two pages and no preemption first, then more. A
counterexample is made smaller by leaving steps out and moving them as long as the same invariant breaks. Locks,
allocations that succeed and looks at counters are left out of a story, unless they race."""

HOW_DEFECTS: Final = """\
The search begins with the series as it was mailed, all defects in force. What breaks is laid to the defect that breaks
the same thing when it is there alone, and without which the same search does not see it; that defect is repaired, and
the search goes on with those that are left. Below each is shown alone."""

NO_SOURCE: Final = (
    "In the synchronous part of a lazy reset, a page that the Ultravisor refuses to destroy stays with the old run, "
    "although it lies below the limit where a CPU's prefix may be (invariant 22; one failing step, any scenario with a "
    "lazy reboot). The result of a page's destruction is ignored there, as everywhere in the walk. Such a page is "
    "exported here.",
    "When memory is unmapped and a page's export is refused, the mapping's reference is dropped all the same, and the "
    "page reaches the allocator while it is still secure (invariant 1; one failing step, any scenario that unmaps). "
    "The list of patch 09 keeps the reference in this case; the unmap hooks look at no result. Here such a page keeps "
    "its reference and counts as leaked.",
)
"""What exploring found that no source lists as a defect. Each has a test of its own (tests/explore/test_faults.py)."""


def page(ablation: Ablation, findings: Findings) -> str:
    """The page."""
    parts = [
        "<!-- Made by `python -m lazypv.explore.series_page > docs/series.md`: do not edit. -->",
        "# What each patch is for, and what each defect does",
        INTRODUCTION,
        HOW_FOUND,
        "## Patches",
    ]
    for patch in PATCHES:
        parts += patch_section(patch.number, ablation.breaks[patch.number])
    parts += ["## Defects", HOW_DEFECTS]
    for number in known():
        parts += defect_section(number, findings)
    parts += ["## What no source lists", *(_filled(f"* {each}", "  ") for each in NO_SOURCE)]
    return "\n\n".join(parts) + "\n"


def patch_section(number: str, breaks: list[Break]) -> list[str]:
    """What is said of one patch."""
    patch = next(each for each in PATCHES if each.number == number)
    parts = [f"### {number}: {patch.title}", _where(patch.place)]
    for each in breaks:
        if each.cost is not None:
            cost = each.cost
            parts.append(
                _filled(
                    f"Without it nothing breaks, but {cost.scenario} costs more: {cost.name}: {cost.with_it} with it, "
                    f"{cost.without_it} without."
                )
            )
        elif each.case is not None and each.broken is not None:
            how = "Used where the feature bit is off" if each.case.switches.misread else "Without it"
            parts += _told(how, each.case, each.broken)
    return parts


def defect_section(number: str, findings: Findings) -> list[str]:
    """What is said of one defect."""
    find = findings.finds.get(number)
    if find is None:
        return [f"### {number}", _filled(f"Not found: {findings.reason(number)}.")]
    place = next(each.place for each in DEFECTS if each.number == number)
    less = "".join(f", without patch {patch}" for patch in find.case.switches.without)
    heading = [f"### {number}: {title_of(number)}", _where(place)]
    return [*heading, *_told(f"With it alone{less}", find.case, find.broken)]


def _told(how: str, case: Case, broken: Broken) -> list[str]:
    says = (
        f"{how}, invariant {broken.violation.number} breaks in `{case.scenario.name}`: {case.scenario.says} "
        f"({_size(case.rung)}.)"
    )
    lines = "".join(
        textwrap.fill(line, _WIDTH, subsequent_indent=" " * (line.index(".") + 2), break_on_hyphens=False) + "\n"
        for line in story(broken)
    )
    return [_filled(says), f"```text\n{lines}```", f"<!-- case: {json.dumps(_as_object(case, broken))} -->"]


def _size(rung: Rung) -> str:
    def counted(count: int, what: str) -> str:
        return f"{count or 'no'} {what}{'' if count == 1 else 's'}"

    faults = counted(rung.faults, "failing step")
    return f"{rung.pages} pages, {counted(rung.preemptions, 'preemption')}, {faults}"


def _where(place: str) -> str:
    path = place.partition(":")[0].replace(".", "/")
    return f"Where: [`{place}`](../engine/{path}.py)."


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# --- a story that is run again -----------------------------------------------------------------------------------


def _as_object(case: Case, broken: Broken) -> dict[str, Any]:
    return {
        "scenario": case.scenario.name,
        "rung": list(case.rung),
        "without": list(case.switches.without),
        "defects": list(case.switches.defects),
        "misread": case.switches.misread,
        "schedule": [[c.actor, c.fault, len(list(same))] for c, same in groupby(broken.schedule)],
        "fingerprint": broken.fingerprint,
    }


def cases_of(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stories of a page as they stand there, and where each comes from."""
    for found in _CASE.finditer(text):
        yield found[1], json.loads(found[2])


def replayed(found: dict[str, Any]) -> Broken:
    """A story of the page, run again.

    Raises
    ------
    UsageError
        Nothing breaks, or it ends differently.
    """
    without, defects = tuple(found["without"]), tuple(found["defects"])
    switches = Switches(without=without, defects=defects, misread=found["misread"])
    case = Case(scenario(found["scenario"]), Rung(*found["rung"]), switches)
    schedule = tuple(Choice(actor, fault) for actor, fault, count in found["schedule"] for _ in range(count))
    run = case.explorer().replay(schedule)
    if run.violation is None or run.fingerprint != found["fingerprint"]:
        raise UsageError(f"the story of {found['scenario']} with {switches} ends differently here")
    return Broken(run.violation, run.schedule, run.steps, run.fingerprint)


def main() -> None:
    """Write the page to standard output, and what is being done to standard error."""

    told = _Told()
    sys.stdout.write(page(ablate(told), find_defects(told)))


class _Told:
    def expect(self, phases: int) -> None:
        print(f"{phases} phases", file=sys.stderr)

    def __call__(self, phase: str) -> None:
        print(phase, file=sys.stderr)


if __name__ == "__main__":
    main()
