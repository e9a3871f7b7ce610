"""Shutdowns: who is the last, what is set aside, what is exported, and that nothing stays behind."""

from __future__ import annotations

import numpy as np
import pytest

from lazypv.clocks.actors import Fault
from lazypv.host import kvm
from lazypv.host.exit import drain_set_aside, exit_mmap, unmap_range
from lazypv.host.faults import ProcessKilledError
from lazypv.host.kvm import Result
from lazypv.series import Series
from lazypv_kernels.layout import NS, SEC

from .stepping import Stepper, acquires, named
from .worlds import GUEST_PAGES, LIMIT_PAGES, NODE_CAPACITY


def _full_guest(world):
    handle = world.protect()
    world.write(world.all_pages(), 7)
    return handle


def test_after_a_shutdown_the_machine_is_as_before(world):
    """Invariants 1, 25, 34: every frame free and non-secure, every counter at its end."""
    _full_guest(world)
    world.exit()
    assert world.vm.closed_result == Result(0, 1, 42)
    world.drain()
    world.check_all_gone()


def test_the_accounts_of_a_shutdown_balance(world):
    """Design, accounts."""
    handle = _full_guest(world)
    owned, exported = world.owned(handle).size, world.exported(handle)
    world.exit()
    world.drain()
    by_export, by_destruction = world.firmware.history[handle]
    books = world.host.ledger.pages
    assert books["destroyed_background"] + by_export - exported + by_destruction == owned == GUEST_PAGES
    assert by_destruction == 0


def test_a_shutdown_of_a_guest_that_is_not_protected_puts_every_page(world):
    """Counter 0: the unmap hooks have nothing to do."""
    world.write(world.all_pages(), 7)
    world.exit()
    assert sum(world.issued(name) for name in ("CONV_FROM_SEC_STOR", "DESTR_SEC_STOR", "DESTROY_SEC_CONF")) == 0
    world.check_all_gone()


def test_every_page_on_the_list_is_there_once_with_one_reference(world):
    """Invariant 26: and a node holds what fits on it."""
    _full_guest(world)
    stepper = Stepper()
    stepper.run(world.process.exit())
    nodes = list(world.process.mm.set_aside.nodes)
    frames = np.concatenate([node.frames for node in nodes])
    assert np.unique(frames).size == frames.size
    assert max(node.count for node in nodes) == NODE_CAPACITY
    cached = {int(frame) for frame in frames} & set(world.process.cached.tolist())
    assert cached == set()
    for frame in frames:
        assert world.machine.frames.reference_count(int(frame)) in (1, 2)
    guest = frames[world.firmware.state[frames] == SEC]
    assert {world.machine.frames.reference_count(int(frame)) for frame in guest} == {1}
    world.check()
    stepper.threads[0].finish()
    world.check_all_gone()


def test_pages_of_a_file_keep_the_references_of_its_cache(world):
    """Design: the list meets pages of the process too; destroying them is a no-op that must not clear them."""
    cached = world.process.cached
    content = np.random.default_rng(1).integers(0, 255, (cached.size, 4096), dtype=np.uint8)
    world.machine.copy_pages(cached, content, write=True)
    world.machine.frames.get(cached)
    _full_guest(world)
    world.exit()
    world.drain()
    assert [world.machine.frames.reference_count(int(frame)) for frame in cached] == [1] * cached.size
    found = np.empty_like(content)
    world.machine.copy_pages(cached, found, write=False)
    assert np.array_equal(found, content)
    world.machine.frames.put(cached)
    world.check_all_gone()


def test_the_list_is_destroyed_only_after_the_cpus(world):
    """Semantics 4.9, why destroy is legal: the order of calls."""
    _full_guest(world)
    world.clock.timeline = []
    world.exit()
    world.drain()
    names = [event.step for event in world.clock.timeline]
    assert names.index("set aside") < names.index("DESTROY_SEC_CPU")
    last_cpu = len(names) - 1 - names[::-1].index("DESTROY_SEC_CPU")
    assert last_cpu < names.index("destroy set-aside pages") < names.index("DESTROY_SEC_CONF")


def test_without_any_page_for_a_node_every_page_is_exported_and_the_exit_ends(world):
    """Invariant 37."""
    _full_guest(world)
    mapped = sum(vma.pte.size for vma in world.process.mm.vmas)
    exports = world.issued("CONV_FROM_SEC_STOR")
    world.fail("list node", None)
    world.exit()
    world.repair()
    world.drain()
    assert world.issued("CONV_FROM_SEC_STOR") - exports == mapped
    assert world.vm.closed_result == Result(0, 1, 0), "nothing is left to put off"
    world.check_all_gone()


def test_a_node_that_cannot_be_had_is_asked_for_again_with_the_next_page(world):
    """Semantics 4.9: nothing is lost; only the pages in between are exported too."""
    _full_guest(world)
    tries = []

    def fault(step):
        if step.label == "list node":
            tries.append(step)
            return Fault(None) if len(tries) <= 3 else None
        return None

    world.clock.faults = fault
    world.exit()
    world.drain()
    assert len(tries) > 3
    assert world.host.ledger.pages["set_aside"] > GUEST_PAGES // 2
    world.check_all_gone()


def test_partial_unmapping_exports_and_sets_nothing_aside(world):
    """Semantics 4.9: the OOM reaper and swap take pages while the rest lives on."""
    _full_guest(world)
    exports = world.issued("CONV_FROM_SEC_STOR")
    world.run(unmap_range(world.host, world.vm.mm, world.vm.slots[0], 100, 150))
    assert world.issued("CONV_FROM_SEC_STOR") - exports == 50
    assert len(world.process.mm.set_aside.nodes) == 0
    world.check()


def test_a_page_given_back_against_the_guests_will_is_not_replaced_by_a_fresh_one(world):
    """Invariant 31: what is imported again reads what the guest last wrote, or the import fails."""
    _full_guest(world)
    world.run(unmap_range(world.host, world.vm.mm, world.vm.slots[0], 100, 101))
    with pytest.raises(ProcessKilledError, match=r"0x3e.*import was refused"):
        world.read(100)


# --- who is the last ---------------------------------------------------------------------------------------------


def test_shutdown_during_a_cleanup_ends_the_walk_early_and_the_cleaner_exports(world):
    """Semantics 4.8, early end; D17: the thread is the last user, nobody would work off a list (invariant 27)."""
    old = world.reboot_with_old_pages()
    owned = world.owned(old).size
    exported = world.exported(old)
    world.exit()
    mm = world.process.mm
    assert not mm.torn_down, "the cleaner keeps it"
    world.drain()
    assert mm.pv_sync_destroy
    assert world.host.ledger.pages["set_aside"] == 0
    by_export, by_destruction = world.firmware.history[old]
    assert by_export - exported + world.host.ledger.pages["destroyed_background"] + by_destruction == owned
    assert by_export > exported
    world.check_all_gone()


def test_a_process_that_leaves_just_before_the_cleaner_does_not_leave_a_list_behind(world):
    """D17: decided under one lock with the put, so that it cannot be decided on a stale count."""
    world.reboot_with_old_pages()
    world.protect()
    world.drain()
    stepper = Stepper()
    stepper.run(kvm.disable(world.vm))
    (thread,) = stepper.threads
    thread.until(lambda step: acquires("mmap_lock")(step) and not step.shared)
    mm = world.process.mm
    assert mm.users > 1, "here the cleaner as posted takes itself for one among others"
    stepper.run(world.process.exit())
    assert mm.users == 1
    thread.finish()
    assert mm.pv_sync_destroy
    assert mm.set_aside.pages == 0
    world.check_all_gone()


def test_a_cleaner_that_leaves_before_the_process_does_not_stop_the_list(world):
    """D17, the other way round: the process is the last, its pages are set aside and worked off."""
    world.reboot_with_old_pages()
    world.protect()
    world.write(world.all_pages(), 8)
    world.drain()
    assert not world.process.mm.pv_sync_destroy
    world.exit()
    world.drain()
    assert world.host.ledger.pages["set_aside"] > GUEST_PAGES // 2
    world.check_all_gone()


def test_shutdown_of_the_next_run_during_the_cleanup_of_the_last(world):
    """Two cleaners, both with the address space; the last of them exports what is mapped."""
    world.reboot_with_old_pages()
    world.protect()
    world.write(world.all_pages(), 8)
    world.exit()
    assert world.host.threads == 2
    world.drain()
    assert world.process.mm.pv_sync_destroy
    world.check_all_gone()


@pytest.mark.parametrize("numbers", [("08",), ("09",), ("08", "09"), ("02",), ("05",), ("07",), ("11",), ()])
def test_whatever_patches_are_missing_a_shutdown_amid_a_cleanup_leaves_nothing(make_world, numbers):
    """Invariants 1, 25, 34 for every presence of the patches that are about time, not safety."""
    world = make_world(Series().without(*numbers))
    world.reboot_with_old_pages()
    world.protect()
    world.write(np.arange(LIMIT_PAGES, GUEST_PAGES, 3), 8)
    world.exit()
    world.drain()
    world.check_all_gone()


def test_an_immediate_destroy_that_turns_out_to_be_the_last_user_exports(world):
    """Invariant 27, D18: its own list is behind it; what it unmaps now nobody would come for."""
    world.reboot_with_old_pages()
    world.protect()
    stepper = Stepper(no_memory_for=("record",))
    exiting = stepper.start(world.process.exit())
    exiting.until(named("destroy pages"))
    assert world.process.mm.users == 2, "this, and the cleaner of the first run"
    world.drain()
    assert world.process.mm.users == 1
    exiting.finish()
    assert world.process.mm.set_aside.pages == 0
    world.check_all_gone()


# --- two VMs in one process --------------------------------------------------------------------------------------


def _two_vms(world):
    second = world.new_vm(process=world.process)
    for vm in (world.vm, second):
        world.protect(vm)
        world.write(world.all_pages(vm), 7, vm)
    return second


def test_two_vms_of_one_process_shut_down_together(world):
    """D19, D20: one list, two cleaners, pages of a guest whose CPUs live met by the cleaner of the other."""
    _two_vms(world)
    assert world.process.mm.protected.value == 2
    world.exit()
    world.drain()
    assert world.host.ledger.leaked_frames == 0
    world.check_all_gone()


def test_pages_of_the_vm_whose_cpus_live_go_back_on_the_list(world):
    """D19: the first cleaner destroys its own and leaves the others to the second."""
    second = _two_vms(world)
    mm = world.process.mm
    stepper = Stepper()
    exiting = stepper.start(world.process.exit())
    exiting.until(lambda step: step.label == "DESTROY_SEC_CPU" and step.what is second.kvm.vcpus[0])
    first_thread = stepper.threads[0]
    of_second = world.owned(second.kvm.pv.handle).size
    exports = world.issued("CONV_FROM_SEC_STOR")
    first_thread.finish()
    assert mm.set_aside.pages == of_second
    assert world.owned(second.kvm.pv.handle).size == of_second
    assert world.issued("CONV_FROM_SEC_STOR") == exports
    world.check()
    exiting.finish()
    stepper.threads[1].finish()
    world.check_all_gone()


def test_a_page_refused_in_the_last_drain_is_exported_and_not_freed_secure(world):
    """D20: invariant 1; its owner's CPUs live, and nobody comes after this cleaner."""
    handle = _full_guest(world)
    mm = world.process.mm
    stepper = Stepper()
    mm.users = 0
    stepper.run(exit_mmap(world.host, mm))
    aside = world.owned(handle).size
    assert aside > GUEST_PAGES // 2
    stepper.run(drain_set_aside(world.host.pages, mm, "destroyed_background"))
    assert world.host.ledger.pages["destroyed_background"] == 0, "every page of the guest was refused"
    assert world.owned(handle).size == 0
    assert world.host.ledger.pages["set_aside"] == aside
    world.check()


def test_two_cleaners_that_meet_at_the_list_neither_lose_nor_double_a_page(world):
    """D19: the second takes the list while the first holds pages of the second in its hand."""
    second = _two_vms(world)
    mm = world.process.mm
    stepper = Stepper()
    exiting = stepper.start(world.process.exit())
    exiting.until(lambda step: step.label == "DESTROY_SEC_CPU" and step.what is second.kvm.vcpus[0])
    first = stepper.threads[0]
    first.until(named("destroy set-aside pages"))
    while not acquires("deferred_list")(first.pending):
        first.step()
    assert mm.to_drain == 1
    exiting.finish()
    if len(stepper.threads) > 1:
        stepper.threads[1].finish()
    assert mm.to_drain == 0
    first.finish()
    assert mm.set_aside.pages == 0
    world.check_all_gone()


def test_one_vm_of_a_process_is_closed_while_the_other_runs(world):
    """Closing a VM's file does not end the address space; the other guest keeps its pages."""
    second = _two_vms(world)
    kept = world.owned(second.kvm.pv.handle)
    assert world.run(kvm.close_vm(world.vm)) == Result(0, 1, 42)
    world.drain()
    assert np.array_equal(world.owned(second.kvm.pv.handle), kept)
    assert world.process.mm.protected.value == 1
    assert world.read(100, second) == world.read(100, second)
    world.exit()
    world.drain()
    world.check_all_gone()


def test_closing_a_vm_twice_changes_nothing(world):
    """A file is closed once."""
    world.protect()
    world.run(kvm.close_vm(world.vm))
    world.drain()
    count = world.process.mm.count
    assert world.run(kvm.close_vm(world.vm)) == Result(0, 0, 0)
    assert world.process.mm.count == count
    assert world.states(world.vm.gmap.table.frames) == {NS: 4}
