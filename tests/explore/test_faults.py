"""What may go wrong with a step, and that the repaired series survives it; what was found that no source lists."""

from __future__ import annotations

import numpy as np
import pytest

from lazypv.explore.faults import FATAL_SIGNAL, PENDING_SIGNALS, UNKNOWN_RC, faults_for
from lazypv.explore.scenarios import scenario
from lazypv.explore.search import Bounds, Explorer
from lazypv.host.faults import ProcessKilledError
from lazypv.host.secure_pages import SecurePages
from lazypv.series import Series
from lazypv.steps import Acquire, Alloc, Bulk, Call, Lock, Spawn, Touch
from lazypv.ultravisor.interface import UVC_RC_NEED_DESTROY
from lazypv_kernels.layout import SEC, STATE_MASK


def explorer(name, series=None, *, only=None, preemptions=0):
    """One failing step; `only`: names of the faults that may happen."""
    of = scenario(name)
    world = of.build(series or Series(), 2)
    every = faults_for(world.machine.ultravisor)
    chosen = every if only is None else lambda step: [each for each in every(step) if each[0] in only]
    return Explorer(world, of.scene, Bounds(preemptions, 1), chosen)


def bulk(name):
    return Bulk(name, lambda column: None, np.arange(1))


def nothing():
    return None


@pytest.mark.parametrize(
    ("step", "names"),
    [
        (Alloc("record", nothing), ["no memory"]),
        (Alloc("list node", nothing), ["no memory"]),
        (Alloc("top table", nothing), ["no memory"]),
        (Alloc("guest memory", nothing), []),
        (Spawn("kvm_s390_pv_destroy_vm_thread", nothing), ["no thread"]),
        (Call("DESTROY_SEC_CONF", nothing), ["refused", "busy", "partial"]),
        (Call("DESTROY_SEC_CPU", nothing), ["refused", "busy"]),
        (Call("CREATE_SEC_CONF", nothing), ["refused", "busy", "refused, to be destroyed"]),
        (Call("gather", nothing, uvc=False), []),
        (bulk("destroy pages"), ["refused", "busy"]),
        (bulk("export unmapped pages"), ["refused", "busy"]),
        (bulk("make accessible"), ["refused", "busy"]),
        (bulk("make secure"), ["refused", "busy", "export busy"]),
        (bulk("guest access"), []),
        (Touch(None, PENDING_SIGNALS), ["fatal signal"]),
        (Touch(None, PENDING_SIGNALS, write=True), []),
        (Touch(None, "mm_users"), []),
        (Acquire(Lock("mmap_lock"), shared=True), []),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_what_may_go_wrong_with_a_step(step, names, machine):
    assert [name for name, _ in faults_for(machine.ultravisor)(step)] == names


def test_a_refused_page_is_refused_once_and_a_busy_one_is_busy_once(machine):
    """Afterwards the call works; another call is not meant."""
    uv = machine.ultravisor
    frames = machine.frames.allocate(1)
    destroy = Bulk("destroy pages", uv.destroy_pages, frames)
    (_, refused), (_, busy) = faults_for(uv)(destroy)
    assert refused(lambda: uv.destroy_pages(frames)).rc.tolist() == [UNKNOWN_RC]
    answer = busy(lambda: uv.destroy_pages(frames))
    assert (answer.rc.tolist(), answer.busy) == ([0], 1)
    assert refused(lambda: uv.export_pages(frames)).rc.tolist() == [1]
    assert uv.destroy_pages(frames).rc.tolist() == [1]


def test_a_configuration_may_exist_although_its_creation_was_refused(machine):
    """0x8000: it has to be destroyed."""
    (_, made) = faults_for(machine.ultravisor)(Call("CREATE_SEC_CONF", nothing))[2]
    frames = machine.frames.allocate_run(6, 4)
    uv = machine.ultravisor
    answer = made(lambda: uv.create_sec_conf(frames[4:], 1, 1 << 20, frames[:4], np.zeros(1, np.uint32)))
    assert not answer.ok
    assert answer.rc & UVC_RC_NEED_DESTROY
    assert uv.destroy_sec_conf(answer.handle).ok


@pytest.mark.parametrize("name", ["reboot-into-protected", "shutdown", "asked-again", "give-back-after-reboot"])
def test_busy_and_partial_are_tried_again_and_nothing_but_time_is_lost(name):
    """Invariant 36: whatever step it is, nothing breaks, and no run gives up on it."""
    searcher = explorer(name, only={"busy", "partial", "export busy"})
    outcome = searcher.exhaust()
    assert outcome.broken == []
    assert outcome.schedules > 5
    assert len(outcome.final_states) == 1, "it ends as if nothing had happened"


def test_a_fatal_signal_ends_the_process_where_a_thread_looks_for_one():
    searcher = explorer("reboot-into-normal", only={"fatal signal"})
    outcome = searcher.exhaust()
    assert outcome.broken == []
    assert outcome.schedules == 2
    assert searcher.world.processes[0].mm.torn_down


def test_somebody_may_kill_the_process_at_any_point():
    outcome = explorer("killed-at-any-point", only=set(), preemptions=1).exhaust()
    assert outcome.broken == []
    assert len(outcome.final_states) > 5


def test_only_a_refusal_that_was_injected_excuses_the_end_of_a_guest():
    """A guest that is killed for anything else is a violation, whether or not some step has failed."""
    assert FATAL_SIGNAL != "SIGSEGV"
    searcher = explorer("reboot-into-protected", Series().without("07"), only={"no memory"})
    outcome = searcher.exhaust(stop_at_first=False)
    assert {broken.violation.number for broken in outcome.broken} == {35}
    assert explorer("reboot-into-protected", only={"refused"}).exhaust().broken == []


# --- found by exploring ------------------------------------------------------------------------------------------


async def _drops_the_reference_whatever_was_answered(self, frames):
    await self._until_answered(
        "export unmapped pages",
        lambda part: self._call_and_settle(self.ultravisor.export_pages, part, drop=True),
        frames,
    )


def test_a_page_that_cannot_be_exported_at_unmapping_is_leaked_and_never_free(monkeypatch):
    """Invariant 1: no source lists it; unmap hooks that look at no result give the allocator a secure page."""
    outcome = explorer("unmap-during-cleanup", only={"refused"}).exhaust()
    assert outcome.broken == []
    monkeypatch.setattr(SecurePages, "export_and_put", _drops_the_reference_whatever_was_answered)
    broken = explorer("unmap-during-cleanup", only={"refused"}).exhaust().broken[0]
    assert broken.violation.number == 1
    assert any(taken.step == "export unmapped pages" and taken.fault == "refused" for taken in broken.steps)


def test_a_page_that_could_not_be_exported_is_in_the_books():
    """Until its configuration is gone it is secure, and afterwards nobody's."""
    world = scenario("shutdown-with-the-parameter-off").build(Series(), 2)
    vm = world.vms[0]
    frame = vm.gmap.pte.entry(0) - 1
    text = world.host.pages.export_and_put(np.array([frame]))
    step = text.send(None)
    refused = dict(faults_for(world.machine.ultravisor)(step))["refused"]
    with pytest.raises(StopIteration):
        text.send(refused(lambda: step.operation(*step.columns)))
    assert [frames.tolist() for _, frames in world.host.ledger.leaks] == [[frame]]
    assert world.machine.frames.reference_count(frame) == 1
    from lazypv.ultravisor.vault import firmware_of

    assert firmware_of(world.machine.ultravisor).state[frame] & STATE_MASK == SEC


def test_an_import_whose_export_is_busy_is_tried_again():
    """Invariant 36, patch 07: imported without it, a page that the old guest shared would be refused."""
    searcher = explorer("reboot-into-protected", only={"export busy"})
    outcome = searcher.exhaust(stop_at_first=False)
    assert outcome.broken == []
    assert outcome.schedules > 1


def test_a_killed_process_says_what_the_ultravisor_had_answered():
    error = ProcessKilledError("SIGSEGV", "the import was refused", UNKNOWN_RC)
    assert (error.signal, error.rc) == ("SIGSEGV", UNKNOWN_RC)
