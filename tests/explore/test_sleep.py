"""Sleep sets leave out steps, and neither a state nor a violation; what is said to be independent is."""

from __future__ import annotations

import itertools
import random
from functools import partial
from pathlib import Path

import pytest

from lazypv.clocks.explore import ExploringClock
from lazypv.explore import search
from lazypv.explore.accesses import AccessRecorder
from lazypv.explore.faults import faults_for
from lazypv.explore.footprints import CPUS, Footprint, Watcher
from lazypv.explore.hunt import kind_of
from lazypv.explore.jobs import Job, share_out, work_here
from lazypv.explore.sampling import Manner, sample
from lazypv.explore.scenarios import SCENARIOS, scenario
from lazypv.explore.search import Bounds, Explorer, Outcome
from lazypv.explore.switches import Switches
from lazypv.host.mm import Mm
from lazypv.policy import load_policy
from lazypv.series import PRESETS
from lazypv.steps import Touch

EXAMPLES = Path(__file__).parents[2] / "examples"
SLOW = {"reboot-twice", "shutdown-of-the-next-run", "killed-at-any-point", "one-of-two-guests-reboots"}
"""Searches of half a minute and more with every state looked up."""
QUICK = [name for name in SCENARIOS if name not in SLOW]
WITH_A_FAULT = ["shutdown", "reboot-into-normal", "unmap-during-cleanup", "device-and-guest", "small-guest"]


def explorer(name, preset="repaired", *, preemptions=None, faults=0, policy=None):
    of = scenario(name)
    pages = max(2, of.shape.sync_below if of.shape.limit else 0)
    world = of.build(PRESETS[preset], pages, policy)
    return Explorer(world, of.scene, Bounds(preemptions, faults), faults_for(world.machine.ultravisor))


@pytest.fixture
def every_state_is_looked_up(monkeypatch):
    monkeypatch.setattr(search, "LOOKED_UP", 1)


def both(searcher):
    return [searcher.exhaust(reduce=reduce, stop_at_first=False) for reduce in (True, False)]


@pytest.mark.parametrize("name", QUICK)
def test_with_sleep_sets_every_state_is_met_all_the_same(name, every_state_is_looked_up):
    reduced, plain = both(explorer(name))
    assert reduced.met == plain.met
    assert reduced.final_states == plain.final_states
    assert not reduced.broken
    assert not plain.broken
    assert reduced.steps <= plain.steps


@pytest.mark.parametrize("name", WITH_A_FAULT)
def test_a_failing_step_costs_the_same_in_every_order(name, every_state_is_looked_up):
    reduced, plain = both(explorer(name, faults=1))
    assert reduced.met == plain.met
    assert reduced.final_states == plain.final_states
    assert reduced.steps <= plain.steps


@pytest.mark.parametrize("name", QUICK)
def test_the_series_as_mailed_breaks_in_the_same_ways(name):
    reduced, plain = both(explorer(name, "posted"))
    assert {kind_of(each.violation) for each in reduced.broken} == {kind_of(each.violation) for each in plain.broken}


def test_sleep_sets_save_most_of_a_reboot():
    """What is left are runs that differ in what they come by, and ends of those that do not."""
    reduced, plain = both(explorer("reboot-into-protected"))
    assert reduced.schedules * 3 < plain.schedules
    assert reduced.steps * 3 < plain.steps


# --- where they are not sound, or nobody knows -------------------------------------------------------------------


def test_with_a_bound_on_preemptions_nothing_sleeps():
    reduced, plain = both(explorer("unmap-during-cleanup", preemptions=2))
    assert (reduced.schedules, reduced.steps, reduced.met) == (plain.schedules, plain.steps, plain.met)


def test_beside_somebody_elses_policy_nothing_sleeps():
    policy = load_policy(f"{EXAMPLES / 'one_cleaner.py'}:OneCleaner")
    reduced, plain = both(explorer("shutdown", policy=policy))
    assert (reduced.schedules, reduced.steps, reduced.met) == (plain.schedules, plain.steps, plain.met)


# --- in pieces ---------------------------------------------------------------------------------------------------


def test_several_processes_come_to_the_same_with_what_sleeps_handed_over():
    jobs = [Job(name, 2, Bounds(None), Switches()) for name in ("slot-taken-away", "reboot-into-protected")]
    alone, shared = ({}, {})
    for found, pieces in ((alone, work_here(jobs)), (shared, share_out(jobs, 2))):
        for job, outcome in pieces:
            found.setdefault(job.search, Outcome()).add(outcome)
    for name, outcome in alone.items():
        assert shared[name].final_states == outcome.final_states
        assert not shared[name].broken


def test_a_search_that_was_stopped_goes_on_with_what_slept():
    whole = explorer("unmap-during-cleanup").exhaust()
    searcher = explorer("unmap-during-cleanup")
    pieces, left = Outcome(), [search.Branch()]
    while left:
        piece = searcher.exhaust(left, most_schedules=7)
        pieces.add(piece)
        left = piece.left
    assert (pieces.schedules, pieces.met, pieces.final_states) == (whole.schedules, whole.met, whole.final_states)


# --- what is independent -----------------------------------------------------------------------------------------


def taken(searcher, schedule, choices):
    """The state, and who can go on, after these choices; None if one cannot be taken or breaks something."""
    run = searcher.run()
    try:
        run.follow(schedule)
        for choice in choices:
            if run.violation is not None or not run.clock.is_enabled(choice.actor):
                return None
            run.step(choice)
        return None if run.violation is not None else (run.digest(), run.clock.enabled())
    finally:
        run.close()


def footprint_of(searcher, schedule, choice):
    world, run = searcher.world, searcher.run()
    try:
        run.follow(schedule)
        actor = run.clock.actors[choice.actor]
        step, reads = actor.pending, world.watcher.reads(choice, actor)
        before = world.look_closely(run.standing())
        run.step(choice)
        if run.violation is not None:
            return None
        return world.watcher.footprint(choice.actor, step, reads, before, world.look_closely(run.standing()))
    finally:
        run.close()


def states_with_a_choice(searcher, runs):
    """Of random orders, each state in which there was a choice: how to come there, and what the choice was."""
    found, draw = {}, random.Random(1)
    for _ in range(runs):
        run, faults = searcher.run(), 0
        while enabled := run.enabled():
            choices = searcher.choices(run, enabled, -1, 0, faults)
            if len(enabled) > 1:
                found.setdefault(run.digest(), (tuple(run.choices), choices))
            choice = draw.choice(choices)
            faults += choice.fault != 0
            run.step(choice)
        run.close()
    return list(found.values())


def contradictions(searcher, *, runs, most=None):
    """Pairs of choices that are said to be independent, and come to something else in the other order."""
    looked_at, wrong = 0, []
    states = states_with_a_choice(searcher, runs)
    for schedule, choices in states[:: max(1, len(states) // (most or len(states) or 1))]:
        footprints = {choice: footprint_of(searcher, schedule, choice) for choice in choices}
        for one, other in itertools.combinations([each for each in choices if footprints[each]], 2):
            if one.actor != other.actor and footprints[one].is_independent_of(footprints[other]):
                looked_at += 1
                ends = [taken(searcher, schedule, order) for order in ((one, other), (other, one))]
                if None in ends or ends[0] != ends[1]:
                    wrong.append((schedule, one, other))
    return looked_at, wrong


@pytest.mark.parametrize("preset", ["repaired", "posted"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_steps_said_to_be_independent_come_to_the_same_in_either_order(name, preset):
    _, wrong = contradictions(explorer(name, preset), runs=10, most=50)
    assert wrong == []


@pytest.mark.parametrize("name", ["unmap-during-cleanup", "reboot-into-protected"])
def test_failing_steps_said_to_be_independent_do_so_too(name):
    looked_at, wrong = contradictions(explorer(name, faults=1), runs=10, most=60)
    assert wrong == []
    assert looked_at


def test_that_check_sees_a_relation_that_is_a_little_too_generous(monkeypatch):
    """A page's destruction that does not look whether its owner has CPUs: taken with a CPU's end it makes a state."""
    reads = Watcher.reads
    monkeypatch.setattr(Watcher, "reads", lambda self, *of: reads(self, *of) - {CPUS})
    _, wrong = contradictions(explorer("reboot-twice"), runs=30)
    assert wrong


@pytest.mark.parametrize("name", ["shutdown-during-cleanup", "killed-during-reboot"])
def test_both_checks_see_a_relation_that_is_far_too_generous(name, monkeypatch, every_state_is_looked_up):
    monkeypatch.setattr(Footprint, "is_independent_of", lambda _self, _other: True)
    _, wrong = contradictions(explorer(name), runs=20)
    assert wrong
    reduced, plain = both(explorer(name))
    assert reduced.met < plain.met


USED_BEHIND_A_TOUCH = {"Mm.users": "mm_users", "Mm.count": "mm_count", "ProtectedCounter.value": "protected counter"}
USED_UNDER_ITS_LOCK = {"Mm.to_drain", "SetAsideList.nodes"}


class StrictClock(ExploringClock):
    """Counters are used behind a touch of that name only; a set-aside list under its lock only."""

    def __init__(self, recorder, faults=None):
        super().__init__(faults)
        self._recorder = recorder

    def _resume(self, actor, value, thrown=None):
        recorder, step, outer = self._recorder, actor.pending, self._recorder.running
        recorder.found, recorder.running = {}, actor
        super()._resume(actor, value, thrown)
        used, recorder.found, recorder.running = set(recorder.found.values()), {}, outer
        assert not used & USED_UNDER_ITS_LOCK, f"{actor.name} after {step!r}"
        for each in used & USED_BEHIND_A_TOUCH.keys():
            touched = isinstance(step, Touch) and isinstance(step.what, Mm) and step.name == USED_BEHIND_A_TOUCH[each]
            assert touched, f"{actor.name} uses {each} after {step!r}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_texts_keep_to_what_reads_are_taken_from(name):
    searcher = explorer(name)
    recorder = AccessRecorder(searcher.world)
    try:
        of, faults = scenario(name), faults_for(searcher.world.machine.ultravisor)
        strict = Explorer(searcher.world, of.scene, Bounds(2, 1), faults, new_clock=partial(StrictClock, recorder))
        sample(strict, range(12), "reads", Manner.RANDOM)
    finally:
        recorder.stop()
