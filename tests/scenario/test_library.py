"""The library as the design shows it."""

from __future__ import annotations

import numpy as np
import pytest

import lazypv
from lazypv.errors import MemoryShortageError, SizeError, UsageError
from lazypv.scenario.host import Report


@pytest.fixture
def guest(request):
    machine = lazypv.Machine("80MiB")
    host = lazypv.Host(machine, lazy_destroy=True, sync_below="4MiB")
    vm = host.create_vm("20MiB", vcpus=2)
    yield vm
    host.close()
    machine.close()


def test_the_example_of_the_design_runs(request):
    """Its free names filled in: the small image, smaller sizes."""
    machine = lazypv.Machine("400MiB")
    machine.store(0x5000, b"the host's")
    assert machine.load(0x5000, 10) == b"the host's"

    host = lazypv.Host(machine, lazy_destroy=True, sync_below="32MiB")
    image = request.config.rootpath / "tests/data/s390x-256m-part.elf.zst"
    vm = host.create_vm("64MiB", vcpus=2, image=image)
    vm.protect()
    workload = lazypv.Workload("sequential")
    vm.run(workload)
    with pytest.raises(lazypv.ProgramInterruption) as refused:
        machine.load(vm.frame_of(0) * 4096, 8)
    assert refused.value.code == 0x3D

    report = vm.reboot()
    assert isinstance(report, Report)
    assert report.deferred
    host.drain()
    assert vm.accounts().check() == []
    assert host.check() == []

    vm.protect()
    assert vm.shutdown().owned_pages == vm.boot_image.pages
    host.drain()
    assert host.check() == []
    machine.close()


def test_a_guest_reads_back_what_it_wrote_and_zero_where_it_never_wrote(guest):
    """Invariant 31."""
    guest.protect()
    page = np.array([guest.boot_image.pages + 3])
    assert guest.read(page)[0] == guest.zero_hash
    guest.run(lazypv.Workload("sequential"))
    assert guest.read(page)[0] != guest.zero_hash


def test_the_boot_image_arrives_in_the_guest_as_its_owner_wrote_it(guest):
    """UNPACK_IMG: what the guest reads are the image's pages, though the host only ever held them sealed."""
    sealed = guest.boot_image.sealed.view(np.uint8)
    plain = guest.image.pages[: guest.boot_image.pages]
    assert not np.array_equal(sealed[0], plain[0])
    guest.protect()
    from lazypv_kernels.access import hash_words

    words = np.array(plain).view(np.uint64)
    expected = [hash_words(words, row) for row in range(words.shape[0])]
    assert list(guest.read(np.arange(guest.boot_image.pages))) == expected


def test_a_guest_that_is_not_protected_cannot_leave_protected_mode(guest):
    with pytest.raises(UsageError, match="not protected"):
        guest.reboot()


def test_a_guest_larger_than_the_machine_is_refused(guest):
    with pytest.raises(MemoryShortageError, match="frames"):
        guest.host.create_vm("100MiB")


def test_a_guest_smaller_than_its_image_is_refused(guest, request):
    with pytest.raises(SizeError):
        guest.host.create_vm("16MiB", image=request.config.rootpath / "tests/data/s390x-256m-part.elf.zst")


def test_unshared_pages_are_the_guests_own_again(guest):
    """Semantics 2.2: shared pages are readable for the host, and not any more afterwards."""
    guest.protect()
    page = np.array([guest.boot_image.pages + 7])
    guest.share(page)
    assert guest.host.machine.load(guest.frame_of(int(page[0])) * 4096, 8) == b"  DERAHS"
    guest.host.clock.run(guest.guest.unshare(0, page))
    with pytest.raises(lazypv.ProgramInterruption):
        guest.host.machine.load(guest.frame_of(int(page[0])) * 4096, 8)


def test_a_page_that_the_host_has_pinned_comes_back_by_an_intercept(guest):
    """Semantics 2.2: unsharing a pinned page notifies the host (108), which unpins it; the page is secure again."""
    guest.protect()
    page = np.array([guest.boot_image.pages + 7])
    guest.share(page)
    frame = np.array([guest.frame_of(int(page[0]))])
    assert guest.host.machine.ultravisor.pin_pages(frame).done == 1
    guest.host.clock.run(guest.guest.unshare(0, page))
    assert guest.host.machine.ultravisor.issued["UNPIN_PAGE_SHARED"] == 1
    with pytest.raises(lazypv.ProgramInterruption):
        guest.host.machine.load(int(frame[0]) * 4096, 8)
    assert guest.host.check() == []


def test_a_throttle_holds_the_walk_to_its_pace():
    """The walk's debt is worked off at the given rate, after one batch."""
    from lazypv.host.walk import Throttle

    throttle = Throttle(100.0)
    now = 0.0
    throttle.now = lambda: now
    assert throttle.may_pass()
    throttle.passed(50)
    assert not throttle.may_pass()
    now = 0.49
    assert not throttle.may_pass()
    now = 0.5
    assert throttle.may_pass()


def test_names_are_loaded_when_they_are_used():
    assert set(lazypv.__all__) <= set(dir(lazypv))
    with pytest.raises(AttributeError, match="no attribute"):
        _ = lazypv.nothing
