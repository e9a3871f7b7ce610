"""Defects of the series as posted, D15 to D27, and all at once: CPUs, the set-aside list, what the thread leaves."""

from __future__ import annotations

import numpy as np
import pytest

from lazypv.errors import ModelError
from lazypv.host import kvm
from lazypv.host.exit import drain_set_aside, exit_mmap
from lazypv.host.kvm import EIO, Result
from lazypv.invariants import check_frames
from lazypv.series import Series
from lazypv_kernels.layout import SEC

from .stepping import Stepper, acquires, named
from .worlds import GUEST_PAGES, LIMIT_PAGES, REFUSED, ZERO_PAGE, posted

OLD_PAGE = LIMIT_PAGES + 100
"""A guest page that a lazy reboot leaves to the old configuration."""


# --- D15 ---------------------------------------------------------------------------------------------------------


def _disable_twice_since_a_cpu_fails(world):
    """The first CPU is destroyed, the second is not; userspace tries again."""
    world.full_guest()
    world.fail("DESTROY_SEC_CPU", REFUSED, after=1)
    assert world.disable().errno == EIO
    world.repair()
    return world.disable()


def test_d15_a_cpu_that_is_destroyed_again_frees_its_data_area_again(make_world):
    """Invariant 15: a reference that nobody holds is dropped."""
    world = make_world(posted("D15"))
    with pytest.raises(ModelError, match="dropped twice"):
        _disable_twice_since_a_cpu_fails(world)


def test_d15_somebody_else_loses_a_page(make_world):
    """Invariants 15, 25: the area has a new owner meanwhile, whose reference is dropped."""
    world = make_world(posted("D15"))
    world.full_guest()
    sidas = [vcpu.sida for vcpu in world.vm.kvm.vcpus]
    world.fail("DESTROY_SEC_CPU", REFUSED, after=1)
    world.disable()
    world.repair()
    theirs = world.machine.frames.allocate(world.machine.frames.free())
    assert np.isin(np.concatenate(sidas), theirs).all()
    assert world.disable().errno == EIO
    assert world.is_free(np.concatenate(sidas)).all()


def test_d15_does_not_show_where_each_cpu_is_destroyed_once(make_world):
    """Closing a VM asks for the handle first, as posted too."""
    world = make_world(posted("D15"))
    world.full_guest()
    world.disable()
    world.protect()
    world.disable()
    world.drain()
    assert all(vcpu.stale_sida is not None for vcpu in world.vm.kvm.vcpus)
    world.end_clean()


def test_d15_repaired_a_second_try_frees_nothing(world):
    """Invariant 15."""
    assert _disable_twice_since_a_cpu_fails(world) == Result(EIO, REFUSED.rc, REFUSED.rrc)
    assert world.broken() == []


# --- D17 ---------------------------------------------------------------------------------------------------------


def _process_leaves_between_the_look_and_the_put(world):
    """The cleaner has seen two users, then the process exits, then the cleaner drops its own."""
    world.reboot_with_old_pages()
    world.protect()
    world.write(world.all_pages(), 8)
    world.drain()
    stepper = Stepper()
    stepper.run(kvm.disable(world.vm))
    (thread,) = stepper.threads
    mm = world.process.mm

    def about_to_leave(step):
        writes_users = step.label == "mm_users" and step.write
        return writes_users or (acquires("mmap_lock")(step) and not step.shared)

    thread.until(about_to_leave)
    assert mm.users > 1
    stepper.run(world.process.exit())
    assert mm.users == 1
    thread.finish()
    return mm


def test_d17_pages_go_onto_a_list_that_nobody_will_read(make_world):
    """Invariant 27: mm_users was 2 when it was looked at, and the put is the last all the same."""
    world = make_world(posted("D17"))
    mm = _process_leaves_between_the_look_and_the_put(world)
    assert (mm.pv_sync_destroy, mm.torn_down) == (False, True)
    assert mm.set_aside.pages > GUEST_PAGES // 2
    assert world.broken() == [27]
    assert world.machine.frames.free() < world.free_at_start - GUEST_PAGES // 2


def test_d17_a_cleaner_that_sees_itself_alone_asks_for_exports(make_world):
    """Semantics 4.9, thread order, 2: what was meant to happen."""
    world = make_world(posted("D17"))
    world.reboot_with_old_pages()
    world.exit()
    world.drain()
    assert world.process.mm.pv_sync_destroy
    world.check_all_gone()


def test_d17_repaired_the_last_user_knows_that_it_is(world):
    """Invariant 27."""
    mm = _process_leaves_between_the_look_and_the_put(world)
    assert mm.pv_sync_destroy
    assert world.broken() == []
    world.check_all_gone()


# --- D18 ---------------------------------------------------------------------------------------------------------


def _shutdown_without_a_record(world):
    world.full_guest()
    world.fail("record", None)
    world.exit()
    assert world.vm.closed_result == Result(0, 1, 0)
    assert world.firmware.configurations == {}


def test_d18_set_aside_pages_are_lost_when_there_is_no_memory_for_the_record(make_world):
    """Invariant 27: the immediate path cleans them through their configuration, and nobody frees them."""
    world = make_world(posted("D18"))
    _shutdown_without_a_record(world)
    aside = world.process.mm.set_aside.pages
    assert aside > GUEST_PAGES // 2
    assert world.process.mm.to_drain == 0
    assert world.machine.frames.free() < world.free_at_start - GUEST_PAGES // 2
    assert world.broken() == [27]


def test_d18_repaired_the_immediate_path_works_the_list_off(world):
    """Invariant 27."""
    _shutdown_without_a_record(world)
    assert world.broken() == []
    world.check_all_gone()


# --- D19, D20 ----------------------------------------------------------------------------------------------------


def _two_vms(world):
    second = world.new_vm(process=world.process)
    for vm in (world.vm, second):
        world.protect(vm)
        world.write(world.all_pages(vm), 7, vm)
    return second


def _first_cleaner_while_the_second_vm_has_cpus(world):
    """The process exits; the thread of the first VM ends before the second VM's CPUs are destroyed; stepper, exit."""
    second = _two_vms(world)
    stepper = Stepper()
    exiting = stepper.start(world.process.exit())
    exiting.until(lambda step: step.label == "DESTROY_SEC_CPU" and step.what is second.kvm.vcpus[0])
    stepper.threads[0].finish()
    return stepper, exiting


def test_d19_pages_of_a_vm_that_has_cpus_are_freed_secure_by_the_cleaner_of_another(make_world):
    """Invariant 1: refused, and dropped all the same."""
    world = make_world(posted("D19"))
    stepper, exiting = _first_cleaner_while_the_second_vm_has_cpus(world)
    assert world.process.mm.set_aside.pages == 0
    assert 1 in {number for number, _ in check_frames(world.host)}
    exiting.finish()
    assert len(stepper.threads) == 1, "the second VM finds nothing to put off"


def _two_cleaners_at_the_same_node(world):
    """Both look at the first node before one of them has taken it off."""
    _two_vms(world)
    stepper = Stepper()
    stepper.run(world.process.exit())
    first, second = stepper.threads
    for thread in (first, second):
        thread.until(named("deferred_list"))
        thread.step()
    for thread in (first, second):
        thread.finish()


def test_d19_two_cleaners_take_the_same_node_off_the_list(make_world):
    """Invariant 26: each of its pages is put twice."""
    world = make_world(posted("D19"))
    with pytest.raises(ModelError, match="dropped twice"):
        _two_cleaners_at_the_same_node(world)
    assert [number for number, _ in world.host.ledger.broken] == [26]


def _locks_held_while_pages_are_set_aside(world):
    world.full_guest()
    stepper = Stepper()
    stepper.run(world.process.exit())
    return stepper.locks_held_at("set aside")


def test_d19_pages_are_set_aside_without_a_lock(make_world):
    """Invariant 26: nothing makes the list one context's at a time."""
    assert _locks_held_while_pages_are_set_aside(make_world(posted("D19"))) == [[]]


def test_d19_repaired_pages_are_set_aside_under_the_lock(world):
    """Invariant 26."""
    assert _locks_held_while_pages_are_set_aside(world) == [["deferred_list"]]


def test_d19_repaired_a_refused_page_goes_back_and_the_list_has_a_lock(world):
    """Invariants 1, 26."""
    stepper, exiting = _first_cleaner_while_the_second_vm_has_cpus(world)
    assert world.process.mm.set_aside.pages > 0
    world.check()
    exiting.finish()
    stepper.threads[1].finish()
    world.check_all_gone()


def test_d19_repaired_two_cleaners_that_begin_together_share_the_list(world):
    """Invariant 26: who comes second finds it empty."""
    _two_vms(world)
    stepper = Stepper()
    stepper.run(world.process.exit())
    first, second = stepper.threads
    first.until(acquires("deferred_list"))
    second.until(acquires("deferred_list"))
    first.step()
    with pytest.raises(AssertionError, match="is held"):
        second.step()


def _drain_while_the_cpus_live(world):
    """The last drain meets pages whose owner has CPUs; how many there were."""
    handle = world.full_guest()
    mm = world.process.mm
    stepper = Stepper()
    mm.users = 0
    stepper.run(exit_mmap(world.host, mm))
    aside = world.owned(handle)
    stepper.run(drain_set_aside(world.host.pages, mm, "destroyed_background"))
    return aside


def test_d20_a_page_that_was_refused_goes_to_the_allocator_secure(make_world):
    """Invariant 1: the dropped reference was the last."""
    world = make_world(posted("D20"))
    aside = _drain_while_the_cpus_live(world)
    assert aside.size > GUEST_PAGES // 2
    assert world.is_free(aside).all()
    assert world.states(aside) == {SEC: aside.size}
    assert 1 in {number for number, _ in check_frames(world.host)}


def test_d20_repaired_a_page_that_was_refused_is_exported_before_it_is_free(world):
    """Invariant 1."""
    aside = _drain_while_the_cpus_live(world)
    assert world.is_free(aside).all()
    assert world.states(aside)[SEC] == 0
    world.check()


# --- D22, D27 ----------------------------------------------------------------------------------------------------


def _destroy_fails_in_the_thread(world):
    handle = world.full_guest()
    world.fail("DESTROY_SEC_CONF")
    assert world.disable() == Result(0, 1, 42)
    world.drain()
    world.repair()
    return handle


def test_d22_a_configuration_that_could_not_be_destroyed_is_in_no_books(make_world):
    """Invariant 34: neither destroyed nor leaked as far as anybody can tell; its storage has references of nobody."""
    world = make_world(posted("D22"))
    handle = _destroy_fails_in_the_thread(world)
    assert world.host.leaked == {}
    assert world.host.ledger.leaked_frames == 0
    assert handle in world.firmware.configurations
    assert {25, 34} <= set(world.broken())


def test_d27_the_record_stays_behind(make_world):
    """Invariant 34: what nobody needs any more is not given back."""
    world = make_world(posted("D27"))
    handle = _destroy_fails_in_the_thread(world)
    assert [record.handle for record in world.host.records] == [handle]
    assert world.host.threads == 0
    assert world.broken() == [34]


def test_d27_does_not_show_when_the_destroy_succeeds(make_world):
    """Semantics 5: on the error return only."""
    world = make_world(posted("D27"))
    world.full_guest()
    world.disable()
    world.drain()
    assert world.host.records == []
    world.end_clean()


def test_d22_d27_repaired_answer_and_storage_are_in_the_books_and_the_record_is_gone(world):
    """Invariants 32, 34."""
    handle = _destroy_fails_in_the_thread(world)
    assert world.host.leaked[handle][2] == REFUSED
    assert world.host.records == []
    assert world.broken() == []


# --- all at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy_destroy", [True, False])
def test_as_posted_a_guest_reboots_and_runs(make_world, lazy_destroy):
    """Nothing of what is wrong keeps the plain case from working: two runs, and what the second reads is zero."""
    world = make_world(Series.posted(), lazy_destroy=lazy_destroy)
    world.full_guest()
    assert world.disable() == Result(0, 1, 42)
    world.drain()
    world.protect()
    assert world.read(OLD_PAGE) == ZERO_PAGE
    assert world.broken() == ([18] if lazy_destroy else [18, 25, 34, 38])
