"""Each patch of the series: what it gives, and what breaks without it, step by step as in semantics 4."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from lazypv.errors import MemoryShortageError, UsageError
from lazypv.host import exit as mm_exit
from lazypv.host import kvm
from lazypv.host.faults import ProcessKilledError, violation
from lazypv.host.kvm import EIO, Result
from lazypv.series import PATCHES, Series
from lazypv_kernels.layout import ASCE, NS, SEC, SHR

from .stepping import Stepper
from .worlds import (
    BATCH,
    GUEST_PAGES,
    IMAGE_PAGES,
    LIMIT_PAGES,
    NODE_CAPACITY,
    REFUSED,
    ZERO_PAGE,
    hash_of,
)

OLD_PAGE = LIMIT_PAGES + 100
"""A guest page that a lazy reboot leaves to the old configuration."""
PLAIN = bytes(range(256)) * 16


def without(*numbers: str) -> Series:
    return Series().without(*numbers)


# --- 01 ----------------------------------------------------------------------------------------------------------


def _fail_to_destroy_and_exit(world):
    """Steps 1 to 4: enable, a failure of DESTROY_SEC_CONF, -EIO, exit; the frames of the top table of then."""
    world.protect()
    world.write(world.all_pages(), 7)
    table = world.vm.gmap.table.frames
    world.fail("DESTROY_SEC_CONF")
    assert world.disable() == Result(EIO, REFUSED.rc, REFUSED.rrc)
    world.repair()
    world.exit()
    return table


def test_a_top_table_whose_configuration_was_not_destroyed_is_never_free_again(make_world):
    """Patch 01: the marked table stays away from the allocator, so the next VM gets another one and starts."""
    world = make_world(lazy_destroy=False)
    table = _fail_to_destroy_and_exit(world)
    assert world.states(table) == {ASCE: 4}
    assert not world.is_free(table).any()
    vm = world.new_vm()
    assert not np.isin(vm.gmap.table.frames, table).any()
    world.protect(vm)
    world.check()


def test_without_patch_01_the_next_vm_gets_the_marked_table_and_cannot_start(make_world):
    """Semantics 4.1, steps 4 to 7: the allocator hands the table out, CREATE_SEC_CONF refuses it."""
    world = make_world(without("01"), lazy_destroy=False)
    table = _fail_to_destroy_and_exit(world)
    assert world.states(table) == {ASCE: 4}
    assert world.is_free(table).all()
    in_front = world.machine.frames.allocate_run(int(table[0]) - 1, start=1)
    assert in_front is not None, "others have taken the frames in front of it"
    vm = world.new_vm()
    assert vm.gmap.table.frames.tolist() == table.tolist()
    result = world.run(kvm.enable(vm))
    assert result.errno == EIO
    assert result.rc >= 0x0104
    assert vm.kvm.pv.handle == 0
    assert vm.mm.protected.value == 0


# --- 02 ----------------------------------------------------------------------------------------------------------


def _use_all_pages_for_io(world, frames):
    """The host looks at each page as pinning and writeback do, with a reference; calls made, and in vain."""
    before = world.issued("PIN_PAGE_SHARED") + world.issued("CONV_FROM_SEC_STOR")
    world.machine.frames.get(frames)
    world.run(world.host.pages.make_accessible(frames))
    world.machine.frames.put(frames)
    after = world.issued("PIN_PAGE_SHARED") + world.issued("CONV_FROM_SEC_STOR")
    return after - before, world.host.ledger.pages["useless_calls"]


def _marks_after_a_reset(world):
    world.protect()
    world.write(world.all_pages(), 7)
    assert world.disable().errno == 0
    world.drain()
    frames = world.frames(world.all_pages())
    assert world.states(frames) == {NS: GUEST_PAGES}
    return frames


def test_destroyed_pages_lose_their_mark(world):
    """Patch 02: after the walk nothing is left for the accessible path to do."""
    frames = _marks_after_a_reset(world)
    assert not world.machine.frames.marked(frames).any()
    assert _use_all_pages_for_io(world, frames) == (0, 0)


def test_without_patch_02_every_destroyed_page_costs_two_calls_for_nothing(make_world):
    """Semantics 4.2, steps 2 to 7: the mark outlives the page's secrecy, as many phantom pages as the guest had."""
    world = make_world(without("02"))
    frames = _marks_after_a_reset(world)
    assert world.machine.frames.marked(frames).all()
    assert _use_all_pages_for_io(world, frames) == (2 * GUEST_PAGES, 2 * GUEST_PAGES)
    assert not world.machine.frames.marked(frames).any()


def _marks_after_unmapping(world):
    world.protect()
    frames = world.frames(np.arange(IMAGE_PAGES))
    world.machine.frames.get(frames)
    world.run(mm_exit.unmap_range(world.host, world.vm.mm, world.vm.slots[0], 0, IMAGE_PAGES))
    assert world.states(frames) == {NS: IMAGE_PAGES}
    return frames


def test_pages_exported_at_unmapping_lose_their_mark(world):
    """Patch 02: a page that lives on in a cache is not taken for a secure one."""
    frames = _marks_after_unmapping(world)
    assert not world.machine.frames.marked(frames).any()
    world.machine.frames.put(frames)


def test_without_patch_02_a_page_exported_at_unmapping_keeps_its_mark(make_world):
    """Semantics 4.2, step 5."""
    world = make_world(without("02"))
    frames = _marks_after_unmapping(world)
    assert world.machine.frames.marked(frames).all()
    assert _use_all_pages_for_io(world, frames)[1] == 2 * IMAGE_PAGES
    world.machine.frames.put(frames)


# --- 03 ----------------------------------------------------------------------------------------------------------


def test_new_guest_may_touch_a_page_that_the_old_guest_still_owns(world):
    """Patch 03: 0x3f destroys the old page, then 0x3e imports it; the new guest reads zero (invariant 35)."""
    old = world.reboot_with_old_pages()
    new = world.protect()
    frame = world.frames(OLD_PAGE)
    assert frame in world.owned(old)
    world.host.ledger.exceptions.clear()
    assert world.read(OLD_PAGE) == ZERO_PAGE
    assert world.host.ledger.exceptions == {0x3F: 1, 0x3E: 1}
    assert world.owned(new).tolist().count(int(frame[0])) == 1
    assert world.host.ledger.pages["destroyed_on_fault"] == 1
    world.check()


def test_without_patch_03_a_new_guest_is_killed_at_an_old_page(make_world):
    """Semantics 4.3, steps 4 to 6: 0x3f, SIGSEGV, the VM is lost."""
    world = make_world(without("03"))
    world.reboot_with_old_pages()
    world.protect()
    with pytest.raises(ProcessKilledError, match="0x3f") as killed:
        world.read(OLD_PAGE)
    assert killed.value.signal == "SIGSEGV"


def test_a_page_that_another_cpu_imported_meanwhile_is_exported_and_not_fatal(world):
    """Patch 03, why the fallback: two CPUs meet 0x3f at one page; the late one finds a page that is alive again."""
    world.reboot_with_old_pages()
    world.protect()
    world.write(OLD_PAGE, 99, number=1)
    frame = world.frames(OLD_PAGE)
    content = world.read(OLD_PAGE)
    world.host.ledger.exceptions.clear()
    world.run(violation(world.vm, np.array([OLD_PAGE])))
    assert world.states(frame) == {NS: 1}
    assert world.read(OLD_PAGE) == content
    assert world.host.ledger.exceptions == {0x3E: 1}


# --- 04 ----------------------------------------------------------------------------------------------------------


def test_normal_guest_reads_ciphertext_of_the_old_guest(world):
    """Patch 04: 0x3d exports the page; the first stage of the new run goes on and sees nothing in clear."""
    world.protect()
    world.fill(OLD_PAGE, PLAIN)
    assert world.read(OLD_PAGE) == hash_of(PLAIN)
    world.hold()
    world.disable()
    frame = world.frames(OLD_PAGE)
    assert world.states(frame) == {SEC: 1}
    world.host.ledger.exceptions.clear()
    seen = world.read(OLD_PAGE)
    assert world.host.ledger.exceptions == {0x3D: 1}
    assert world.states(frame) == {NS: 1}
    ciphertext = world.machine.load(int(frame[0]) * 4096, 4096)
    assert seen == hash_of(ciphertext)
    assert seen not in (hash_of(PLAIN), ZERO_PAGE)
    assert PLAIN[:32] not in ciphertext
    world.check()


def test_without_patch_04_a_normal_guest_is_killed_at_an_old_page(make_world):
    """Semantics 4.4, steps 3 to 5: 0x3d from a guest falls into the default branch."""
    world = make_world(without("04"))
    world.reboot_with_old_pages()
    with pytest.raises(ProcessKilledError, match="0x3d") as killed:
        world.read(OLD_PAGE)
    assert killed.value.signal == "SIGSEGV"


# --- 05 ----------------------------------------------------------------------------------------------------------


def _locked_at_most_during_a_reset(world):
    world.protect()
    world.write(world.all_pages(), 7)
    world.fresh_clock()
    world.disable()
    world.drain()
    return world.longest_hold("mmap_lock")


def test_the_walk_holds_the_lock_for_one_batch_and_calls_without_it(world):
    """Patch 05, invariant 33: at most a batch of pages and not one call under the mmap lock."""
    assert _locked_at_most_during_a_reset(world) == (BATCH, 0)


def test_without_patch_05_the_lock_is_held_for_the_whole_address_space(make_world):
    """Semantics 4.5, step 3: every page of every mapping, and a call for each, with one hold of the lock."""
    world = make_world(without("05"))
    mapped = sum(vma.pte.size for vma in world.process.mm.vmas)
    pages, calls = _locked_at_most_during_a_reset(world)
    assert calls == mapped
    assert pages == 2 * mapped, "gathered, then destroyed"


# --- 06 ----------------------------------------------------------------------------------------------------------


def _give_a_page_of_the_second_guest_back(world):
    """Steps 1 to 5: A is cleaned while B runs, then a page of B is unmapped; its frame."""
    world.reboot_with_old_pages()
    new = world.protect()
    world.write(OLD_PAGE, 8)
    frame = world.frames(OLD_PAGE)
    assert frame[0] in world.owned(new)
    world.drain()
    world.run(mm_exit.unmap_range(world.host, world.vm.mm, world.vm.slots[0], OLD_PAGE, OLD_PAGE + 1))
    return frame


def _use_all_free_memory(world):
    """A normal guest that touches as many pages as the machine has left."""
    vm = world.new_vm(world.machine.frames.free() - 64)
    free = world.machine.frames.free()
    vm = world.host.create_vm(vm.process, [range(free - 4)], 1)
    world.write(world.all_pages(vm), 1, vm)


def test_destroying_one_configuration_leaves_the_hooks_on_for_the_other(world):
    """Patch 06: the counter is 1 when A is gone, so a page of B is exported before it becomes free."""
    frame = _give_a_page_of_the_second_guest_back(world)
    assert world.process.mm.protected.value == 1
    assert world.is_free(frame).all()
    assert world.states(frame) == {NS: 1}
    world.check()
    _use_all_free_memory(world)


def test_without_patch_06_a_secure_page_reaches_the_allocator(make_world):
    """Semantics 4.6, steps 3 to 8: the flag is 0 while B runs; its page is freed secure, who gets it loops."""
    world = make_world(without("06"))
    frame = _give_a_page_of_the_second_guest_back(world)
    assert world.process.mm.protected.value == 0
    assert world.is_free(frame).all()
    assert world.states(frame) == {SEC: 1}
    with pytest.raises(ProcessKilledError, match="0x3d in the kernel") as killed:
        _use_all_free_memory(world)
    assert killed.value.signal == "endless loop"
    assert [number for number, _ in world.host.ledger.broken] == [1]


def test_hooks_are_on_from_creation(world):
    """Patch 06: counted when CREATE_SEC_CONF is issued, not when parameters are set."""
    assert world.run(kvm.enable(world.vm)).errno == 0
    assert world.process.mm.protected.value == 1


def test_without_patch_06_hooks_are_off_until_parameters_are_set(make_world):
    """Semantics 4.6, "also"."""
    world = make_world(without("06"))
    assert world.run(kvm.enable(world.vm)).errno == 0
    assert world.process.mm.protected.value == 0


# --- 07 ----------------------------------------------------------------------------------------------------------


def _old_guest_shared_a_page(world, page=OLD_PAGE):
    world.protect()
    world.write(page, 7)
    world.share(page)
    world.hold()
    world.disable()
    assert world.states(world.frames(page)) == {SHR: 1}


def test_new_guest_may_import_a_page_that_the_old_guest_shared(world):
    """Patch 07, invariant 12: exported first, then imported; it reads zero."""
    _old_guest_shared_a_page(world)
    new = world.protect()
    world.host.ledger.exceptions.clear()
    exports = world.issued("CONV_FROM_SEC_STOR")
    assert world.read(OLD_PAGE) == ZERO_PAGE
    assert world.host.ledger.exceptions == {0x3E: 1}
    assert world.issued("CONV_FROM_SEC_STOR") - exports == 1
    assert world.frames(OLD_PAGE)[0] in world.owned(new)


def test_without_patch_07_a_new_guest_is_killed_at_a_shared_page(make_world):
    """Semantics 4.7, steps 4 to 6: only 0x3e, the import is refused, SIGSEGV."""
    world = make_world(without("07"))
    _old_guest_shared_a_page(world)
    world.protect()
    with pytest.raises(ProcessKilledError, match=r"0x3e.*import was refused") as killed:
        world.read(OLD_PAGE)
    assert killed.value.signal == "SIGSEGV"


def test_an_image_may_be_unpacked_over_shared_pages(make_world):
    """Patch 07, for UNPACK_IMG."""
    world = make_world(image_at=OLD_PAGE)
    _old_guest_shared_a_page(world, OLD_PAGE + 1)
    world.protect()
    world.check()


def test_without_patch_07_an_image_cannot_be_unpacked_over_shared_pages(make_world):
    """Semantics 4.7, step 6: KVM_PV_UNPACK fails, the guest does not boot."""
    world = make_world(without("07"), image_at=OLD_PAGE)
    _old_guest_shared_a_page(world, OLD_PAGE + 1)
    with pytest.raises(ProcessKilledError, match="import was refused"):
        world.protect()


# --- 08 ----------------------------------------------------------------------------------------------------------


def test_a_reboot_cleans_only_what_lies_below_the_limit(world):
    """Patch 08, invariants 20, 22, 32, 40: the rest is somebody else's time; rc 1, rrc 42, and no call was made."""
    old = world.reboot_with_old_pages()
    assert world.host.ledger.pages["destroyed_sync"] == LIMIT_PAGES
    assert world.owned_guest_pages(old).tolist() == list(range(LIMIT_PAGES, GUEST_PAGES))
    assert world.issued("DESTROY_SEC_CONF") == 0
    assert world.vm.gmap.guest_handle == 0
    assert world.disable() == Result(kvm.EINVAL, 0, 0)
    assert world.host.threads == 1
    world.drain()
    assert world.owned(old).size == 0
    assert world.host.ledger.pages["destroyed_background"] == GUEST_PAGES - LIMIT_PAGES


def test_what_a_lazy_reboot_reports(world):
    """Semantics 4.8, step 3: the work was put off."""
    world.protect()
    assert world.disable() == Result(0, 1, 42)


def test_without_patch_08_a_reboot_waits_for_every_page(make_world):
    """Semantics 4.8, steps 2 to 6: all pages and the configuration before the ioctl returns, with their real result."""
    world = make_world(without("08"))
    old = world.protect()
    world.write(world.all_pages(), 7)
    world.hold()
    assert world.disable() == Result(0, 1, 0)
    assert world.host.ledger.pages["destroyed_sync"] == GUEST_PAGES
    assert world.issued("DESTROY_SEC_CONF") == 1
    assert world.host.threads == 0
    assert old not in world.firmware.configurations


# --- 09 ----------------------------------------------------------------------------------------------------------


def _exported_at_teardown(world):
    world.protect()
    world.write(world.all_pages(), 7)
    mapped = sum(vma.pte.size for vma in world.process.mm.vmas)
    before = world.issued("CONV_FROM_SEC_STOR")
    world.exit()
    exported = world.issued("CONV_FROM_SEC_STOR") - before
    world.drain()
    world.check_all_gone()
    return mapped, exported


def test_a_shutdown_exports_one_page_for_each_node_of_the_list(world):
    """Patch 09: all others are set aside and destroyed when the CPUs are gone."""
    mapped, exported = _exported_at_teardown(world)
    assert exported == -(-mapped // (NODE_CAPACITY + 1))
    ((of_the_guest, cleaned),) = world.firmware.history.values()
    assert world.host.ledger.pages["set_aside"] == GUEST_PAGES - of_the_guest
    assert cleaned == 0


def test_without_patch_09_a_shutdown_exports_every_page(make_world):
    """Semantics 4.9, steps 2 to 6: and DESTROY_SEC_CONF finds nothing to clean."""
    world = make_world(without("09"))
    mapped, exported = _exported_at_teardown(world)
    assert exported == mapped
    assert world.host.ledger.pages["set_aside"] == 0
    assert [cleaned for _, cleaned in world.firmware.history.values()] == [0]


# --- 10 ----------------------------------------------------------------------------------------------------------


def test_with_lazy_destroy_0_exactly_one_destroy_happens_and_its_result_is_returned(make_world):
    """Patch 10, D1, invariant 38: synchronous, one DESTROY_SEC_CONF, its own rc and rrc."""
    world = make_world(lazy_destroy=False)
    world.protect()
    world.write(world.all_pages(), 7)
    table = world.vm.gmap.table
    assert world.disable() == Result(0, 1, 0)
    assert world.issued("DESTROY_SEC_CONF") == 1
    assert world.host.threads == 0
    assert world.host.ledger.pages == {"destroyed_sync": GUEST_PAGES}
    assert world.vm.gmap.table is table, "the top table is not replaced for nothing"


def test_with_lazy_destroy_0_a_shutdown_exports_and_memory_is_free_when_the_process_is_gone(make_world):
    """Patch 10: the list stays empty; a new guest of the same size can start at once."""
    world = make_world(lazy_destroy=False, machine_pages=512)
    world.protect()
    world.write(world.all_pages(), 7)
    world.exit()
    assert world.vm.closed_result == Result(0, 1, 0)
    assert world.issued("DESTROY_SEC_CONF") == 1
    assert world.host.ledger.pages["set_aside"] == 0
    world.check_all_gone()
    vm = world.new_vm()
    world.write(world.all_pages(vm), 1, vm)


def test_without_patch_10_memory_is_held_back_and_nobody_can_switch_that_off(make_world):
    """Semantics 4.10, steps 2 to 7: the process is gone, its memory is not, and the next guest finds none."""
    world = make_world(without("10"), lazy_destroy=False, machine_pages=512)
    world.protect()
    world.write(world.all_pages(), 7)
    stepper = Stepper()
    stepper.run(world.process.exit())
    assert world.vm.closed_result == Result(0, 1, 42)
    assert world.process.mm.torn_down
    assert world.process.mm.set_aside.pages > GUEST_PAGES * 4 // 5
    vm = world.new_vm()
    with pytest.raises(MemoryShortageError):
        world.write(world.all_pages(vm), 1, vm)
    (thread,) = stepper.threads
    thread.finish()
    world.write(world.all_pages(vm), 1, vm)


def test_without_patch_10_lazy_destroy_0_is_not_heard_at_a_reboot_either(make_world):
    """Semantics 4.10."""
    world = make_world(without("10"), lazy_destroy=False)
    world.protect()
    assert world.disable() == Result(0, 1, 42)


# --- 11 ----------------------------------------------------------------------------------------------------------


def _exports_while_the_new_guest_imports(world, shared):
    """M pages that the new guest imports while the old configuration lingers, `shared` among them; and the exports."""
    world.protect()
    world.write(shared, 7)
    world.share(shared)
    world.hold()
    world.disable()
    new = world.protect()
    pages = np.arange(OLD_PAGE, OLD_PAGE + 20)
    before = world.issued("CONV_FROM_SEC_STOR")
    world.write(pages, 8)
    assert np.isin(world.frames(pages), world.owned(new)).all()
    return pages.size, world.issued("CONV_FROM_SEC_STOR") - before


def test_with_feature_bit_0_no_export_precedes_an_import_and_a_shared_page_changes_hands(make_world):
    """Patch 11: the Ultravisor transfers the ownership of a shared page itself."""
    world = make_world(feature_bits=(0,))
    _, exports = _exports_while_the_new_guest_imports(world, OLD_PAGE)
    assert exports == 0
    world.check()


def test_without_patch_11_every_import_is_preceded_by_an_export(make_world):
    """Semantics 4.11, steps 3 to 6: twice the calls, and the same result."""
    world = make_world(without("11"), feature_bits=(0,))
    imports, exports = _exports_while_the_new_guest_imports(world, OLD_PAGE)
    assert exports == imports


def test_on_a_machine_without_the_bit_the_export_stays(world):
    """Patch 11: old machines report 0 in the field."""
    imports, exports = _exports_while_the_new_guest_imports(world, OLD_PAGE)
    assert exports == imports


def test_taking_the_bit_for_on_where_it_is_off_breaks_as_without_patch_07(make_world):
    """Semantics 4.11, wrong use."""
    world = make_world()
    world.machine.ultravisor.feature_bits = frozenset({0})
    with pytest.raises(ProcessKilledError, match=r"0x3e.*import was refused"):
        _exports_while_the_new_guest_imports(world, OLD_PAGE)


# --- the switchboard ---------------------------------------------------------------------------------------------


def test_every_patch_names_the_place_where_it_lives():
    """Design, the switchboard: a switch is consulted in the one place where its behaviour lives."""
    assert [patch.number for patch in PATCHES] == [f"{number:02}" for number in range(1, 12)]
    for patch in PATCHES:
        module, _, name = patch.place.partition(":")
        place = importlib.import_module(module)
        for part in name.split("."):
            place = getattr(place, part)
        assert getattr(Series(), patch.switch) is True
        assert getattr(without(patch.number), patch.switch) is False


def test_a_patch_that_does_not_exist_is_refused():
    """Series.without."""
    with pytest.raises(UsageError, match="'12'"):
        without("12")
