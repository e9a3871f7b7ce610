"""Dumps as QEMU writes them: a real one, and all layouts that the format allows."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypv.image import NO_PAGE, open_image

from .dumps import PAGE, PT_NOTE, Dump, Load, entropy, numbered, zstd

PART = Path(__file__).parents[1] / "data" / "s390x-256m-part.elf.zst"
PART_MEMORY_SHA256 = "d944e742279045378fca12da8693e74938c936c1adf150c6c58cb20644f1174b"


@pytest.fixture(scope="module")
def part():
    return open_image(PART)


@pytest.fixture(scope="module")
def part_elf():
    elf = pa.input_stream(str(PART), compression="zstd").read()
    assert hashlib.sha256(elf).hexdigest() == "e9f71391e26359164719200bcac750321d3ee08047015baf3377538cdd36520c"
    return elf


def test_real_dump_gives_its_memory_byte_for_byte(part):
    assert part.name == "s390x-256m-part.elf.zst"
    assert part.pages.shape == (4096, PAGE)
    assert part.pages.dtype == np.uint8
    assert hashlib.sha256(part.pages).hexdigest() == PART_MEMORY_SHA256


def test_memory_of_the_real_dump_stands_at_byte_2784_of_the_file(part, part_elf):
    assert part.pages.tobytes() == part_elf[2784 : 2784 + (16 << 20)]


def test_real_dump_covers_the_addresses_of_its_segment(part):
    assert part.size == 0x3000000
    assert part.guest_page.dtype == np.uint32
    assert np.array_equal(part.guest_page, np.arange(0x2000, 0x3000))


def test_real_dump_has_the_documented_page_statistics(part):
    zero = ~part.pages.any(axis=1)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[True], zero, [True]]))))[::2]
    assert zero.sum() == 1093
    assert len({page.tobytes() for page in part.pages}) == 2667
    assert (runs.size, np.median(runs), runs.max()) == (90, 4, 1024)
    assert round(entropy(part.pages[~zero]).mean(), 2) == 1.86


def test_uncompressed_dump_is_mapped_and_not_copied(tmp_path, part, part_elf):
    path = tmp_path / "guest"
    path.write_bytes(part_elf)
    image = open_image(path)
    assert np.array_equal(image.pages, part.pages)
    assert np.array_equal(image.guest_page, part.guest_page)
    assert isinstance(owner(image.pages), mmap.mmap)
    assert image.pages.flags.c_contiguous


def test_kind_of_a_file_is_told_by_its_content_whatever_its_name(tmp_path):
    elf = Dump([Load(0, numbered(1, 2))]).build()
    (tmp_path / "dump.zst").write_bytes(elf)
    (tmp_path / "dump.raw").write_bytes(zstd(elf))
    for name in ("dump.zst", "dump.raw"):
        assert open_image(tmp_path / name).pages.tobytes() == numbered(1, 2)


def test_segments_are_ordered_by_address_wherever_they_stand_in_the_file(tmp_path):
    image = opened(
        tmp_path, Dump([Load(5 * PAGE, numbered(5, 6)), Load(0, b"n", type=PT_NOTE), Load(PAGE, numbered(1))])
    )
    assert image.guest_page.tolist() == [1, 5, 6]
    assert image.pages.tobytes() == numbered(1, 5, 6)
    assert image.size == 7 * PAGE


def test_segments_that_are_neighbours_in_the_file_need_no_copy(tmp_path):
    image = opened(tmp_path, Dump([Load(0, numbered(1)), Load(3 * PAGE, numbered(2, 3))]))
    assert image.guest_page.tolist() == [0, 3, 4]
    assert image.pages.tobytes() == numbered(1, 2, 3)
    assert isinstance(owner(image.pages), mmap.mmap)


def test_memory_size_beyond_the_file_size_is_zero_fill(tmp_path):
    image = opened(tmp_path, Dump([Load(0, numbered(1), memsz=3 * PAGE), Load(4 * PAGE, numbered(2))]))
    assert image.guest_page.tolist() == [0, 4]
    assert image.source().tolist() == [0, NO_PAGE, NO_PAGE, NO_PAGE, 1]


def test_offset_of_a_segment_without_stored_bytes_means_nothing(tmp_path):
    """QEMU writes p_offset -1 and p_filesz 0 for memory that it leaves out of the dump."""
    image = opened(tmp_path, Dump([Load(0, numbered(1)), Load(PAGE, memsz=2 * PAGE, offset=2**64 - 1)]))
    assert image.source().tolist() == [0, NO_PAGE, NO_PAGE]


def test_guest_of_zero_fill_alone_has_no_stored_page(tmp_path):
    image = opened(tmp_path, Dump([Load(0, memsz=2 * PAGE)]))
    assert image.pages.shape == (0, PAGE)
    assert image.source().tolist() == [NO_PAGE] * 2
    assert image.source(4 * PAGE).tolist() == [NO_PAGE] * 4


def test_empty_segment_is_left_out(tmp_path):
    image = opened(tmp_path, Dump([Load(0, numbered(1)), Load(0x123)]))
    assert image.size == PAGE


def test_zero_fill_of_terabytes_costs_no_memory(tmp_path):
    image = opened(tmp_path, Dump([Load(0, numbered(1), memsz=8 << 40)]))
    assert image.size == 8 << 40
    assert image.pages.nbytes == PAGE


@st.composite
def layouts(draw):
    """Segments as (first guest page, stored page numbers, zero pages behind them), by address and without overlap."""
    at, number, segments = 0, 0, []
    for _ in range(draw(st.integers(1, 5))):
        at += draw(st.integers(0, 3))
        stored, zeros = draw(st.integers(0, 3)), draw(st.integers(0, 2))
        segments.append((at, list(range(number + 1, number + 1 + stored)), zeros))
        at, number = at + stored + zeros, number + stored
    if not number:
        segments.append((at, [1], 0))
    return segments


@settings(deadline=None)
@given(layout=layouts(), order=st.randoms(), gap=st.integers(0, 5), packed=st.booleans())
def test_every_layout_of_segments_gives_each_guest_page_its_content(tmp_path_factory, layout, order, gap, packed):
    loads = [Load(at * PAGE, numbered(*stored), memsz=(len(stored) + zeros) * PAGE) for at, stored, zeros in layout]
    order.shuffle(loads)
    content = Dump(loads, gap=bytes(gap)).build()
    path = tmp_path_factory.mktemp("layout") / "dump"
    path.write_bytes(zstd(content) if packed else content)
    image = open_image(path)
    expected = {at + i: number for at, stored, _ in layout for i, number in enumerate(stored)}
    assert image.size == max((at + len(stored) + zeros) * PAGE for at, stored, zeros in layout if stored or zeros)
    assert image.guest_page.tolist() == sorted(expected)
    assert image.pages.tobytes() == numbered(*(expected[page] for page in sorted(expected)))
    assert not image.pages.flags.writeable


def opened(folder, dump):
    path = folder / "dump"
    path.write_bytes(dump.build())
    return open_image(path)


def owner(array):
    """What an array's bytes belong to in the end."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array.obj if isinstance(array, memoryview) else array
