"""Known defects, found from the series as posted; and the page that tells of them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from lazypv.__main__ import run
from lazypv.errors import UsageError
from lazypv.explore import defects as defects_module
from lazypv.explore.ablate import broken_without
from lazypv.explore.defects import NOT_FOUND, Findings, Hunt, known
from lazypv.explore.hunt import LADDER, Case, Rung
from lazypv.explore.scenarios import scenario
from lazypv.explore.series_page import cases_of, defect_section, patch_section, replayed
from lazypv.explore.story import story
from lazypv.explore.switches import Switches
from lazypv.series import DEFECTS, NOT_SWITCHED, PATCHES

PAGE = (Path(__file__).parents[2] / "docs" / "series.md").read_text(encoding="utf-8")
STORIES = list(cases_of(PAGE))
EVERY = tuple(each.number for each in DEFECTS)


@pytest.fixture(scope="module")
def hunt():
    """All defects in force, and the smallest searches."""
    made = Hunt((), EVERY)
    made.climb(LADDER[0])
    return made


def test_what_breaks_in_the_series_as_posted_is_laid_to_one_defect_after_the_other(hunt):
    """Semantics 5."""
    found = {find.defect: find.broken.violation.number for find in hunt.finds}
    assert found.items() >= {"D1": 38, "D3": 24, "D9": 18, "D10": 19, "D11": 35, "D12": 42, "D18": 27}.items()
    assert set(hunt.left) == set(EVERY) - set(found)


def test_each_find_was_met_with_all_that_were_left_and_is_shown_alone(hunt):
    left = set(EVERY)
    for find in hunt.finds:
        assert set(find.posted.defects) == left
        assert find.case.switches.defects == (find.defect,)
        left.remove(find.defect)


def test_each_find_is_gone_without_its_defect(hunt):
    for find in hunt.finds:
        assert find.case.of(type(find.posted)()).search().broken == []


def test_a_defect_is_found_without_the_patch_that_hides_it():
    """D2: the thread lacks a reference that patch 09 brings."""
    made = Hunt(("09",), ("D2",))
    made.climb(LADDER[0])
    assert [(find.defect, find.broken.violation.number) for find in made.finds] == [("D2", 24)]
    hidden = Hunt((), ("D2",))
    hidden.climb(LADDER[0])
    assert hidden.finds == []


def test_what_either_of_two_defects_breaks_is_laid_to_neither():
    """A refused page on the list: dropped by the drain that has no lock, and by the one that has."""
    case = Case(scenario("shutdown"), Rung(2, 0, 1), Switches())
    both = Hunt((), ("D19", "D20"))
    both.search(case)
    assert both.finds == []
    for number in ("D19", "D20"):
        alone = Hunt((), (number,))
        alone.search(case)
        assert [find.defect for find in alone.finds] == [number]


def test_a_race_is_found_with_one_preemption():
    """D17, D19: not without."""
    for number, invariant in (("D17", 27), ("D19", 1)):
        made = Hunt((), (number,))
        made.climb(LADDER[0])
        assert made.finds == []
        made.climb(Rung(2, 1, 0))
        assert [find.broken.violation.number for find in made.finds] == [invariant]


@pytest.mark.parametrize("number", ["D4", "D5", "D15", "D20", "D22", "D27"])
def test_what_one_failing_step_shows_is_on_the_page(number):
    """Found there by real runs; run again here."""
    broken = [replayed(case) for _, case in STORIES if case["defects"] == [number]]
    assert len(broken) == 1
    assert sum(choice.fault != 0 for choice in broken[0].schedule) == 1


# --- the list ----------------------------------------------------------------------------------------------------


def test_every_defect_of_version_1_is_listed_once_in_order():
    assert known() == [*(f"D{number}" for number in range(1, 12)), "D11b", *(f"D{number}" for number in range(12, 28))]


def test_what_was_not_found_has_a_reason():
    findings = Findings()
    assert findings.reason("D6") == NOT_SWITCHED["D6"]
    assert findings.reason("D17") == NOT_FOUND


def test_the_command_writes_what_was_found_as_one_object(monkeypatch, capsys, hunt):
    """lazypv.defects/1."""
    findings = Findings({find.defect: find for find in hunt.finds})
    monkeypatch.setattr(defects_module, "find_defects", lambda progress: findings)
    assert run(["defects", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "lazypv.defects/1"
    rows = {row["defect"]: row for row in told["defects"]}
    assert list(rows) == known()
    assert rows["D3"] | {"story": None} == {
        "defect": "D3",
        "found": True,
        "scenario": findings.finds["D3"].case.scenario.name,
        "steps": len(findings.finds["D3"].story),
        "reason": None,
        "invariant": 24,
        "without": [],
        "story": None,
    }
    assert not rows["D6"]["found"]
    assert rows["D6"]["reason"] == NOT_SWITCHED["D6"]
    assert run(["defects"]) == 0
    assert "invariant 24 is broken" in capsys.readouterr().out


def test_the_command_goes_through_both_series_and_the_baseline(monkeypatch):
    """Cut down to two defects and the smallest searches."""
    chosen = tuple(each for each in DEFECTS if each.number in ("D2", "D9"))
    monkeypatch.setattr(defects_module, "DEFECTS", chosen)
    monkeypatch.setattr(defects_module, "LADDER", LADDER[:1])
    searched = []
    monkeypatch.setattr(defects_module, "require_whole", lambda rungs, without: searched.append((rungs, without)))

    class Progress:
        def expect(self, total):
            assert total == 3

        def __call__(self, what):
            pass

    findings = defects_module.find_defects(Progress())
    assert set(findings.finds) == {"D2", "D9"}
    assert findings.finds["D2"].case.switches.without == ("09",)
    assert searched == [(LADDER[:1], ()), (LADDER[:1], ("09",))]


# --- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(STORIES)))
def test_every_story_of_the_page_happens_again(number):
    """docs/series.md: the same schedule, the same lines."""
    told, case = STORIES[number]
    assert " ".join(told.split()) == " ".join(" ".join(story(replayed(case))).split())


def test_a_story_that_ends_differently_is_refused():
    _, case = STORIES[0]
    with pytest.raises(UsageError, match="ends differently"):
        replayed(case | {"fingerprint": "00"})


def test_the_page_tells_of_every_patch_and_every_defect_that_has_a_switch():
    for patch in PATCHES:
        assert f"### {patch.number}: {patch.title}" in PAGE
    shown = {number for _, case in STORIES for number in case["defects"]}
    assert shown == set(EVERY)
    broken = {number for _, case in STORIES for number in case["without"] if not case["defects"]}
    assert broken == {"01", "03", "04", "06", "07", "08", "10"}
    assert any(case["misread"] for _, case in STORIES)


def test_stories_are_short():
    """15 steps or fewer in the median."""
    lines = [len(story(replayed(case))) for _, case in STORIES if case["defects"]]
    assert statistics.median(lines) <= 15


def test_a_part_of_the_page_made_anew_is_what_stands_there(hunt):
    """Patch 08, and the defects of the smallest searches."""
    findings = Findings({find.defect: find for find in hunt.finds})
    parts = patch_section("08", broken_without("08")[0])
    for number in ("D3", "D9", "D18"):
        parts += defect_section(number, findings)
    for part in parts:
        assert part in PAGE
