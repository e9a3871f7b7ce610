"""What fails, and what then has to be given back, kept, reported or counted as leaked."""

from __future__ import annotations

import numpy as np
import pytest

from lazypv.clocks.actors import Fault
from lazypv.host import kvm
from lazypv.host.kvm import EIO, ENOMEM, Result
from lazypv.host.teardown import DESTROY_THREAD
from lazypv.ultravisor import Answer
from lazypv_kernels.layout import ASCE, DON_CONF, DON_CPU

from .worlds import GUEST_PAGES, REFUSED

NEED_DESTROY = 0x8000


# --- memory and threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["record", "top table", DESTROY_THREAD])
def test_a_reboot_that_cannot_be_put_off_is_done_at_once_and_leaves_nothing_behind(world, what):
    """D4, D5: every reference taken on the way is dropped, the real result reported, the table freed in the end."""
    world.protect()
    world.write(world.all_pages(), 7)
    mm, table = world.process.mm, world.vm.gmap.table
    users, count = mm.users, mm.count
    free = world.machine.frames.free()
    world.fail(what, None)
    assert world.disable() == Result(0, 1, 0)
    world.repair()
    assert (mm.users, mm.count, mm.protected.value, mm.to_drain) == (users, count, 0, 0)
    assert world.vm.gmap.crst_list == [table] == [world.vm.gmap.table]
    assert world.vm.gmap.asce == mm.gmap_asce
    assert world.issued("DESTROY_SEC_CONF") == 1
    sizes = world.host.storage_sizes
    assert world.machine.frames.free() == free + sizes.total(GUEST_PAGES, 2)
    world.protect()
    assert world.disable() == Result(0, 1, 42)
    world.exit()
    world.drain()
    world.check_all_gone()


@pytest.mark.parametrize("what", ["record", DESTROY_THREAD])
def test_a_shutdown_that_cannot_be_put_off_works_the_list_off_itself(world, what):
    """D18: the immediate path does not forget what was set aside; D4, D5 where the address space is gone."""
    world.protect()
    world.write(world.all_pages(), 7)
    world.fail(what, None)
    world.exit()
    assert world.host.threads == 0
    assert world.vm.closed_result == Result(0, 1, 0)
    assert world.host.ledger.pages["set_aside"] > GUEST_PAGES // 2
    world.check_all_gone()


@pytest.mark.parametrize("what", ["base storage", "variable storage"])
def test_enable_without_memory_for_the_configuration_changes_nothing(world, what):
    """-ENOMEM; no call was made."""
    free = world.machine.frames.free()
    world.fail(what, None)
    assert world.run(kvm.enable(world.vm)) == Result(ENOMEM, 0, 0)
    world.repair()
    assert world.issued("CREATE_SEC_CONF") == 0
    assert world.machine.frames.free() == free
    assert (world.process.mm.protected.value, world.process.mm.to_drain) == (0, 0)
    world.protect()


@pytest.mark.parametrize("what", ["CPU storage", "SIDA"])
@pytest.mark.parametrize("after", [0, 1])
def test_enable_without_memory_for_a_cpu_takes_everything_back(world, what, after):
    """Semantics 3.6: CPUs made so far are destroyed, then the configuration is deinitialised."""
    free = world.machine.frames.free()
    world.fail(what, None, after=after)
    assert world.run(kvm.enable(world.vm)).errno == ENOMEM
    world.repair()
    world.drain()
    assert world.issued("CREATE_SEC_CPU") == world.issued("DESTROY_SEC_CPU") == after
    assert world.issued("DESTROY_SEC_CONF") == 1
    assert world.firmware.configurations == {}
    assert world.machine.frames.free() == free
    assert world.vm.kvm.pv.handle == world.vm.gmap.guest_handle == 0
    world.protect()
    world.exit()
    world.drain()
    world.check_all_gone()


def test_enable_whose_second_cpu_is_refused_takes_everything_back(world):
    """Semantics 3.6: -EIO with the codes of the call that failed."""
    free = world.machine.frames.free()
    world.fail("CREATE_SEC_CPU", REFUSED, after=1)
    assert world.run(kvm.enable(world.vm)) == Result(EIO, REFUSED.rc, REFUSED.rrc)
    world.repair()
    world.drain()
    assert world.machine.frames.free() == free
    assert world.process.mm.protected.value == 0


# --- CREATE_SEC_CONF ---------------------------------------------------------------------------------------------


def test_a_refused_creation_gives_its_storage_back_and_counts_for_nothing(world):
    """Semantics 3.6, invariants 9, 11: the counter went up with the call, and comes down."""
    free = world.machine.frames.free()
    world.fail("CREATE_SEC_CONF")
    assert world.run(kvm.enable(world.vm)) == Result(EIO, REFUSED.rc, REFUSED.rrc)
    world.repair()
    assert world.machine.frames.free() == free
    assert world.process.mm.protected.value == 0
    assert world.host.configurations == {}
    world.protect()


def test_a_creation_that_needs_destroy_is_destroyed_at_once(world):
    """Semantics 3.6, 0x8000: the handle is valid and must be destroyed; the immediate variant does it."""
    ultravisor = world.machine.ultravisor
    create = ultravisor.create_sec_conf
    free = world.machine.frames.free()

    def created_but(*arguments):
        answer = create(*arguments)
        return Answer(1, NEED_DESTROY | 0x0104, 0, answer.handle)

    ultravisor.create_sec_conf = created_but
    result = world.run(kvm.enable(world.vm))
    del ultravisor.create_sec_conf
    assert result == Result(EIO, NEED_DESTROY | 0x0104, 0)
    assert world.issued("DESTROY_SEC_CONF") == 1
    assert world.firmware.configurations == {}
    assert world.machine.frames.free() == free
    assert (world.process.mm.protected.value, world.process.mm.to_drain) == (0, 0)


# --- DESTROY_SEC_CPU ---------------------------------------------------------------------------------------------


def test_a_disable_with_a_cpu_that_cannot_be_destroyed_leaves_the_configuration_alone(world):
    """Invariants 8, 15, D15: the other CPU is destroyed, the SIDAs are freed once, the storage of this one never."""
    handle = world.protect()
    world.write(world.all_pages(), 7)
    first, second = world.vm.kvm.vcpus
    storage, sidas = [first.storage, second.storage], [first.sida, second.sida]
    calls = []

    def fault(step):
        if step.label == "DESTROY_SEC_CPU":
            calls.append(step)
            return Fault(REFUSED) if len(calls) == 1 else None
        return None

    world.clock.faults = fault
    assert world.disable() == Result(EIO, REFUSED.rc, REFUSED.rrc)
    assert len(calls) == 2
    assert world.issued("DESTROY_SEC_CPU") == 1
    assert world.issued("DESTROY_SEC_CONF") == 0
    assert world.owned(handle).size == GUEST_PAGES
    assert world.states(storage[0]) == {DON_CPU: storage[0].size}
    assert not world.is_free(storage[0]).any()
    assert world.is_free(storage[1]).all()
    assert world.is_free(np.concatenate(sidas)).all()
    assert world.disable() == Result(EIO, REFUSED.rc, REFUSED.rrc), "and so it stays"
    assert len(calls) == 2
    assert world.issued("DESTROY_SEC_CONF") == 0


def test_a_process_whose_cpu_cannot_be_destroyed_ends_and_its_configuration_counts_as_leaked(world):
    """Invariants 1, 14, 15, 34: table and storage stay with the firmware, guest pages do not."""
    handle = world.protect()
    world.write(world.all_pages(), 7)
    pv, table = world.vm.kvm.pv, world.vm.gmap.table.frames
    cpu = world.vm.kvm.vcpus[0].storage
    world.fail("DESTROY_SEC_CPU")
    world.exit()
    world.repair()
    world.drain()
    assert list(world.host.leaked) == [handle] == list(world.firmware.configurations)
    assert world.host.configurations == {}
    kept = np.concatenate([pv.base, pv.variable, table, cpu, cpu + cpu.size + 1])
    assert not world.is_free(np.concatenate([pv.base, pv.variable, table, cpu])).any()
    assert world.states(table) == {ASCE: 4}
    assert world.states(np.concatenate([pv.base, pv.variable])) == {DON_CONF: pv.base.size + pv.variable.size}
    assert world.owned(handle).size == 0, "every guest page was exported: destroying them is refused"
    assert world.machine.frames.free() == world.free_at_start - world.host.ledger.leaked_frames
    assert world.host.ledger.leaked_frames == kept.size
    assert world.process.mm.freed
    world.check()


# --- DESTROY_SEC_CONF --------------------------------------------------------------------------------------------


def test_a_failure_in_the_thread_is_kept_with_its_codes_and_the_handle_counts_as_leaked(world):
    """D22, D27, invariants 14, 34: storage and table stay, everything else goes, the counter stays up."""
    handle = world.protect()
    world.write(world.all_pages(), 7)
    pv, table = world.vm.kvm.pv, world.vm.gmap.table.frames
    world.fail("DESTROY_SEC_CONF")
    assert world.disable() == Result(0, 1, 42)
    world.drain()
    world.repair()
    mm, leaked, answer = world.host.leaked[handle]
    assert (mm, leaked, answer) == (world.process.mm, pv, REFUSED)
    assert mm.protected.value == 1
    assert world.host.threads == 0
    assert not world.is_free(np.concatenate([pv.base, pv.variable, table])).any()
    assert world.states(table) == {ASCE: 4}
    world.protect()
    assert world.disable() == Result(0, 1, 42)
    world.exit()
    world.drain()
    assert world.machine.frames.free() == world.free_at_start - world.host.ledger.leaked_frames
    assert world.host.ledger.leaked_frames == pv.base.size + pv.variable.size + table.size
    assert (mm.users, mm.count, mm.set_aside.pages) == (0, 0, 0)
    world.check()


def test_a_shutdown_after_a_leaked_configuration_sets_nothing_aside(make_world):
    """Invariants 26, 27: the counter is not zero, but no cleaner will ever come for a list."""
    world = make_world(lazy_destroy=False)
    world.protect()
    world.write(world.all_pages(), 7)
    world.host.lazy_destroy = True
    world.process.mm.pv_sync_destroy = False
    world.fail("record", None)
    faults = world.clock.faults

    def both(step):
        return Fault(REFUSED) if step.label == "DESTROY_SEC_CONF" else faults(step)

    world.clock.faults = both
    assert world.disable().errno == EIO
    world.repair()
    world.exit()
    assert world.process.mm.set_aside.pages == 0
    assert world.process.mm.set_aside.room == 0
    assert world.machine.frames.free() == world.free_at_start - world.host.ledger.leaked_frames
    world.check()


def test_without_memory_for_a_copy_the_marked_table_is_kept_all_the_same(make_world):
    """D6, as documented: the active table is on no list, and is never freed; the VM goes on with it."""
    world = make_world(lazy_destroy=False)
    world.protect()
    table = world.vm.gmap.table

    def fault(step):
        return {"DESTROY_SEC_CONF": Fault(REFUSED), "top table": Fault(None)}.get(step.label)

    world.clock.faults = fault
    assert world.disable().errno == EIO
    world.repair()
    assert world.vm.gmap.table is table
    assert world.vm.gmap.crst_list == []
    world.exit()
    assert not world.is_free(table.frames).any()
    assert world.machine.frames.free() == world.free_at_start - world.host.ledger.leaked_frames


def test_busy_and_partial_answers_are_asked_again_until_done(world):
    """Invariant 36."""
    world.protect()
    answers = [Answer(2, 0), Answer(3, 0), Answer(2, 0)]

    def fault(step):
        return Fault(answers.pop()) if step.label == "DESTROY_SEC_CONF" and answers else None

    world.clock.faults = fault
    world.disable()
    world.drain()
    assert answers == []
    assert world.issued("DESTROY_SEC_CONF") == 1
    assert world.firmware.configurations == {}
