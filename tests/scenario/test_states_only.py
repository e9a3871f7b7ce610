"""A machine without contents: its page tables lie below segment tables, and nothing else is different."""

from __future__ import annotations

import numpy as np
import pytest

import lazypv
from lazypv.errors import UsageError
from lazypv.image.synthetic import synthetic
from lazypv.ultravisor import vault
from lazypv_kernels.tables import HAS_ENTRIES

MEMORY = "24MiB"
PAGES = 6144


@pytest.fixture(params=[True, False], ids=["contents", "states only"])
def host(request):
    machine = lazypv.Machine("96MiB", contents=request.param)
    made = lazypv.Host(machine, sync_below="4MiB")
    yield made
    made.close()
    machine.close()


@pytest.fixture
def vm(host):
    made = host.create_vm(MEMORY, vcpus=2, image=synthetic(size=1 << 20))
    made.protect()
    made.populate()
    return made


def owned(vm):
    firmware = vault.firmware_of(vm.host.machine.ultravisor)
    return int(np.count_nonzero(firmware.owner[vm.kernel_vm.gmap.pte.frames()]))


def test_a_guest_lives_reboots_and_shuts_down_alike(host, vm):
    """Every invariant is looked at, on either kind; each page is mapped, owned, destroyed, and free again."""
    assert host.check() == []
    assert vm.kernel_vm.gmap.pte.count() == owned(vm) == PAGES
    free = host.machine.frames.free()
    vm.reboot()
    host.drain()
    assert host.check() == []
    assert vm.kernel_vm.gmap.pte.count() == PAGES
    assert owned(vm) == 0
    vm.protect()
    vm.populate()
    assert owned(vm) == PAGES
    assert host.machine.frames.free() == free
    vm.shutdown()
    host.drain()
    assert host.check() == []
    assert vm.kernel_vm.gmap.pte.count() == 0


def test_what_lies_in_one_piece_is_kept_by_segments(host, vm):
    """The guest is filled in order, so that most of its segments have no entries of their own."""
    arrays = vm.kernel_vm.gmap.pte.arrays
    assert isinstance(arrays, tuple) is not host.machine.has_contents
    if not host.machine.has_contents:
        segment, _ = arrays
        assert np.count_nonzero(segment & np.uint64(HAS_ENTRIES)) < segment.size // 2
    page = PAGES - 3
    assert vm.frame_of(page) == vm.kernel_vm.gmap.pte.frames()[page]
    for outside in (-1, PAGES):
        with pytest.raises(UsageError, match="nothing is mapped"):
            vm.frame_of(outside)
