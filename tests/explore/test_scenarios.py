"""The scenarios: what the set covers, and that what they look at themselves can fail."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lazypv.clocks.live import LiveClock
from lazypv.explore.faults import FATAL_SIGNAL, UNKNOWN_RC, faults_for
from lazypv.explore.hunt import Case, Rung
from lazypv.explore.scenarios import SCENARIOS, scenario
from lazypv.explore.search import Bounds, Explorer
from lazypv.explore.switches import Switches
from lazypv.explore.threads import Threads
from lazypv.host.faults import ProcessKilledError
from lazypv.host.kvm import Result
from lazypv.machine import HostFrames
from lazypv.scenario.boot import GuestStartError
from lazypv.series import DEFECTS, PATCHES, Series

WANTED = {
    "reboot-into-protected",
    "reboot-into-normal",
    "reboot-twice",
    "shutdown",
    "shutdown-during-cleanup",
    "killed-at-any-point",
    "two-guests-in-one-process",
    "one-of-two-guests-reboots",
    "another-guest-afterwards",
    "unmap-during-cleanup",
    "taken-back-then-reboot",
    "device-and-guest",
    "small-guest",
    "slot-taken-away",
    "touched-after-it-was-taken-away",
    "reboot-with-the-parameter-off",
    "normal-with-the-parameter-off",
    "shutdown-with-the-parameter-off",
    "reboot-with-feature-bit-0",
}


def built(name, pages=2, series=None):
    return scenario(name).build(series or Series(), pages)


def ended(world, text):
    LiveClock().run(text)
    return [violation.number for violation in world.found]


def test_the_set_covers_what_was_asked_for():
    assert set(SCENARIOS) >= WANTED


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_scenario_names_a_patch_or_a_defect(name):
    """One set serves all searches: none is made for one of them."""
    text = f"{name} {SCENARIOS[name].says}"
    assert not re.search(r"\bD\d|\bpatch|\bdefect|\b0\d\b|\b1[01]\b", text)
    assert not any(each.title in text for each in (*PATCHES, *DEFECTS))
    assert SCENARIOS[name].says.endswith(".")


@pytest.mark.parametrize("name", ["one-of-two-guests-reboots", "device-and-guest", "slot-taken-away"])
def test_one_failing_step_and_one_preemption_break_nothing(name):
    """Those with several actors, at the smallest size; the others are searched elsewhere."""
    assert Case(scenario(name), Rung(2, 0, 1), Switches()).search().broken == []
    assert Case(scenario(name), Rung(2, 1, 0), Switches()).search().broken == []


def test_a_guest_that_loses_what_it_wrote_is_noticed():
    """Invariant 31."""
    world = built("one-of-two-guests-reboots")
    assert ended(world, world.keeps(world.vms[1], [0, 1])) == []
    LiveClock().run(world.runs[1].write(0, [np.array([0])]))
    world.runs[1].stamp += 1
    LiveClock().run(world.runs[1].write(0, [np.array([0])]))
    assert ended(world, world.keeps(world.vms[1], [0, 1])) == [31]


def test_a_guest_that_is_stopped_where_it_has_no_memory_is_no_violation():
    world = built("slot-taken-away")
    vm = world.vms[0]
    LiveClock().run(world.runs[0].unshare(0, np.array([1])))
    world.host.throttle.open = False
    LiveClock().run(world.disable(vm))
    LiveClock().run(vm.remove_slot(1, 2))
    assert ended(world, world.touches_what_may_be_gone(vm, 1)) == []
    world.host.throttle.open = True


def test_a_guest_that_is_stopped_in_memory_that_it_has_is_one():
    """Patch 04 is missing."""
    world = built("slot-taken-away", series=Series().without("04"))
    vm = world.vms[0]
    LiveClock().run(world.runs[0].unshare(0, np.array([1])))
    world.host.throttle.open = False
    LiveClock().run(world.disable(vm))
    with pytest.raises(ProcessKilledError, match="SIGSEGV"):
        LiveClock().run(world.touches_what_may_be_gone(vm, 1))
    world.host.throttle.open = True


def test_memory_that_is_taken_away_leaves_the_slots_around_it():
    world = built("shutdown", pages=4)
    vm = world.vms[0]
    LiveClock().run(vm.remove_slot(1, 3))
    assert vm.is_backed(np.arange(5)).tolist() == [True, False, False, True, False]


# --- threads of a process ----------------------------------------------------------------------------------------


async def _fails_with(error):
    raise error


def test_the_last_thread_of_a_killed_process_ends_it():
    world = built("one-of-two-guests-reboots")
    threads = Threads(world, threads=2)
    LiveClock().run(threads.run(_fails_with(ProcessKilledError(FATAL_SIGNAL, "killed"))))
    assert not world.processes[0].mm.torn_down
    LiveClock().run(threads.run(threads.survive()))
    assert world.processes[0].mm.torn_down


def test_threads_that_nobody_kills_leave_the_process_alone():
    world = built("shutdown")
    threads = Threads(world)
    LiveClock().run(threads.run(threads.survive()))
    assert not world.processes[0].mm.torn_down


@pytest.mark.parametrize(
    "error", [ProcessKilledError("SIGSEGV", "no handler"), ProcessKilledError("SIGSEGV", "refused", UNKNOWN_RC + 1)]
)
def test_an_end_that_nobody_injected_is_not_forgiven(error):
    world = built("shutdown")
    with pytest.raises(ProcessKilledError):
        LiveClock().run(Threads(world).run(_fails_with(error)))


@pytest.mark.parametrize("faulted", [False, True])
def test_a_guest_that_cannot_be_started_ends_its_process_only_if_a_step_has_failed(faulted):
    world = built("shutdown")
    world.faulted = faulted
    error = GuestStartError("KVM_PV_ENABLE", Result(-5, 1, 0))
    text = Threads(world).run(_fails_with(error))
    if faulted:
        LiveClock().run(text)
        assert world.processes[0].mm.torn_down
    else:
        with pytest.raises(GuestStartError):
            LiveClock().run(text)


def test_what_failed_before_is_no_excuse_for_a_guest_that_has_nothing_to_do_with_it():
    """Patch 01: another guest of the host cannot start, since its top table is still marked."""
    of = scenario("another-guest-afterwards")
    world = of.build(Series().without("01"), 2)
    faults = faults_for(world.machine.ultravisor)
    outcome = Explorer(world, of.scene, Bounds(0, 1), faults).exhaust(stop_at_first=False)
    assert 35 in {broken.violation.number for broken in outcome.broken}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_small_world_has_as_much_memory_as_its_scenario_takes(name, monkeypatch):
    """Where memory runs out is a fault that somebody chooses, not a matter of how small the world is."""
    failed = []
    for method in ("allocate", "allocate_run"):
        allocate = getattr(HostFrames, method)

        def watched(frames, *arguments, allocate=allocate, **more):
            answer = allocate(frames, *arguments, **more)
            failed.extend([arguments] if answer is None else [])
            return answer

        monkeypatch.setattr(HostFrames, method, watched)
    of = SCENARIOS[name]
    for pages in {of.shape.pages, 2, 8} if of.shape.limit is None else {of.shape.pages}:
        Explorer(of.build(Series(), pages), of.scene, Bounds(1)).exhaust(most_schedules=100)
    assert not failed
