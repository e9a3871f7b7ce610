"""Storage: our own, somebody's, or none; and the host's accesses to it."""

from __future__ import annotations

import array
import mmap

import numpy as np
import pytest

from lazypv.errors import MemoryShortageError, ProgramInterruption, SizeError
from lazypv.hardware import Machine
from lazypv.machine import storage
from lazypv_kernels import access

PAGE_SIZE = 4096


def on_a_line(size, off=0):
    """A bytearray-backed view that begins `off` bytes behind a cache line."""
    room = bytearray(size + 128)
    start = -np.frombuffer(room, np.uint8).ctypes.data % 64 + off
    return memoryview(room)[start : start + size]


def test_somebodys_memory_is_used_in_place():
    """Design: any writable buffer, without a copy; what its owner can read it stays able to read."""
    memory = mmap.mmap(-1, 8 * PAGE_SIZE)
    memory[PAGE_SIZE : PAGE_SIZE + 5] = b"hello"
    machine = Machine.attach(memory, uv_base_pages=1)
    assert machine.pages == 8
    assert machine.load(PAGE_SIZE, 5) == b"hello"
    machine.store(2 * PAGE_SIZE - 2, b"across")
    assert memory[2 * PAGE_SIZE - 2 : 2 * PAGE_SIZE + 4] == b"across"


def test_a_store_leaves_the_bytes_beside_it_to_whoever_writes_them(monkeypatch):
    """A guest writes to a shared page between the host's look at it and its store: both are there afterwards."""
    machine = Machine("1MiB", uv_base_pages=1)
    copy, beside = access.host_copy, [lambda: machine.store(3 * PAGE_SIZE - 20, b"guest"), lambda: None]

    def with_a_guest(*arguments):
        copy(*arguments)
        if beside:
            beside.pop(0)()

    monkeypatch.setattr(access, "host_copy", with_a_guest)
    machine.store(2 * PAGE_SIZE - 2, b"x" * (PAGE_SIZE - 20) + b"yy")
    assert machine.load(3 * PAGE_SIZE - 23, 3) == b"xyy"
    assert machine.load(3 * PAGE_SIZE - 20, 5) == b"guest"
    assert machine.load(2 * PAGE_SIZE - 3, 4) == b"\0xxx"
    machine.close()


def test_a_shared_file_is_used_in_place(tmp_path):
    """Design: the file behind a running QEMU guest's RAM (memory-backend-file,share=on)."""
    path = tmp_path / "ram"
    path.write_bytes(bytes(4 * PAGE_SIZE))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    Machine.attach(memory, uv_base_pages=1).store(PAGE_SIZE, b"guest")
    assert path.read_bytes()[PAGE_SIZE : PAGE_SIZE + 5] == b"guest"


def test_any_writable_buffer_on_a_cache_line_will_do():
    """A bytearray, an array of any type, a NumPy array."""
    for buffer in (on_a_line(4 * PAGE_SIZE), on_a_line(4 * PAGE_SIZE).cast("d"), np.asarray(on_a_line(4 * PAGE_SIZE))):
        assert Machine.attach(buffer, uv_base_pages=1).pages == 4


@pytest.mark.parametrize(
    ("buffer", "why"),
    [
        (bytes(4 * PAGE_SIZE), "writable, contiguous"),
        (memoryview(bytearray(8 * PAGE_SIZE))[::2], "writable, contiguous"),
        (on_a_line(4 * PAGE_SIZE + 1), "16385 bytes, which is not a whole number of 4096-byte pages"),
        (bytearray(), "0 bytes"),
        (array.array("d"), "0 bytes"),
        (on_a_line(4 * PAGE_SIZE, off=16), "not a multiple of 64"),
        (on_a_line(PAGE_SIZE), "too small: the Ultravisor takes 1"),
        (on_a_line(2 * PAGE_SIZE), "too small"),
    ],
)
def test_a_buffer_that_cannot_be_a_machine_is_refused(buffer, why):
    """Streaming stores fault on less than 64 bytes of alignment; a machine has whole pages."""
    with pytest.raises(SizeError, match=why):
        Machine.attach(buffer, uv_base_pages=1)


@pytest.mark.parametrize("size", ["4KiB", "8KiB", 257 * PAGE_SIZE])
def test_a_machine_has_room_for_more_than_the_ultravisor(size):
    """Frame 0 is the host's prefix area."""
    with pytest.raises(SizeError, match="nothing is left"):
        Machine(size, uv_base_pages=1 if size != 257 * PAGE_SIZE else 256)
    assert Machine(3 * PAGE_SIZE, uv_base_pages=1).frames.free() == 1


def test_more_memory_than_there_is_is_refused_before_it_is_touched(monkeypatch):
    """Both figures are in the message; a machine of states only needs no memory for contents."""
    monkeypatch.setattr(storage, "available_memory", lambda: 1 << 20)
    with pytest.raises(MemoryShortageError, match="2 MiB was asked for, but 1 MiB of memory are available"):
        Machine("2MiB", uv_base_pages=1)
    assert Machine("2MiB", uv_base_pages=1, contents=False).pages == 512


@pytest.mark.parametrize(
    ("address", "length"), [(-1, 1), (64 * PAGE_SIZE, 1), (63 * PAGE_SIZE, PAGE_SIZE + 1), (0, -1), (2**70, 8)]
)
def test_an_access_outside_the_machine_is_an_addressing_exception(machine, address, length):
    """Program interruption 0x05."""
    with pytest.raises(ProgramInterruption, match="0x05") as caught:
        machine.load(address, length)
    assert (caught.value.code, caught.value.address) == (0x05, address)
    if length > 0:
        with pytest.raises(ProgramInterruption, match="0x05"):
            machine.store(address, bytes(length))


def test_donated_storage_is_a_secure_storage_access(machine):
    """Program interruption 0x3d, at the first page that may not be touched; nothing was stored anywhere."""
    machine.store(62 * PAGE_SIZE, b"x" * PAGE_SIZE)
    for address, length in ((63 * PAGE_SIZE, 1), (62 * PAGE_SIZE + 9, 2 * PAGE_SIZE - 9), (64 * PAGE_SIZE - 1, 1)):
        with pytest.raises(ProgramInterruption, match="0x3d") as caught:
            machine.load(address, length)
        assert caught.value.address == 63 * PAGE_SIZE
        with pytest.raises(ProgramInterruption, match="0x3d at absolute address 0x3f000"):
            machine.store(address, bytes(length))
    assert machine.load(62 * PAGE_SIZE, PAGE_SIZE) == b"x" * PAGE_SIZE


def test_what_is_stored_is_loaded_at_any_address_and_length(machine):
    """By copy, across pages, nothing beside it."""
    rng = np.random.default_rng(4)
    expected = bytearray(62 * PAGE_SIZE)
    for _ in range(60):
        start, length = int(rng.integers(0, len(expected))), int(rng.integers(0, 3 * PAGE_SIZE))
        data = rng.integers(0, 256, min(length, len(expected) - start)).astype(np.uint8).tobytes()
        machine.store(start, data)
        expected[start : start + len(data)] = data
        start = int(rng.integers(0, len(expected) - 9000))
        assert machine.load(start, 9000) == expected[start : start + 9000]
    assert machine.load(0, len(expected)) == expected
    assert machine.load(5, 0) == b""


def test_what_was_loaded_is_a_copy(machine):
    """Design: no view of host-accessible memory leaves the machine, since it would stay readable after an import."""
    machine.store(0, b"before")
    loaded = machine.load(0, 6)
    machine.store(0, b"after!")
    assert loaded == b"before"
    assert type(loaded) is bytes


def test_a_machine_without_contents_has_states_and_no_bytes():
    """Metadata only: for sizes beyond the computer's memory; an access to bytes is an addressing exception."""
    machine = Machine("1TiB", contents=False)
    assert (machine.size, machine.pages, machine.has_contents) == (1 << 40, 1 << 28, False)
    for touch in (lambda: machine.load(0, 1), lambda: machine.store(0, b"x")):
        with pytest.raises(ProgramInterruption, match="0x05"):
            touch()
    frames = np.array([1, machine.pages - 1])
    buffer = np.full((2, PAGE_SIZE), 7, np.uint8)
    assert machine.copy_pages(frames, buffer, write=False).tolist() == [1, 0x3D]
    assert machine.copy_pages(frames, buffer, write=True).tolist() == [1, 0x3D]
    assert machine.clear_pages(frames).rc.tolist() == [1, 0x3D]
    assert (buffer == 7).all()


def test_memory_that_this_process_can_get_is_never_negative():
    """A container over its limit has none left."""
    assert storage.available_memory() >= 0
