"""Somebody's own teardown protocol is explored like the series: found broken, told, kept, repaired.

Source: issue 3, "Your own protocol".
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lazypv.__main__ import run
from lazypv.errors import UsageError
from lazypv.explore.capsule import Capsule
from lazypv.explore.report import explore_all
from lazypv.explore.scenarios import scenario
from lazypv.explore.search import Bounds
from lazypv.explore.story import story
from lazypv.explore.switches import Switches
from lazypv.policy import load_policy
from lazypv.series import Series

EXAMPLES = Path(__file__).parents[2] / "examples"
DRAFT = f"{EXAMPLES / 'configuration_first_draft.py'}:ConfigurationFirst"
REPAIRED = f"{EXAMPLES / 'configuration_first.py'}:ConfigurationFirst"
RACE = f"{EXAMPLES / 'one_cleaner_draft.py'}:OneCleaner"
NO_RACE = f"{EXAMPLES / 'one_cleaner.py'}:OneCleaner"
HEADER = "from lazypv.policy import *\n\n"


class Silent:
    def expect(self, phases):
        pass

    def __call__(self, phase):
        pass


def explored(spelling, name, *, pages=2, preemptions=1):
    return explore_all(
        name,
        Switches(policy=load_policy(str(spelling))),
        Bounds(preemptions, 0),
        pages=pages,
        strategy="exhaustive",
        runs=1,
        seed=0,
        progress=Silent(),
    )


def written(folder, body, name="mine.py"):
    path = folder / name
    path.write_text(HEADER + body, encoding="utf-8")
    return path


# --- the example -------------------------------------------------------------------------------------------------


def test_the_draft_counts_a_configuration_out_that_still_exists():
    """Invariants 9, 10, and 1 where nobody looks at the counter itself."""
    (_, broken), *others = explored(DRAFT, "reboot-into-normal").counterexamples
    assert others == []
    assert broken.violation.number in (1, 9, 10)
    told = story(broken)
    assert len(told) <= 15
    assert any("thread 1: write protected counter" in line for line in told)


@pytest.mark.parametrize(("preemptions", "finds"), [(1, 0), (2, 1)])
def test_a_lost_wake_up_is_found_where_two_preemptions_are_allowed(preemptions, finds):
    """The queue was looked at under the lock, the flag was written without it."""
    found = explored(RACE, "two-guests-in-one-process", preemptions=preemptions)
    assert len(found.counterexamples) == finds
    if finds:
        assert any("pv_cleaner 1: write running" in line for line in story(found.counterexamples[0][1]))


def test_the_race_is_gone_when_both_are_under_the_lock():
    found = explored(NO_RACE, "two-guests-in-one-process", preemptions=2)
    assert found.counterexamples == []
    assert found.explored[0].outcome.exhausted


@pytest.mark.parametrize(
    "name", ["reboot-into-protected", "reboot-into-normal", "shutdown", "unmap-during-cleanup", "killed-during-reboot"]
)
def test_the_repaired_example_survives_every_order(name):
    found = explored(REPAIRED, name)
    assert found.counterexamples == []
    assert all(each.outcome.exhausted for each in found.explored)


def test_the_draft_and_its_repair_differ_by_the_place_of_one_line():
    draft, repaired = (
        [line.strip() for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines()[1:]]
        for name in ("configuration_first_draft.py", "configuration_first.py")
    )
    assert draft != repaired
    assert sorted(draft) == sorted(repaired)
    assert len(draft) <= 36


# --- capsules ----------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    """A draft of one's own, and the capsule of what is wrong with it."""
    draft = tmp_path / "draft.py"
    shutil.copy(EXAMPLES / "configuration_first_draft.py", draft)
    found = explored(f"{draft}:ConfigurationFirst", "reboot-into-normal")
    capsule = tmp_path / "found.json"
    found.capsules[0].save(capsule)
    return draft, capsule


def test_a_capsule_knows_the_policy_and_replays_with_it(kept):
    draft, path = kept
    said = json.loads(path.read_text(encoding="utf-8"))["switches"]["policy"]
    assert said == {
        "name": f"{draft}:ConfigurationFirst",
        "source": load_policy(f"{draft}:ConfigurationFirst").source,
    }
    assert Capsule.load(path).replay().violation.number == json.loads(path.read_text())["invariant"]


def test_a_capsule_is_not_replayed_with_a_policy_that_has_changed(kept, capsys):
    draft, path = kept
    draft.write_text(draft.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert run(["explore", "--replay", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lazypv: ")
    assert "draft.py:ConfigurationFirst is not what it was: its source has the digest" in err
    assert err.count("\n") == 1


def test_a_capsule_is_replayed_with_a_policy_that_has_moved_if_it_is_told_where(kept, capsys):
    draft, path = kept
    moved = draft.rename(draft.parent / "moved.py")
    assert run(["explore", "--replay", str(path)]) == 2
    assert "draft.py: No such file or directory" in capsys.readouterr().err
    assert run(["explore", "--replay", str(path), "--policy", f"{moved}:ConfigurationFirst"]) == 3
    assert run(["explore", "--replay", str(path), "--policy", REPAIRED]) == 2


def test_a_capsule_of_the_series_is_not_replayed_with_a_policy(tmp_path, capsys):
    path = tmp_path / "found.json"
    assert run(["explore", "shutdown", "--pages", "2", "--with-defect", "D3", "--capsule", str(path)]) == 3
    assert json.loads(path.read_text(encoding="utf-8"))["switches"]["policy"] is None
    assert run(["explore", "--replay", str(path), "--policy", REPAIRED]) == 2
    assert "the series' own way was explored" in capsys.readouterr().err


@pytest.mark.parametrize("said", [5, {}, {"name": "x.py:X"}, "x.py:X"])
def test_a_capsule_with_a_malformed_policy_is_refused(kept, said):
    _, path = kept
    found = json.loads(path.read_text(encoding="utf-8"))
    found["switches"]["policy"] = said
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(UsageError, match="is not a capsule"):
        Capsule.load(path)


# --- what it remembers is state ----------------------------------------------------------------------------------

REMEMBERS = """
class Note:
    def __init__(self):
        self.resets = 0

class Mine(SeriesTeardown):
    def __init__(self):
        self.note = Note()
        self.handles = []

    async def reset(self, vm):
        self.note.resets += 1
        self.handles.append(vm.kvm.pv.handle)
        return await super().reset(vm)
"""


def test_what_a_policy_remembers_is_part_of_the_digest_and_is_put_back(tmp_path):
    policy = load_policy(f"{written(tmp_path, REMEMBERS)}:Mine")
    world = scenario("shutdown").build(Series(), 2, policy)
    mine = world.host.teardown.policy
    before = world.digest([])
    mine.note.resets = 5
    changed = world.digest([])
    mine.handles.append(1)
    assert len({before, changed, world.digest([])}) == 3
    world.restore()
    assert (mine.note.resets, mine.handles) == (0, [])
    assert world.digest([]) == before


def test_the_same_holds_for_one_of_an_installed_package(tmp_path, monkeypatch):
    """Its classes are in a module of any name."""
    written(tmp_path, REMEMBERS, "somebodys_teardown.py")
    monkeypatch.syspath_prepend(tmp_path)
    from somebodys_teardown import Mine

    from lazypv.policy import LoadedPolicy

    world = scenario("shutdown").build(Series(), 2, LoadedPolicy("theirs", "", Mine))
    mine = world.host.teardown.policy
    before = world.digest([])
    mine.note.resets = 5
    assert world.digest([]) != before
    world.restore()
    assert mine.note.resets == 0


# --- what it breaks down with ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("        return vm.nothing\n", "mine.py:5, in reset: AttributeError: 'Vm' object has no attribute 'nothing'"),
        ("        pass\n", "policy Mine: TypeError: reset gave back None, not a Result"),
        ("        await Wait(lambda: 1 / 0, 'nothing')\n", "mine.py:5, in <lambda>: ZeroDivisionError"),
        ("        await Call('nothing', lambda: 1 / 0)\n", "mine.py:5, in <lambda>: ZeroDivisionError"),
        ("        await vm.host.pages.export_owned('these')\n", "mine.py:5, in reset: "),
        (
            "        import asyncio\n        await asyncio.sleep(0)\n",
            "mine.py:6, in reset: TypeError: None is not a step",
        ),
    ],
)
def test_what_a_policy_raises_gets_one_line_with_its_file_and_line(tmp_path, capsys, body, told):
    path = written(tmp_path, f"class Mine(SeriesTeardown):\n    async def reset(self, vm):\n{body}")
    assert run(["explore", "reboot-into-normal", "--pages", "2", "--policy", f"{path}:Mine"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert told in err


def test_so_does_what_it_raises_while_the_world_is_built(tmp_path, capsys):
    path = written(tmp_path, "class Mine(SeriesTeardown):\n    async def enabled(self, vm):\n        vm.nothing\n")
    assert run(["explore", "shutdown", "--pages", "2", "--policy", f"{path}:Mine"]) == 2
    assert "mine.py:5, in enabled: AttributeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "invariant"),
    [
        ("        async with vm.kvm.lock.exclusive():\n            return DEFERRED\n", "invariant 34"),
        (
            "        await vm.mm.drop()\n        await vm.mm.drop()\n        return await super().reset(vm)\n",
            "invariant 24",
        ),
    ],
)
def test_a_deadlock_and_a_reference_dropped_twice_are_stories(tmp_path, capsys, body, invariant):
    path = written(tmp_path, f"class Mine(SeriesTeardown):\n    async def reset(self, vm):\n{body}")
    assert run(["explore", "reboot-into-normal", "--pages", "2", "--policy", f"{path}:Mine"]) == 3
    assert f"{invariant} is broken" in capsys.readouterr().out


def test_a_policy_that_cannot_be_had_gets_one_line(capsys):
    assert run(["explore", "shutdown", "--policy", "nowhere.py:Mine"]) == 2
    assert capsys.readouterr().err == "lazypv: nowhere.py: No such file or directory\n"
