"""What each patch is for, from real runs: by the story of semantics 4."""

from __future__ import annotations

import json

import pytest

from lazypv.__main__ import run
from lazypv.errors import EXIT_VIOLATION, ViolationError
from lazypv.explore import ablate as ablate_module
from lazypv.explore.ablate import STORY, Ablation, Break, broken_without, require_whole
from lazypv.explore.costs import BATCH, GUEST_PAGES, measure_costs
from lazypv.explore.hunt import LADDER, Case, Rung, kind_of, search_all
from lazypv.explore.scenarios import SCENARIOS, scenario
from lazypv.explore.switches import Switches
from lazypv.invariants import Violation
from lazypv.series import PATCHES

SMALLEST = LADDER[0]


@pytest.fixture(scope="module")
def costs():
    return {cost.patch: cost for cost in measure_costs()}


@pytest.mark.parametrize(
    ("patch", "invariant", "told"),
    [
        ("03", 35, "guest access (1): rc 0x003f"),
        ("04", 35, "guest access (1): rc 0x003d"),
        ("06", 10, "the protected counter is 0, but"),
        ("07", 35, "the import was refused"),
        ("08", 40, "were destroyed in the guest's time, 1 at most may be"),
        ("10", 38, "the configuration outlived KVM_PV_DISABLE"),
        ("11", 35, "the import was refused"),
    ],
)
def test_without_a_patch_something_breaks_by_its_own_story(patch, invariant, told):
    """Semantics 4.3 to 4.11. Without 11 nothing breaks: it is used where the bit is off."""
    breaks, rung = broken_without(patch)
    assert breaks[0].broken.violation.number == invariant == STORY[patch][0]
    assert any(told in line for line in breaks[0].story)
    assert breaks[0].case.switches.misread == (patch == "11")
    assert rung in LADDER[:2], "a small search suffices"
    numbers = [each.broken.violation.number for each in breaks]
    assert len(set(numbers)) == len(numbers)


def test_without_patch_01_a_healthy_guest_gets_the_marked_table_and_cannot_start():
    """Semantics 4.1: the destruction fails, -EIO, the process exits, another guest is handed the table."""
    case = Case(scenario("another-guest-afterwards"), Rung(2, 0, 1), Switches(without=("01",)))
    told = [
        [f"{taken.step} {taken.fault}".strip() for taken in broken.steps]
        for broken in case.search().broken
        if broken.violation.number == 35
    ]
    wanted = next(steps for steps in told if "DESTROY_SEC_CONF refused" in steps)
    assert wanted.index("DESTROY_SEC_CONF refused") < wanted.index("export unmapped pages") < len(wanted)
    assert "CREATE_SEC_CONF" in wanted
    assert case.of(Switches()).search().broken == []


def test_without_patch_06_the_hooks_are_off_when_the_old_configuration_is_gone():
    """Semantics 4.6, steps 3 and 4: the cleaner finishes A and stores 0, while pages of B are mapped."""
    breaks, _ = broken_without("06")
    *_, destroyed, stored, end = breaks[0].story
    assert "destroy thread" in destroyed
    assert "DESTROY_SEC_CONF: rc 0x0001" in destroyed
    assert "write protected counter" in stored
    assert "mapped pages belong to a configuration" in end


def test_three_patches_cost_and_break_nothing(costs):
    """Semantics 4.2 step 6, 4.5, 4.9."""
    assert (costs["02"].with_it, costs["02"].without_it) == (0, 2 * GUEST_PAGES)
    assert costs["05"].with_it == BATCH
    assert costs["05"].without_it > GUEST_PAGES
    assert costs["09"].without_it > GUEST_PAGES
    assert costs["09"].with_it <= -(-costs["09"].without_it // (BATCH + 1))
    for patch in ("02", "05", "09"):
        assert all(not outcome.broken for _, outcome in search_all(SMALLEST, Switches(without=(patch,))))


def test_patch_11_saves_the_exports_where_the_bit_is_on(costs):
    """Semantics 4.11, steps 3 to 6."""
    assert costs["11"].with_it == 0
    assert costs["11"].without_it > GUEST_PAGES // 2


def test_a_baseline_that_breaks_something_ends_it_with_status_3():
    """Whatever else was found, it would mean nothing."""
    require_whole(LADDER[:1])
    with pytest.raises(ViolationError, match=r"breaks invariant 40 in .*2 pages, 0 preemptions, 0 faults") as refused:
        require_whole(LADDER[:1], without=("08",))
    assert refused.value.exit_status == EXIT_VIOLATION


def test_every_scenario_is_searched_and_none_with_fewer_pages_than_its_limit():
    cases = [case for case, _ in search_all(SMALLEST, Switches())]
    assert [case.scenario.name for case in cases] == list(SCENARIOS)
    assert all(case.pages >= (case.scenario.shape.limit or 0) for case in cases)


def test_violations_are_alike_but_for_numbers():
    one, same, other = (Violation(1, f"frame {text} is free") for text in ("12", "0x1f", "twelve"))
    assert kind_of(one) == kind_of(same) != kind_of(other)
    assert kind_of(one) != kind_of(Violation(2, one.text))


def test_the_command_writes_what_was_found_as_one_object(monkeypatch, capsys, costs):
    """lazypv.ablate/1."""
    breaks, _ = broken_without("08")
    found = Ablation({each.number: [] for each in PATCHES} | {"08": breaks})
    found.breaks["09"].append(Break("09", cost=costs["09"]))
    monkeypatch.setattr(ablate_module, "ablate", lambda progress: found)
    assert run(["ablate", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "lazypv.ablate/1"
    assert [each["patch"] for each in told["patches"]] == [each.number for each in PATCHES]
    (broken,), (cost,) = told["patches"][7]["breaks"], told["patches"][8]["breaks"]
    assert (broken["invariant"], broken["cost"], broken["scenario"]) == (40, None, breaks[0].case.scenario.name)
    assert broken["steps"] == len(broken["story"]) == len(breaks[0].story)
    assert cost["invariant"] is None
    assert cost["cost"] == {"name": costs["09"].name, "with": costs["09"].with_it, "without": costs["09"].without_it}
    assert run(["ablate"]) == 0
    text = capsys.readouterr().out
    assert "08 lazy destroy for reboot" in text
    assert f"{costs['09'].with_it} with it, {costs['09'].without_it} without" in text


def test_the_command_goes_through_patches_costs_and_baseline(monkeypatch):
    """Cut down to two patches and the smallest searches."""
    monkeypatch.setattr(ablate_module, "PATCHES", tuple(each for each in PATCHES if each.number in ("05", "08")))
    monkeypatch.setattr(ablate_module, "LADDER", LADDER[:1])
    monkeypatch.setattr(ablate_module, "measure_costs", list)
    phases = []

    class Progress:
        def expect(self, total):
            phases.append(total)

        def __call__(self, what):
            phases.append(what)

    found = ablate_module.ablate(Progress())
    assert phases == [3, "without 05", "without 08", "repaired"]
    assert found.breaks["05"] == []
    assert found.breaks["08"][0].broken.violation.number == 40
