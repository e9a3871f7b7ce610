"""A real s390x guest's memory, and the same guest half a minute later."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lazypv.image import open_image
from lazypv.scenario.snapshot_jobs import boot, host_for
from lazypv.snapshot import SnapshotKey
from lazypv.snapshot.verify import verify

from .conftest import end, memory_of

DATA = Path(os.environ.get("LAZYPV_DATA", Path(__file__).parents[3] / "shared" / "data"))
WHOLE, LATER = DATA / "s390x-256m.elf.zst", DATA / "s390x-256m-later.delta.npz"
needs_data = pytest.mark.skipif(not WHOLE.exists(), reason="the whole image is not beside the repository")


def content_of(image):
    memory = np.zeros((image.size // 4096, 4096), np.uint8)
    memory[image.guest_page] = image.pages
    return memory


def round_trip(image, key, tmp_path, later=None):
    """Save, restore eagerly and lazily; with `later` (pages, content) an increment too. Its bytes."""
    memory = content_of(image)
    with host_for(2 * image.size + (96 << 20), 2, 2) as host:
        vm = boot(host, image, None, 2)
        vm.snapshot(tmp_path / "a.arrow", key=key)
        assert verify(tmp_path / "a.arrow", key).rows == len(memory)
        for lazy in (False, True):
            other = host.restore(tmp_path / "a.arrow", key=key, lazy=lazy)
            np.testing.assert_array_equal(memory_of(other), memory)
            end(host, other)
        if later is None:
            end(host, vm)
            return 0
        memory[later[0]] = later[1]
        vm.write_pages(*later)
        saved = vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
        assert saved.pages == later[0].size
        end(host, vm)
        for lazy in (False, True):
            other = host.restore(tmp_path / "b.arrow", key=key, lazy=lazy)
            np.testing.assert_array_equal(memory_of(other), memory)
            end(host, other)
        return (tmp_path / "b.arrow").stat().st_size


def test_an_excerpt_of_a_real_guest_comes_back_page_by_page(tmp_path, request):
    image = open_image(request.config.rootpath / "tests/data/s390x-256m-part.elf.zst")
    later = np.arange(8192, 8192 + 300), np.random.default_rng(0).integers(0, 256, (300, 4096)).astype(np.uint8)
    assert round_trip(image, SnapshotKey.create(tmp_path / "key"), tmp_path, later) <= 1.3 * 300 * 4096 + (64 << 10)


@needs_data
def test_a_real_guest_comes_back_and_its_later_state_as_an_increment(tmp_path):
    """At most 1.3 times the bytes of the changed pages plus 64 KiB."""
    delta = np.load(LATER)
    later = delta["page_index"].astype(np.int64), delta["page_data"]
    size = round_trip(open_image(WHOLE), SnapshotKey.create(tmp_path / "key"), tmp_path, later)
    assert size <= 1.3 * later[0].size * 4096 + (64 << 10)
