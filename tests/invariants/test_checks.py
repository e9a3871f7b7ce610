"""Every check can fail: break one thing, and the right number is reported."""

from __future__ import annotations

import numpy as np
import pytest

import lazypv
from lazypv.invariants import Remains, search_remains
from lazypv.invariants.frames import free_too_early
from lazypv.ultravisor.vault import firmware_of
from lazypv_kernels.access import stamp_offset
from lazypv_kernels.layout import CLAIMED, MARK_SECURE, NS, SEC


@pytest.fixture
def guest():
    machine = lazypv.Machine("64MiB")
    host = lazypv.Host(machine, sync_below="1MiB")
    vm = host.create_vm("4MiB")
    vm.protect()
    vm.populate()
    assert host.check() == []
    yield vm
    host.close()
    machine.close()


def numbers(vm) -> set[int]:
    return {number for number, _ in vm.host.check()}


def firmware(vm):
    return firmware_of(vm.host.machine.ultravisor)


def test_1_a_secure_page_in_the_allocator(guest):
    guest.host.machine.frames.byte[guest.frame_of(5)] = 0
    assert 1 in numbers(guest)


def test_14_a_marked_table_in_the_allocator(guest):
    frames = guest.kernel_vm.gmap.table.frames
    guest.host.machine.frames.byte[frames] = 0
    assert 14 in numbers(guest)
    assert 1 not in numbers(guest)


def test_14_a_marked_table_does_no_harm_before_it_is_handed_out(guest):
    """What is looked at after each step leaves it out, and nothing else."""
    machine = guest.host.machine
    machine.frames.byte[guest.kernel_vm.gmap.table.frames] = 0
    assert free_too_early(machine, marked_tables_too=False) is None
    assert free_too_early(machine, marked_tables_too=True).number == 14
    machine.frames.byte[guest.frame_of(5)] = 0
    assert free_too_early(machine, marked_tables_too=False).number == 1


def test_2_a_secure_page_without_mark(guest):
    guest.host.machine.frames.byte[guest.frame_of(5)] &= 0xFF ^ MARK_SECURE
    assert numbers(guest) == {2}


def test_4_a_page_owned_by_nobody(guest):
    firmware(guest).owner[guest.frame_of(5)] = 0
    assert 4 in numbers(guest)


def test_4_an_owner_without_ownership(guest):
    firmware(guest).state[guest.frame_of(5)] = NS
    assert 4 in numbers(guest)


def test_4_one_guest_page_in_two_frames(guest):
    firmware(guest).guest_page[guest.frame_of(5)] = 6
    assert numbers(guest) == {4}


def test_4_a_claim_that_nobody_let_go(guest):
    firmware(guest).state[guest.frame_of(5)] |= CLAIMED
    assert numbers(guest) == {4}


def test_25_a_reference_too_many(guest):
    guest.host.machine.frames.get(np.array([guest.frame_of(5)]))
    assert numbers(guest) == {25}


def test_9_the_counter_does_not_count(guest):
    guest.kernel_vm.mm.protected.value = 2
    assert numbers(guest) == {9}


def test_10_a_counter_of_zero_while_pages_are_owned(guest):
    guest.kernel_vm.mm.protected.value = 0
    assert numbers(guest) == {9, 10}


def test_11_a_negative_counter(guest):
    guest.kernel_vm.mm.protected.value = -1
    assert {9, 11} <= numbers(guest)


def test_18_an_asce_that_names_another_table(guest):
    guest.kernel_vm.gmap.asce += 1 << 14
    assert 18 in numbers(guest)


def test_20_a_handle_that_should_be_gone(guest):
    guest.kernel_vm.gmap.guest_handle = 7
    assert 20 in numbers(guest)


def test_26_a_page_on_the_list_twice(guest):
    aside = guest.kernel_vm.mm.set_aside
    node = aside.new_node()
    frame = np.array([guest.frame_of(5)])
    node.append(frame)
    node.append(frame)
    aside.nodes.append(node)
    guest.host.machine.frames.get(frame)
    guest.host.machine.frames.get(frame)
    assert numbers(guest) == {26}


def test_34_a_configuration_that_nobody_remembers(guest):
    guest.host.kernel.configurations[99] = guest.kernel_vm.mm
    assert 34 in numbers(guest)


def test_35_what_a_text_saw_broken_is_reported(guest):
    guest.host.kernel.ledger.broke(35, "a page raised exceptions for ever")
    assert numbers(guest) == {35}


def test_41_the_accounts_do_not_balance(guest):
    guest.reboot()
    guest.host.drain()
    guest.host.kernel.ledger.add("destroyed_background", -1)
    assert [number for number, _ in guest.accounts().check()] == [41]


def test_30_a_stamp_left_behind_is_found(guest):
    """Half a page destroyed, in either half."""
    frame = guest.frame_of(5)
    words = firmware(guest).storage.words
    remains = Remains.of([guest.guest.stamp], np.empty(0, np.uint64))
    guest.reboot()
    guest.host.drain()
    machine = guest.host.machine
    assert search_remains(machine, remains, leaked=False) == []
    words[frame, stamp_offset(5)] = guest_stamp = int(remains.stamps[0])
    assert guest_stamp
    assert [number for number, _ in search_remains(machine, remains, leaked=False)] == [30]


def test_30_content_left_behind_is_found_though_it_lost_its_stamp(guest):
    hashes = guest.page_hashes()
    frame = guest.frame_of(5)
    words = firmware(guest).storage.words
    content = words[frame].copy()
    guest.reboot()
    guest.host.drain()
    remains = Remains.of([1 << 63], hashes)
    assert search_remains(guest.host.machine, remains, leaked=False) == []
    words[frame] = content
    assert [number for number, _ in search_remains(guest.host.machine, remains, leaked=False)] == [30]


def test_30_a_leaked_page_is_forgiven_only_while_it_is_secure(guest):
    remains = Remains.of([guest.guest.stamp], np.empty(0, np.uint64))
    machine = guest.host.machine
    assert search_remains(machine, remains, leaked=True) == []
    frame = guest.frame_of(5)
    firmware(guest).state[frame] = NS
    assert [number for number, _ in search_remains(machine, remains, leaked=True)] == [30]
    firmware(guest).state[frame] = SEC


def test_30_plain_text_in_a_scratch_page_is_found(guest):
    scratch = firmware(guest).scratch()
    scratch[-10] = 1
    remains = Remains.of([1 << 63], np.empty(0, np.uint64))
    assert any("scratch" in text for _, text in search_remains(guest.host.machine, remains, leaked=False))


def test_5_a_page_of_a_file_that_no_cache_holds(guest):
    process = guest.kernel_vm.process
    process.cached = process.cached[1:]
    assert 5 in numbers(guest)


def test_5_a_private_page_that_a_cache_holds(guest):
    process = guest.kernel_vm.process
    private = process.mm.vmas[0].pte.entry(0) - 1
    process.cached = np.append(process.cached, private)
    assert 5 in numbers(guest)


def test_25_an_address_space_that_is_torn_down_while_it_has_users(guest):
    guest.kernel_vm.mm.torn_down = True
    assert 25 in numbers(guest)


def test_30_a_key_that_outlives_its_configuration(guest):
    free = firmware(guest).free_slot()
    firmware(guest).keys[free, 3] = 1
    assert numbers(guest) == {30}


def test_34_donated_pages_that_are_said_to_be_put_off(guest):
    guest.host.kernel.put_off_pages += 1
    assert numbers(guest) == {34}
