"""Plain memory files, compressed and not."""

from __future__ import annotations

import gc
import mmap
import os

import numpy as np
import pytest

from lazypv.errors import ImageError
from lazypv.image import open_image, raw

from .dumps import PAGE, numbered, zstd
from .test_elf import owner


def test_plain_memory_starts_at_address_zero(tmp_path):
    path = tmp_path / "guest.raw"
    path.write_bytes(numbered(7, 0, 9))
    image = open_image(path)
    assert (image.name, image.size) == ("guest.raw", 3 * PAGE)
    assert image.guest_page.tolist() == [0, 1, 2]
    assert image.pages.tobytes() == numbered(7, 0, 9)


def test_plain_memory_is_mapped_and_cannot_be_written(tmp_path):
    path = tmp_path / "guest.raw"
    path.write_bytes(numbered(7))
    image = open_image(path)
    assert isinstance(owner(image.pages), mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        image.pages[0, 0] = 1


def test_compressed_memory_equals_the_plain_one(tmp_path):
    memory = np.random.default_rng(1).bytes(700 * PAGE)
    (tmp_path / "guest").write_bytes(zstd(memory))
    image = open_image(tmp_path / "guest")
    assert image.pages.tobytes() == memory
    assert not image.pages.flags.writeable


def test_zstd_frames_one_behind_the_other_are_one_memory(tmp_path):
    (tmp_path / "guest").write_bytes(zstd(numbered(1)) + zstd(numbered(2)))
    assert open_image(tmp_path / "guest").pages.tobytes() == numbered(1, 2)


def test_path_may_be_text_bytes_or_path_like(tmp_path):
    path = tmp_path / "größe"
    path.write_bytes(numbered(1))
    for form in (path, str(path), os.fsencode(path)):
        assert open_image(form).name == "größe"


def test_file_of_four_gigabytes_opens_without_being_read(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(4 << 30)
    image = open_image(tmp_path / "sparse")
    assert image.pages.shape == (1 << 20, PAGE)
    assert not image.pages[-1].any()


def test_memory_beyond_what_guest_pages_can_name_is_refused():
    content = np.broadcast_to(np.uint8(0), (16 << 40,))
    with pytest.raises(ImageError, match="huge: has 17592186044416 bytes, but an image ends at 17592186040320"):
        raw.read("huge", content)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux for the open files")
def test_nothing_is_left_behind_when_the_image_is_gone(tmp_path):
    (tmp_path / "plain").write_bytes(numbered(1))
    (tmp_path / "packed").write_bytes(zstd(numbered(1)))
    (tmp_path / "broken").write_bytes(zstd(numbered(1))[:-1])
    images = [open_image(tmp_path / name) for name in ("plain", "packed")]
    with pytest.raises(ImageError):
        open_image(tmp_path / "broken")
    assert open_files(tmp_path) == {"plain"}  # the mapping keeps it
    del images
    assert open_files(tmp_path) == set()
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "packed", "broken"}


def open_files(folder):
    """Names of this process' open files in a folder."""
    gc.collect()
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    return {os.path.basename(target) for target in targets if os.path.dirname(target) == str(folder)}
