"""Guests small enough that all of their pages can be looked at, and snapshots of them."""

from __future__ import annotations

import numpy as np
import pytest

import lazypv
from lazypv.snapshot import SnapshotKey
from lazypv.ultravisor import vault

PAGES = 1024


@pytest.fixture
def machine():
    """Room for three guests of 4 MiB."""
    made = lazypv.Machine("224MiB", threads=2)
    yield made
    made.close()


@pytest.fixture
def host(machine):
    made = lazypv.Host(machine)
    yield made
    made.close()


@pytest.fixture
def key(tmp_path):
    """A key in a file, hence with a ledger."""
    return SnapshotKey.create(tmp_path / "guest.key")


@pytest.fixture
def vm(host):
    return running_guest(host)


def running_guest(host, pages=PAGES, seed=0, vcpus=2):
    """A protected guest that has written two of three of its pages, shares two, and has had some exported."""
    vm = host.create_vm(pages * 4096, vcpus=vcpus, image=an_image(pages, seed))
    vm.protect()
    rng = np.random.default_rng(seed)
    written = np.flatnonzero(rng.random(pages) < 0.66)
    vm.write_pages(written, rng.integers(0, 256, (written.size, 4096)).astype(np.uint8))
    vm.share(np.array([pages - 7, pages - 3]))
    frames = vm.kernel_vm.gmap.pte.frames()[written[20:30]]
    host.machine.frames.get(frames)
    host.clock.run(vm.kernel_vm.host.pages.export_owned(frames), "export")
    host.machine.frames.put(frames)
    return vm


def an_image(pages, seed=0):
    """An image whose pages are all different."""
    content = np.random.default_rng(seed + 1).integers(0, 256, (pages // 2, 4096)).astype(np.uint8)
    return lazypv.GuestImage("test", content, np.arange(pages // 2, dtype=np.uint32), pages * 4096)


def memory_of(vm):
    """What the guest's memory holds, read behind everybody's back: uint8[pages, 4096]; exported pages come in first."""
    vm.page_hashes()
    firmware = vault.firmware_of(vm.host.machine.ultravisor)
    return firmware.storage.contents[vm.kernel_vm.gmap.pte.frames()].copy()


def change(vm, pages, seed=5):
    """The guest writes new content into `pages`."""
    content = np.random.default_rng(seed).integers(0, 256, (len(pages), 4096)).astype(np.uint8)
    vm.write_pages(np.array(pages), content)


def end(host, *guests):
    """Shut `guests` down; afterwards no invariant is violated."""
    for vm in guests:
        vm.shutdown()
    host.drain()
    assert host.check() == []
