"""Whatever is wrong with a file, one line says what, and it is always an ImageError."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypv.errors import ImageError
from lazypv.image import GuestImage, content, open_image

from .dumps import PAGE, Dump, Load, numbered, zstd

PAGES = numbered(1, 2)
GOOD = Dump([Load(0, PAGES)])
GOOD_ELF = GOOD.build()


def problem(path):
    """What open_image has against a file, without the path that comes first."""
    with pytest.raises(ImageError) as caught:
        open_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def problem_of(tmp_path):
    def write_and_open(data):
        path = tmp_path / "file"
        path.write_bytes(data.build() if isinstance(data, Dump) else data)
        return problem(path)

    return write_and_open


# --- files


def test_missing_file_is_named(tmp_path):
    assert problem(tmp_path / "missing") == "No such file or directory"


def test_folder_is_refused(tmp_path):
    assert problem(tmp_path) == "is a folder, not a file"


def test_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert problem(tmp_path / "file" / "below") == "Not a directory"


def test_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert problem(tmp_path / "pipe") == "is not a regular file"


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "file").write_bytes(PAGES)
    monkeypatch.setattr(content, "open", refuse, raising=False)  # the superuser may read everything
    assert problem(tmp_path / "file") == "Permission denied"


def test_name_that_no_file_can_have_is_refused():
    with pytest.raises(ImageError, match=r"'a\\x00b': cannot be the name of a file: embedded null byte"):
        open_image("a\0b")


def test_empty_file_is_refused(problem_of):
    assert problem_of(b"") == "is empty"


# --- plain memory


@pytest.mark.parametrize("size", [1, 4095, 4097])
def test_plain_file_that_is_not_in_whole_pages_is_refused(problem_of, size):
    assert problem_of(b"a" * size) == f"is no ELF dump, and no plain memory: {size} bytes are no multiple of 4096"


def test_compressed_file_that_is_not_in_whole_pages_is_refused(problem_of):
    assert problem_of(zstd(b"a" * 5000)) == "is no ELF dump, and no plain memory: 5000 bytes are no multiple of 4096"


# --- zstd


@pytest.mark.parametrize("kept", [4, 5, 100, -1])
def test_truncated_zstd_is_refused(problem_of, kept):
    packed = zstd(np.random.default_rng(0).bytes(4 * PAGE))
    assert problem_of(packed[:kept]) == "zstd stream is damaged or cut short: Truncated compressed stream"


@pytest.mark.parametrize("garbage", [b"x", b"\0", b"garbage" * 100, bytes(PAGE), b"\x28\xb5\x2f\xfd"])
@pytest.mark.parametrize("inside", [PAGES, GOOD_ELF], ids=["plain", "elf"])
def test_garbage_behind_zstd_is_refused(problem_of, inside, garbage):
    assert problem_of(zstd(inside) + garbage).startswith("zstd stream is damaged or cut short: ")


def test_damaged_zstd_is_refused(problem_of):
    packed = bytearray(zstd(PAGES))
    packed[4:] = b"\xff" * (len(packed) - 4)
    assert problem_of(bytes(packed)).startswith("zstd stream is damaged or cut short: ")


def test_zstd_of_nothing_is_refused(problem_of):
    assert problem_of(zstd(b"")) == "decompresses to nothing"


def test_zstd_that_outgrows_the_machine_is_refused(problem_of, monkeypatch):
    monkeypatch.setattr(content, "_physical_memory", lambda: 3 << 20)
    assert problem_of(zstd(bytes(5 << 20))) == "decompresses to more than the 3 MiB of memory of this machine"


def test_image_that_memory_has_no_room_for_is_refused(problem_of, monkeypatch):
    def no_room(arrays):
        raise MemoryError

    monkeypatch.setattr(np, "concatenate", no_room)
    assert problem_of(GOOD) == "needs more memory than this machine has"


# --- ELF header


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (4, "ELF identification ends at byte 16, but the file has 4"),
        (16, "ELF header ends at byte 64, but the file has 16"),
        (63, "ELF header ends at byte 64, but the file has 63"),
        (64, "program header table ends at byte 248, but the file has 64"),
        (247, "program header table ends at byte 248, but the file has 247"),
        (248, "segment 0 ends at byte 8464, but the file has 248"),
        (8463, "segment 0 ends at byte 8464, but the file has 8463"),
    ],
)
def test_truncated_dump_says_what_ends_where(problem_of, size, expected):
    assert problem_of(GOOD_ELF[:size]) == expected
    assert problem_of(zstd(GOOD_ELF[:size])) == expected


def test_dump_cut_behind_its_last_segment_is_complete(tmp_path):
    (tmp_path / "file").write_bytes(GOOD_ELF[:8464])
    assert open_image(tmp_path / "file").pages.tobytes() == PAGES


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"machine": 62}, "is of machine EM_X86_64, expected EM_S390"),
        ({"machine": 0xFEDC}, "is of machine 65244, expected EM_S390"),
        ({"type": 2}, "is not a dump: ELF type ET_EXEC, expected ET_CORE"),
        ({"ident": b"\x7fELF\x01\x02\x01" + bytes(9)}, "is not a 64-bit ELF file: byte 4 is 1, expected 2"),
        ({"ident": b"\x7fELF\x02\x01\x01" + bytes(9)}, "is not a big-endian ELF file: byte 5 is 1, expected 2"),
        ({"phentsize": 32}, "program headers have 32 bytes each, expected 56"),
        ({"phnum": 0}, "has no PT_LOAD segment: there is no memory in it"),
        ({"phnum": 0xFFFF}, "has 65535 program headers or more, which is not supported"),
        ({"phnum": 1000}, "program header table ends at byte 56192, but the file has 8475"),
    ],
)
def test_header_of_anything_but_an_s390_dump_is_refused(problem_of, change, expected):
    assert problem_of(Dump([Load(0, PAGES)], **change)) == expected


# --- segments


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([Load(0, PAGES, type=4)], "has no PT_LOAD segment: there is no memory in it"),
        ([Load(0)], "has no PT_LOAD segment: there is no memory in it"),
        ([Load(0x800, PAGES)], "segment 0: p_paddr 0x800 is not a multiple of 4096"),
        ([Load(0, PAGES, memsz=0x2001)], "segment 0: p_memsz 0x2001 is not a multiple of 4096"),
        ([Load(0, PAGES[1:], memsz=0x2000)], "segment 0: p_filesz 0x1fff is not a multiple of 4096"),
        ([Load(0, PAGES, memsz=0x1000)], "segment 0: p_filesz 0x2000 is larger than p_memsz 0x1000"),
        ([Load(0, PAGES), Load(0x1000, PAGES)], "segments 0 and 1 both have address 0x1000"),
        ([Load(0x1000, PAGES), Load(0, memsz=0x2000)], "segments 1 and 0 both have address 0x1000"),
        ([Load(0, memsz=0x2000), Load(0x1000, PAGES)], "segments 0 and 1 both have address 0x1000"),
        (
            [Load(0, PAGES, offset=400), Load(0x2000, PAGES, offset=401)],
            "segments 0 and 1 both have byte 401 of the file",
        ),
        (
            [Load(0, PAGES, memsz=1 << 52)],
            "segment 0 ends at address 0x10000000000000, but an image ends at 0xffffffff000 at most",
        ),
        (
            [Load(2**64 - PAGE, memsz=2**64 - PAGE)],
            "segment 0 ends at address 0x1ffffffffffffe000, but an image ends at 0xffffffff000 at most",
        ),
        (
            [Load(0, PAGES, filesz=1 << 40, memsz=1 << 40)],
            "segment 0 ends at byte 1099511628048, but the file has 8475",
        ),
        ([Load(0, PAGES, offset=2**64 - 1)], "segment 0 ends at byte 18446744073709559807, but the file has 8475"),
    ],
)
def test_segment_that_cannot_be_is_refused(problem_of, loads, expected):
    assert problem_of(Dump(loads)) == expected


# --- anything


def opens_or_says_why(path, data):
    path.write_bytes(data)
    try:
        image = open_image(path)
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017  (either outcome is fine)
    else:
        assert isinstance(image, GuestImage)
        assert image.pages.shape == (image.guest_page.size, PAGE)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 271), st.integers(0, 255)), min_size=1, max_size=4))
def test_dump_with_damaged_headers_opens_or_says_why(tmp_path_factory, damage):
    elf = bytearray(GOOD_ELF)
    for at, value in damage:
        elf[at] = value
    opens_or_says_why(tmp_path_factory.getbasetemp() / "damaged", bytes(elf))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([b"", b"\x7fELF", b"\x7fELF\x02\x02\x01", b"\x28\xb5\x2f\xfd"]), st.binary(max_size=400))
def test_any_bytes_open_or_say_why(tmp_path_factory, magic, rest):
    opens_or_says_why(tmp_path_factory.getbasetemp() / "random", magic + rest)
