"""The explorer: what it leaves out is nothing new, what it finds is found again, and it finds what is there."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lazypv.__main__ import run
from lazypv.clocks.explore import Choice, ExploringClock
from lazypv.explore.capsule import Capsule
from lazypv.explore.faults import faults_for
from lazypv.explore.sampling import Manner, sample
from lazypv.explore.scenarios import SCENARIOS, scenario
from lazypv.explore.search import Bounds, Explorer
from lazypv.explore.story import story
from lazypv.host.walk import Throttle, destroy_range
from lazypv.series import Series
from lazypv.sizes import PAGE_SIZE
from lazypv.steps import Acquire, Bulk, Lock, Release
from lazypv.ultravisor import BulkAnswer


def explorer(name, series=None, *, pages=2, preemptions=1, faults=0):
    of = scenario(name)
    world = of.build(series or Series(), pages)
    return Explorer(world, of.scene, Bounds(preemptions, faults), faults_for(world.machine.ultravisor))


@pytest.mark.parametrize("name", ["shutdown", "shutdown-during-cleanup"])
@pytest.mark.parametrize("preemptions", [0, 1])
def test_leaving_out_states_that_were_met_leaves_out_no_end(name, preemptions):
    """Plain enumeration within the same bound comes to the same set of final states."""
    searcher = explorer(name, preemptions=preemptions)
    pruned, plain = searcher.exhaust(), searcher.exhaust(prune=False)
    assert pruned.exhausted
    assert plain.exhausted
    assert pruned.final_states
    assert pruned.final_states == plain.final_states
    assert pruned.schedules <= plain.schedules


def test_the_same_search_twice_sees_the_same():
    """Nothing but the choices decides: the check for uncontrolled nondeterminism."""
    once, again = (explorer("unmap-during-cleanup").exhaust() for _ in range(2))
    assert (once.schedules, once.steps, once.states) == (again.schedules, again.steps, again.states)


def test_one_schedule_twice_ends_in_the_same_state():
    """In one world, put back between the runs, and in another world."""
    first = explorer("reboot-into-protected", Series().without("07"))
    broken = first.exhaust().broken[0]
    for searcher in (first, explorer("reboot-into-protected", Series().without("07"))):
        run_again = searcher.replay(broken.schedule)
        assert run_again.fingerprint == broken.fingerprint
        assert run_again.violation == broken.violation


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_repaired_series_survives_every_order_with_two_pages(name):
    """One preemption, no fault; and no preemption with any one step failing."""
    assert explorer(name, pages=max(2, SCENARIOS[name].shape.sync_below)).exhaust().broken == []
    outcome = explorer(name, pages=max(2, SCENARIOS[name].shape.sync_below), preemptions=0, faults=1).exhaust()
    assert outcome.broken == []
    assert outcome.exhausted


@pytest.mark.parametrize(
    ("patch", "name", "invariant"),
    [
        ("03", "reboot-into-protected", 35),
        ("04", "reboot-into-normal", 35),
        ("06", "reboot-into-protected", 35),
        ("07", "reboot-into-protected", 35),
        ("08", "reboot-into-protected", 40),
        ("10", "reboot-with-the-parameter-off", 38),
    ],
)
def test_without_a_patch_an_invariant_is_broken(patch, name, invariant):
    """Semantics 4: found by exploring, not scripted."""
    outcome = explorer(name, Series().without(patch), pages=3).exhaust()
    assert [broken.violation.number for broken in outcome.broken] == [invariant]


@pytest.mark.parametrize(("defect", "name", "invariant"), [("D3", "shutdown", 24), ("D9", "reboot-into-protected", 18)])
def test_a_defect_as_posted_is_found(defect, name, invariant):
    """Semantics 5."""
    outcome = explorer(name, Series().with_defects(defect)).exhaust()
    assert [broken.violation.number for broken in outcome.broken] == [invariant]


@pytest.mark.parametrize("manner", Manner)
def test_random_orders_find_it_too(manner):
    outcome = sample(explorer("shutdown", Series().with_defects("D3")), range(60), "1", manner)
    assert outcome.broken
    assert not outcome.exhausted


def test_random_orders_with_faults_leave_the_repaired_series_whole():
    outcome = sample(explorer("shutdown-during-cleanup", pages=3, faults=2), range(150), "3", Manner.RANDOM)
    assert outcome.broken == []
    assert outcome.schedules == 150


@pytest.mark.parametrize("switches", [["--without", "07"], ["--misread"]], ids=str)
def test_a_capsule_is_replayed_by_another_run(tmp_path, capsys, switches):
    """Version, scenario, switches, schedule, fingerprint."""
    path = tmp_path / "found.json"
    arguments = ["explore", "reboot-into-protected", "--pages", "2", "--capsule", str(path), "--json"]
    assert run([*arguments, *switches]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "lazypv.explore/1"
    assert report["violations"][0]["invariant"] == 35
    assert report["violations"][0]["capsule"] == json.loads(path.read_text())
    assert run(["explore", "--replay", str(path)]) == 3
    assert "invariant 35 is broken" in capsys.readouterr().out


@pytest.mark.parametrize("how", [["--finer"], ["--strategy", "random", "--runs", "50", "--seed", "3"]])
def test_a_capsule_knows_how_its_order_was_come_by(tmp_path, capsys, how):
    path = tmp_path / "found.json"
    assert run(["explore", "shutdown", "--pages", "2", "--with-defect", "D3", "--capsule", str(path), *how]) == 3
    written = json.loads(path.read_text())
    assert written["finer"] == ("--finer" in how)
    assert written["seed"] == ("3/shutdown/2" if "--seed" in how else "")
    capsys.readouterr()
    assert run(["explore", "--replay", str(path)]) == 3
    assert "invariant 24 is broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "0.0.1"}, "version"),
        ({"schema": "lazypv.capsule/9"}, "schema"),
        ({"scenario": "nothing"}, "not a scenario"),
        ({"schedule": [[0, 0]]}, "not a capsule"),
        ({"schedule": [[0, 0, 10**12]]}, "not a capsule"),
        ({"schedule": [[0, 99, 1]]}, "ends differently"),
        ({"schedule": [[0, -1, 1]]}, "ends differently"),
        ({"fingerprint": "00"}, "ends differently"),
        ({"switches": {"preset": "repaired", "without": ["99"], "defects": []}}, "99"),
        ({"switches": {"preset": "repaired", "without": [], "defects": [], "misread": "no"}}, "not a capsule"),
    ],
)
def test_a_capsule_that_cannot_be_replayed_says_why(tmp_path, capsys, change, says):
    broken = explorer("reboot-into-protected", Series().without("07")).exhaust().broken[0]
    from lazypv.explore.switches import Switches

    capsule = Capsule.of("reboot-into-protected", 2, Switches(without=("07",)), broken)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**capsule.as_object(), **change}))
    assert run(["explore", "--replay", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere"),
        (["shutdown", "--without", "12"], "12"),
        (["shutdown", "--with-defect", "D6"], "D6"),
        (["shutdown", "--without", "11", "--misread"], "misread"),
    ],
)
def test_unknown_names_are_bad_use(arguments, says, capsys):
    assert run(["explore", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_story_tells_who_did_what_and_what_broke():
    broken = explorer("reboot-into-protected", Series().without("03"), pages=3).exhaust().broken[0]
    lines = story(broken)
    assert lines[0] == "1. qemu: DESTROY_SEC_CPU: rc 0x0001"
    assert "invariant 35 is broken" in lines[-1]
    assert not any(" release " in line for line in lines)


# --- the clock and the state -------------------------------------------------------------------------------------


def test_a_bulk_step_is_as_many_steps_as_it_has_pages_and_going_on_is_one_more():
    done = []

    def operation(column):
        done.append(column.tolist())
        return BulkAnswer(np.ones(column.size, np.uint16), column.size)

    async def text():
        answer = await Bulk("three pages", operation, np.arange(3))
        done.append(answer.done)

    clock = ExploringClock()
    clock.start(text(), "one")
    for step in range(4):
        assert len(done) == step
        clock.take(Choice(0))
    assert done == [[0], [1], [2], 3]
    assert clock.enabled() == []


def test_a_lock_that_somebody_holds_cannot_be_taken():
    lock = Lock("mmap_lock")

    async def text(shared):
        await Acquire(lock, shared)
        await Release(lock, shared)

    clock = ExploringClock()
    for shared in (True, True, False):
        clock.start(text(shared), f"actor {len(clock.actors)}")
    clock.take(Choice(0))
    assert clock.enabled() == [0, 1]
    clock.take(Choice(1))
    clock.take(Choice(0))
    clock.take(Choice(1))
    assert clock.enabled() == [2]
    clock.close()


def test_a_state_that_was_taken_down_is_put_back_into_the_same_objects():
    world = scenario("shutdown").build(Series(), 2)
    vm = world.vms[0]
    before = world.digest([])
    world.host.machine.frames.byte[3] ^= 1
    vm.gmap.guest_handle = 0
    world.processes[0].mm.vmas.clear()
    assert world.digest([]) != before
    world.restore()
    assert world.vms[0] is vm
    assert world.digest([]) == before


def test_a_digest_sees_what_a_page_holds():
    """Two states that differ only in the content of a page are two states."""
    world = scenario("shutdown").build(Series(), 2)
    before = world.digest([])
    free = int(np.flatnonzero(world.machine.frames.byte == 0)[-1]) * PAGE_SIZE
    world.machine.store(free, b"other")
    assert world.digest([]) != before


def test_a_throttled_walk_waits_until_its_last_batch_is_worked_off():
    """A batch goes, then the walk owes its pages to the clock; nothing else lets it go on."""
    world = scenario("shutdown").build(Series(), 4)
    throttle, now = Throttle(10.0), [0.0]
    throttle.now = lambda: now[0]
    mm = world.processes[0].mm
    clock = ExploringClock()
    clock.start(destroy_range(world.host.pages, mm, 0, 0, mm.end, 1, "destroyed_sync", throttle), "walk")

    def go_on():
        while clock.enabled():
            clock.take(Choice(0))
        return world.machine.ultravisor.issued["DESTR_SEC_STOR"]

    first = go_on()
    assert go_on() == first
    now[0] += 0.11
    assert go_on() == first + 1
    now[0] += 0.05
    assert go_on() == first + 1
    clock.close()
