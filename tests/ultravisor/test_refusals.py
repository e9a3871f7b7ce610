"""What the Ultravisor refuses, one rule at a time, and that a refusal changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from lazypv.errors import FrameError
from lazypv.hardware import Machine
from lazypv.ultravisor import interface as uv
from lazypv_kernels.layout import ASCE, DON_CONF, DON_CPU, DON_UV, NS, PSH, RC_DONE, SEC, SHR

from .guests import Guest, empty_header, firmware_of, pages

OLD, NEW = np.arange(10, 14), np.arange(10, 14)


@pytest.fixture
def guest(machine):
    """A running guest of four pages in frames 10 to 13, all imported and written."""
    made = Guest(machine, OLD)
    made.fill(made.all_pages, 0x1111)
    return made


def state_of(machine, frame):
    return int(firmware_of(machine).state[frame])


def test_a_page_is_destroyed_only_when_its_owner_has_no_cpus(machine, guest):
    """Semantics 2.3, invariant 7: refused and unchanged with CPUs; stopping them is not enough."""
    guest.add_cpu(1, operating=False)
    before = firmware_of(machine).storage.contents.copy()
    for _ in range(2):
        answer = machine.ultravisor.destroy_pages(OLD)
        assert set(answer.rc.tolist()) == {uv.RC_CPUS_ALIVE}
        assert answer.refused == 4
        np.testing.assert_array_equal(firmware_of(machine).storage.contents, before)
        assert state_of(machine, 10) == SEC
        assert machine.ultravisor.destroy_sec_cpu(guest.cpu_handles.pop()).ok
    answer = machine.ultravisor.destroy_pages(OLD)
    assert (answer.done, answer.refused) == (4, 0)
    assert not firmware_of(machine).storage.contents[OLD].any()


def test_a_configuration_is_not_destroyed_while_it_has_cpus(machine, guest):
    """Invariant 8: nothing is returned on failure."""
    assert machine.ultravisor.destroy_sec_conf(guest.handle) == (1, uv.RC_CPUS_ALIVE, 0, 0, 0)
    assert state_of(machine, 10) == SEC
    assert state_of(machine, int(guest.table[0])) == ASCE
    guest.stop()
    answer = machine.ultravisor.destroy_sec_conf(guest.handle)
    assert (answer.ok, answer.pages) == (True, 4)
    assert not firmware_of(machine).state[:-1].any()
    assert not firmware_of(machine).storage.contents[OLD].any()


def test_another_configurations_page_cannot_be_imported(machine, guest):
    """Semantics 2.3, consequence 3: neither a secure nor, without feature bit 0, a shared one."""
    new = Guest(machine, NEW)
    machine.ultravisor.share_pages(guest.handle, pages(1, 2), True)
    machine.ultravisor.pin_pages(OLD[2:3])
    before = firmware_of(machine).state.copy()
    assert set(machine.ultravisor.import_pages(new.handle, new.all_pages).rc.tolist()) == {uv.RC_FOREIGN}
    np.testing.assert_array_equal(firmware_of(machine).state, before)
    assert (firmware_of(machine).owner[OLD] == guest.slot).all()


def test_with_feature_bit_0_a_shared_page_changes_owners_by_import():
    """Patch 11: shared yes, secure and pinned no; the old owner's record says where its page went."""
    machine = Machine(64 * 4096, uv_base_pages=1, feature_bits=[0])
    old, new = Guest(machine, OLD), Guest(machine, NEW)
    old.fill(old.all_pages, 0x1111)
    machine.ultravisor.share_pages(old.handle, pages(1, 2), True)
    machine.ultravisor.pin_pages(OLD[2:3])
    rc = machine.ultravisor.import_pages(new.handle, new.all_pages).rc.tolist()
    assert rc == [uv.RC_FOREIGN, RC_DONE, uv.RC_FOREIGN, uv.RC_FOREIGN]
    assert firmware_of(machine).state[OLD].tolist() == [SEC, SEC, PSH, SEC]
    assert firmware_of(machine).owner[OLD].tolist() == [old.slot, new.slot, old.slot, old.slot]
    assert not firmware_of(machine).storage.contents[11].any()
    assert old.write(pages(1), 5).tolist() == [uv.PGM_SECURE_STORAGE_VIOLATION]


def test_a_guest_page_is_in_one_frame_only(machine, guest):
    """Design: two frames imported for the same guest page must not both succeed."""
    guest.translation[0] = 20 + 1
    assert machine.ultravisor.import_pages(guest.handle, pages(0)).rc.tolist() == [uv.RC_ALREADY_IN]
    assert state_of(machine, 20) == NS
    guest.translation[1] = 10 + 1
    assert machine.ultravisor.import_pages(guest.handle, pages(1)).rc.tolist() == [uv.RC_FOREIGN]
    assert int(firmware_of(machine).guest_page[10]) == 0


def test_pages_outside_the_storage_and_pages_not_mapped_are_refused(machine, guest):
    """Semantics 2.3: 0x010a tells KVM to fault the page in."""
    guest.translation[2] = 0
    rc = machine.ultravisor.import_pages(guest.handle, pages(-1, 2, 4, 10**9)).rc.tolist()
    assert rc == [uv.RC_OUTSIDE, uv.CONV_TO_RC_NOT_MAPPED, uv.RC_OUTSIDE, uv.RC_OUTSIDE]
    assert machine.ultravisor.share_pages(guest.handle, pages(-1, 2, 10**9), True).rc.tolist() == [0x11] * 3
    assert guest.write(pages(-1, 2, 10**9), 1).tolist() == [0x11] * 3


def test_only_shared_pages_are_pinned_and_only_pinned_ones_unpinned(machine, guest):
    """Semantics 2.2, 2.3; a guest that takes a pinned page back is a notification (intercept 108)."""
    ultravisor = machine.ultravisor
    ultravisor.share_pages(guest.handle, pages(1), True)
    assert ultravisor.pin_pages(pages(10, 11, 20)).rc.tolist() == [uv.RC_NOT_SHARED, RC_DONE, uv.RC_NOT_SHARED]
    assert ultravisor.share_pages(guest.handle, pages(1), False).rc.tolist() == [uv.ICPT_PV_NOTIFICATION]
    assert state_of(machine, 11) == PSH
    assert ultravisor.unpin_pages(guest.handle, pages(0, 1, 1)).rc.tolist() == [
        uv.RC_NOT_SHARED, RC_DONE, uv.RC_NOT_SHARED,
    ]  # fmt: skip
    assert state_of(machine, 11) == SEC


def test_a_shared_page_leaves_by_export_as_it_is_and_comes_back_shared(machine, guest):
    """Semantics 2.3, CONV_FROM_SEC_STOR on a shared page: ownership released, content host-visible."""
    machine.ultravisor.share_pages(guest.handle, pages(1), True)
    content = machine.load(11 * 4096, 4096)
    assert machine.ultravisor.export_pages(OLD[1:2]).done == 1
    assert machine.load(11 * 4096, 4096) == content
    assert machine.ultravisor.import_pages(guest.handle, pages(1)).done == 1
    assert state_of(machine, 11) == SHR
    assert machine.load(11 * 4096, 4096) == content


def test_donated_storage_is_out_of_everybodys_reach(machine, guest):
    """Semantics 2.1: neither exported nor destroyed nor donated again; the host meets 0x3d, a guest 0x3f."""
    ultravisor, firmware = machine.ultravisor, firmware_of(machine)
    donated = np.flatnonzero(np.isin(firmware.state, (DON_UV, DON_CONF, DON_CPU)))
    assert donated.size == 1 + 2 + 1
    before = firmware.state.copy()
    assert set(ultravisor.export_pages(donated).rc.tolist()) == {uv.RC_DONATED}
    assert ultravisor.destroy_pages(donated).refused == donated.size
    for frame in donated:
        assert ultravisor.create_sec_cpu(guest.handle, 9, np.array([40, frame])).rc == uv.CREATE_SEC_CPU_RC_STORAGE
        guest.translation[3] = frame + 1
        assert guest.write(pages(3), 1).tolist() == [uv.PGM_SECURE_STORAGE_VIOLATION]
    assert set(machine.clear_pages(donated).rc.tolist()) == {uv.PGM_SECURE_STORAGE_ACCESS}
    np.testing.assert_array_equal(firmware.state, before)


def test_storage_that_is_secure_marked_or_named_twice_cannot_be_donated(machine, guest):
    """Semantics 2.3: the areas are non-secure, not part of an address space's tables, and each page is given once."""
    firmware = firmware_of(machine)
    before = firmware.state.copy()
    for bad in (pages(40, 10), pages(40, int(guest.table[2])), pages(40, 40)):
        table = np.array([44, 45, 46, 47])
        answer = machine.ultravisor.create_sec_conf(bad, 4, 44 * 4096, table, guest.translation)
        assert answer.rc == uv.CREATE_SEC_CONF_RC_STORAGE
        assert machine.ultravisor.create_sec_cpu(guest.handle, 7, bad).rc == uv.CREATE_SEC_CPU_RC_STORAGE
    np.testing.assert_array_equal(firmware.state, before)
    assert list(firmware.configurations) == [guest.handle]


def test_a_table_serves_one_configuration(machine, guest):
    """Invariant 13: each live configuration has its own ASCE page; the mark goes with the configuration."""
    donated, table = np.array([40, 41]), guest.table
    again = machine.ultravisor.create_sec_conf(donated, 4, guest.asce, table, guest.translation)
    assert again.rc == uv.CREATE_SEC_CONF_RC_ASCE
    assert state_of(machine, 40) == NS
    machine.store(int(table[0]) * 4096, b"entry")
    guest.stop()
    assert machine.ultravisor.destroy_sec_conf(guest.handle).ok
    assert machine.load(int(table[0]) * 4096, 5) == b"entry"
    assert machine.ultravisor.create_sec_conf(donated, 4, guest.asce, table, guest.translation).ok


def test_handles_of_the_dead_are_invalid_for_ever(machine, guest):
    """Generic failures 0x0020 and 0x0021; a new configuration in the same slot has another handle."""
    ultravisor, cpu = machine.ultravisor, guest.cpu_handles[0]
    guest.stop()
    assert ultravisor.destroy_sec_conf(guest.handle).ok
    new = Guest(machine, NEW)
    assert new.slot == guest.handle & 0xFFFF
    assert new.handle != guest.handle
    for dead in (guest.handle, 0, 12345):
        assert ultravisor.destroy_sec_conf(dead).rc == uv.UVC_RC_INV_GHANDLE
        assert ultravisor.create_sec_cpu(dead, 0, pages(50)).rc == uv.UVC_RC_INV_GHANDLE
        assert ultravisor.set_sec_conf_params(dead, empty_header()).rc == uv.UVC_RC_INV_GHANDLE
        assert ultravisor.verify_img(dead).rc == uv.UVC_RC_INV_GHANDLE
        assert ultravisor.set_unshare_all(dead).rc == uv.UVC_RC_INV_GHANDLE
        for call in (ultravisor.import_pages, ultravisor.unpack_pages, ultravisor.unpin_pages):
            assert call(dead, pages(0, 1)).rc.tolist() == [uv.UVC_RC_INV_GHANDLE] * 2
        assert ultravisor.share_pages(dead, pages(0), True).rc.tolist() == [uv.UVC_RC_INV_GHANDLE]
    for dead in (cpu, 0, new.handle):
        assert ultravisor.destroy_sec_cpu(dead).rc == uv.UVC_RC_INV_CHANDLE
        assert ultravisor.cpu_set_state(dead, True).rc == uv.UVC_RC_INV_CHANDLE
    assert not firmware_of(machine).state[NEW].any()


def test_cpus_start_only_after_the_whole_image_was_verified(machine):
    """Semantics 2.3, VERIFY_IMG: all components unpacked; CPUs may be started only after success."""
    ultravisor = machine.ultravisor
    guest = Guest(machine, OLD, cpus=0)
    guest.add_cpu(0, operating=False)
    image = np.random.default_rng(1).integers(0, 256, (2, 4096)).astype(np.uint8)
    plain = image.copy()
    header = type(empty_header()).seal(image, 1)
    machine.store(11 * 4096, image.tobytes())
    configuration = firmware_of(machine).configurations[guest.handle]
    configuration.verified, configuration.image = False, None
    assert ultravisor.unpack_pages(guest.handle, pages(1)).rc.tolist() == [uv.UVC_RC_INV_STATE]
    assert ultravisor.verify_img(guest.handle).rc == uv.RC_NOT_COMPLETE
    assert ultravisor.set_sec_conf_params(guest.handle, header).ok
    assert ultravisor.unpack_pages(guest.handle, pages(0, 1, 3)).rc.tolist() == [
        uv.RC_NOT_UNPACKABLE, RC_DONE, uv.RC_NOT_UNPACKABLE,
    ]  # fmt: skip
    assert ultravisor.verify_img(guest.handle).rc == uv.RC_NOT_COMPLETE
    assert ultravisor.cpu_set_state(guest.cpu_handles[0], True).rc == uv.RC_NOT_COMPLETE
    assert ultravisor.unpack_pages(guest.handle, pages(2, 2)).done == 1
    assert ultravisor.verify_img(guest.handle).ok
    assert ultravisor.cpu_set_state(guest.cpu_handles[0], True).ok
    np.testing.assert_array_equal(firmware_of(machine).storage.contents[11:13], plain)


def test_an_altered_image_page_is_not_unpacked(machine):
    """Semantics 2.3: the boot image's owner sealed it; the host has it as it was and may try again."""
    guest = Guest(machine, OLD, cpus=0)
    image = np.random.default_rng(1).integers(0, 256, (2, 4096)).astype(np.uint8)
    assert machine.ultravisor.set_sec_conf_params(guest.handle, type(empty_header()).seal(image, 0)).ok
    machine.store(10 * 4096, image[::-1].tobytes())
    assert machine.ultravisor.unpack_pages(guest.handle, pages(0, 1)).rc.tolist() == [uv.RC_INTEGRITY] * 2
    assert machine.load(10 * 4096, 2 * 4096) == image[::-1].tobytes()
    machine.store(10 * 4096, image.tobytes())
    assert machine.ultravisor.unpack_pages(guest.handle, pages(0, 1)).done == 2


def test_sie_is_entered_only_with_handles_and_address_space_that_fit(machine, guest):
    """Semantics 3.6: else a validity intercept, and no page was touched."""
    other = Guest(machine, np.arange(20, 24))
    fits = guest.cpu()
    wrong = [
        type(fits)(guest.handle, other.cpu_handles[0], guest.asce, guest.translation),
        type(fits)(guest.handle, guest.cpu_handles[0], other.asce, guest.translation),
        type(fits)(999, guest.cpu_handles[0], guest.asce, guest.translation),
        type(fits)(guest.handle, 0, guest.asce, guest.translation),
    ]
    values = np.full(1, 9, np.uint64)
    for cpu in wrong:
        assert machine.guest_access(cpu, pages(0), 1, values).rc.tolist() == [uv.ICPT_VALIDITY]
    assert machine.ultravisor.cpu_set_state(guest.cpu_handles[0], False).ok
    assert machine.guest_access(fits, pages(0), 1, values).rc.tolist() == [uv.ICPT_VALIDITY]
    assert set(firmware_of(machine).storage.words[10].tolist()) == {0x1111}


def test_unshare_all_waits_for_stopped_cpus(machine, guest):
    """Semantics 2.3: all CPUs of the configuration stopped (diag 308 sequence)."""
    machine.ultravisor.share_pages(guest.handle, pages(1, 2), True)
    assert machine.ultravisor.set_unshare_all(guest.handle).rc == uv.UVC_RC_INV_STATE
    machine.ultravisor.cpu_set_state(guest.cpu_handles[0], False)
    assert machine.ultravisor.set_unshare_all(guest.handle).pages == 2
    assert (firmware_of(machine).state[OLD] == SEC).all()


@pytest.mark.parametrize("bad", [-1, 64, 2**40])
def test_frames_outside_the_machine_are_an_error_of_the_caller(machine, guest, bad):
    """Not a return code: an absolute address beyond storage is an addressing exception, nothing is touched."""
    frames = pages(20, bad)
    for call in (machine.ultravisor.destroy_pages, machine.ultravisor.export_pages, machine.ultravisor.pin_pages):
        with pytest.raises(FrameError, match=f"frame {bad} lies outside a machine of 64 frames"):
            call(frames)
    with pytest.raises(FrameError):
        machine.ultravisor.create_sec_cpu(guest.handle, 5, frames)
    with pytest.raises(FrameError):
        machine.ultravisor.create_sec_conf(frames, 1, 0, pages(40, 41, 42, 43), guest.translation)
    with pytest.raises(FrameError):
        machine.copy_pages(frames, np.zeros((2, 4096), np.uint8), write=False)
    with pytest.raises(FrameError):
        machine.clear_pages(frames)
    assert state_of(machine, 20) == NS


def test_the_ultravisor_is_initialised_once(machine):
    """Semantics 2.3, INIT_UV 0x101."""
    assert machine.ultravisor.init_uv(pages(5)).rc == uv.INIT_UV_RC_DONE_ALREADY


def test_calls_are_counted_by_page_and_useless_ones_apart(machine, guest):
    """Design: report pages done, calls apart."""
    issued, useless = machine.ultravisor.issued, machine.ultravisor.useless
    before = issued["CONV_FROM_SEC_STOR"]
    machine.ultravisor.export_pages(pages(10, 10, 20))
    assert issued["CONV_FROM_SEC_STOR"] - before == 3
    assert useless["CONV_FROM_SEC_STOR"] == 2
