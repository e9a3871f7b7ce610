"""Whoever stores a snapshot cannot alter it: flipped, cut, reordered, mixed, swapped, replaced by something older.

`LAZYPV_FLIPS` sets how many single bits are flipped in process (10,000 for the whole run), `LAZYPV_COMMAND_FLIPS` how
many through the command (200).
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import lazypv
from lazypv.errors import UsageError
from lazypv.snapshot import SnapshotKey, layout
from lazypv.snapshot.chain import Chain
from lazypv.snapshot.errors import (
    DamagedSnapshotError,
    NotAnArrowFileError,
    WrongKeyError,
    WrongParentError,
)
from lazypv.snapshot.reader import SnapshotFile
from lazypv.snapshot.verify import info, verify
from lazypv.ultravisor import vault

from .conftest import change, end, memory_of, running_guest

FLIPS = int(os.environ.get("LAZYPV_FLIPS", "250"))
COMMAND_FLIPS = int(os.environ.get("LAZYPV_COMMAND_FLIPS", "4"))
PAGES_16_MIB = 4096 + 3


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory):
    """(host, key, path) of a snapshot of a guest of 16 MiB and three pages, whose last batch is padded."""
    folder = tmp_path_factory.mktemp("sixteen")
    machine = lazypv.Machine("224MiB", threads=2)
    host = lazypv.Host(machine)
    key = SnapshotKey.create(folder / "key")
    vm = running_guest(host, PAGES_16_MIB)
    vm.snapshot(folder / "a.arrow", key=key)
    end(host, vm)
    yield host, key, folder / "a.arrow"
    host.close()
    machine.close()


def regions(path, key):
    """Where what is: name, part of it that an error has to name, first byte, last byte; several of a name."""
    file = SnapshotFile(path, key)
    file.close()
    where = file.layout
    yield "header", "header", 0, where.header_size
    for index in range(where.batches):
        start, at = where.offset(index), file.columns(index)
        rows = layout.rows_of(file.header.rows, index)
        for name, first, last in (
            ("metadata", 0, at[0]),
            ("page bytes", at[0], at[1]),
            ("guest pages", at[1], at[1] + 4 * rows),
            ("kinds", at[2], at[2] + rows),
            ("tags", at[3], at[4]),
            ("versions", at[4], at[5]),
        ):
            yield name, f"batch {index}", start + int(first), start + int(last)
        for first, last in ((at[1] + 4 * rows, at[2]), (at[2] + rows, at[3])):
            if last > first:
                yield "padding", f"batch {index}", start + int(first), start + int(last)
    end_of_batches = where.offset(where.batches)
    yield "footer", "footer", end_of_batches, path.stat().st_size


def random_flips(path, key, count, seed=0):
    """As many flips in each kind of region: (kind, part, byte, bit)."""
    rng = np.random.default_rng(seed)
    by_name = {}
    for name, part, first, last in regions(path, key):
        by_name.setdefault(name, []).append((part, first, last))
    for at in range(count):
        name = list(by_name)[at % len(by_name)]
        part, first, last = by_name[name][rng.integers(len(by_name[name]))]
        yield name, part, int(rng.integers(first, last)), int(rng.integers(8))


class Flipped:
    """A file with one bit flipped, for as long as the context lasts."""

    def __init__(self, path, byte, bit):
        self.path, self.byte, self.bit = path, byte, bit

    def _flip(self):
        with open(self.path, "r+b") as file:
            file.seek(self.byte)
            before = file.read(1)[0]
            file.seek(self.byte)
            file.write(bytes([before ^ 1 << self.bit]))

    def __enter__(self):
        self._flip()

    def __exit__(self, *_):
        self._flip()


def test_every_kind_of_region_is_flipped(sixteen):
    _, key, path = sixteen
    names = {name for name, *_ in regions(path, key)}
    assert names == {
        "header", "metadata", "page bytes", "guest pages", "kinds", "tags", "versions", "padding", "footer",
    }  # fmt: skip
    covered = sorted((first, last) for _, _, first, last in regions(path, key))
    assert all(one[1] == two[0] for one, two in itertools.pairwise(covered)), "no byte is left out"
    assert covered[0][0] == 0
    assert covered[-1][1] == path.stat().st_size


def test_every_flipped_bit_is_found_and_located(sixteen):
    """In pages, columns, padding, metadata, header and footer: named by batch, or as header or footer."""
    _, key, path = sixteen
    for name, part, byte, bit in random_flips(path, key, FLIPS):
        with Flipped(path, byte, bit):
            with pytest.raises(DamagedSnapshotError) as found:
                verify(path, key)
            assert found.value.part == part, f"{name}: byte {byte}, bit {bit}"
            assert found.value.exit_status == 4
    assert verify(path, key).rows == PAGES_16_MIB


def test_no_page_of_a_damaged_batch_reaches_a_guest(sixteen, monkeypatch):
    """Eagerly: the guest never runs, and none of its frames ever had a page of that batch."""
    host, key, path = sixteen
    firmware = vault.firmware_of(host.machine.ultravisor)
    owned = []
    real = type(host.machine.ultravisor).end_restore

    def never(*_):
        raise AssertionError("the guest would have run")

    monkeypatch.setattr(type(host.machine.ultravisor), "end_restore", never)
    for _, part, byte, bit in random_flips(path, key, 18 + FLIPS // 50, seed=1):
        with Flipped(path, byte, bit), pytest.raises(DamagedSnapshotError) as found:
            host.restore(path, key=key)
        assert found.value.part == part
        owned.append(np.count_nonzero(firmware.owner))
    assert set(owned) == {0}, "nothing of a guest is left"
    assert host.check() == []
    monkeypatch.setattr(type(host.machine.ultravisor), "end_restore", real)
    end(host, host.restore(path, key=key))


def test_a_lazy_guest_runs_until_it_needs_a_damaged_batch_and_gets_no_page_of_it(sixteen):
    """Whichever page of the batch it touches first: all rows are verified before one is imported."""
    host, key, path = sixteen
    file = SnapshotFile(path, key)
    file.close()
    damaged = file.layout.offset(5) + int(file.columns(5)[0]) + 4096 * 77 + 5
    with Flipped(path, damaged, 3):
        vm = host.restore(path, key=key, lazy=True, prefetch=False)
        vm.read(np.arange(256 * 4))
        with pytest.raises(DamagedSnapshotError) as found:
            vm.read(np.array([5 * 256 + 200]))
        assert (found.value.batch, found.value.page) == (5, 5 * 256 + 77)
        firmware = vault.firmware_of(host.machine.ultravisor)
        pages = firmware.guest_page[firmware.owner != 0]
        assert not np.any((pages >= 5 * 256) & (pages < 6 * 256))
        vm.read(np.array([2000]))
    end(host, vm)


def test_a_file_that_shrinks_under_a_lazy_guest_is_an_error_and_no_crash(sixteen, tmp_path):
    """Nothing is mapped: a page comes in from a private copy."""
    host, key, path = sixteen
    copy = shutil.copy(path, tmp_path / "a.arrow")
    vm = host.restore(copy, key=key, lazy=True, prefetch=False)
    vm.read(np.array([0]))
    os.truncate(copy, 1 << 20)
    with pytest.raises(DamagedSnapshotError, match="truncated"):
        vm.read(np.array([4000]))
    end(host, vm)


def test_damage_that_the_background_meets_is_told_and_harms_nobody_else(sixteen):
    host, key, path = sixteen
    other = running_guest(host, 512)
    before = memory_of(other)
    file = SnapshotFile(path, key)
    file.close()
    with Flipped(path, file.layout.offset(9) + 5000, 1):
        vm = host.restore(path, key=key, lazy=True)
        with pytest.raises(DamagedSnapshotError, match="batch 9"):
            vm.complete_restore()
        vm.shutdown()
    np.testing.assert_array_equal(memory_of(other), before)
    end(host, other)


@pytest.mark.parametrize("share", [0.0001, 0.03, 0.5, 0.99, 0.9999, 0.999999])
def test_a_truncated_file_is_refused_wherever_it_ends(sixteen, tmp_path, share):
    _, key, path = sixteen
    copy = shutil.copy(path, tmp_path / "a.arrow")
    os.truncate(copy, int(path.stat().st_size * share))
    with pytest.raises(DamagedSnapshotError) as found:
        verify(copy, key)
    assert found.value.exit_status == 4
    assert "truncated" in str(found.value)


@pytest.mark.parametrize("size", [0, 3])
def test_what_bears_the_magic_at_neither_end_is_no_arrow_file(sixteen, tmp_path, size):
    _, key, _ = sixteen
    (tmp_path / "a.arrow").write_bytes(bytes(size))
    with pytest.raises(NotAnArrowFileError) as found:
        verify(tmp_path / "a.arrow", key)
    assert found.value.exit_status == 2


def test_an_arrow_file_that_is_no_snapshot_cannot_be_told_from_a_damaged_one(sixteen, tmp_path):
    import pyarrow as pa

    _, key, _ = sixteen
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema([("x", pa.int8())])):
        pass
    with pytest.raises(DamagedSnapshotError, match="header"):
        info(tmp_path / "a.arrow")
    with pytest.raises(DamagedSnapshotError, match="header"):
        verify(tmp_path / "a.arrow", key)


def test_batches_that_change_places_are_refused(sixteen, tmp_path):
    _, key, path = sixteen
    copy = shutil.copy(path, tmp_path / "a.arrow")
    exchange_batches(copy, copy, key, 3, 8)
    with pytest.raises(DamagedSnapshotError, match=r"batch [38]: altered, moved"):
        verify(copy, key)


def exchange_batches(one, other, key, first, second):
    """Batch `first` of one file and batch `second` of another change places."""
    with SnapshotFileOf(one, key) as file:
        places = file.layout.offset(first), file.layout.offset(second), file.layout.stride
    with open(one, "r+b") as a, open(other, "r+b") as b:
        parts = []
        for file, at in ((a, places[0]), (b, places[1])):
            file.seek(at)
            parts.append(file.read(places[2]))
        for file, at, part in ((a, places[0], parts[1]), (b, places[1], parts[0])):
            file.seek(at)
            file.write(part)


class SnapshotFileOf(SnapshotFile):
    """A snapshot that is closed with the context."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def test_batches_of_two_snapshots_of_one_guest_cannot_be_mixed(host, vm, key, tmp_path):
    """Same guest, same key file, same place: but every file has keys of its own."""
    for name in ("a.arrow", "b.arrow"):
        vm.snapshot(tmp_path / name, key=key)
    exchange_batches(tmp_path / "a.arrow", tmp_path / "b.arrow", key, 2, 2)
    for name in ("a.arrow", "b.arrow"):
        with pytest.raises(DamagedSnapshotError, match="batch 2: altered, moved, or of another snapshot"):
            verify(tmp_path / name, key)


def test_an_older_version_of_a_page_does_not_pass(host, vm, key, tmp_path):
    """The row of a page, page bytes and tag and version, from an earlier snapshot of the same guest."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    change(vm, [300])
    vm.snapshot(tmp_path / "b.arrow", key=key)
    with SnapshotFileOf(tmp_path / "a.arrow", key) as file:
        at, start, row = file.columns(1), file.layout.offset(1), 300 - 256
        places = [(start + int(at[c]) + width * row, width) for c, width in ((0, 4096), (3, 32), (4, 8))]
    with open(tmp_path / "a.arrow", "rb") as old, open(tmp_path / "b.arrow", "r+b") as new:
        for place, width in places:
            old.seek(place)
            new.seek(place)
            new.write(old.read(width))
    with pytest.raises(DamagedSnapshotError, match="batch 1"):
        verify(tmp_path / "b.arrow", key)
    with open(tmp_path / "a.arrow", "rb") as old, open(tmp_path / "b.arrow", "r+b") as new:
        old.seek(places[0][0])
        new.seek(places[0][0])
        new.write(old.read(4096))
    with pytest.raises(DamagedSnapshotError, match="batch 1"):
        verify(tmp_path / "b.arrow", key)


def test_another_key_opens_nothing(sixteen, tmp_path):
    host, _, path = sixteen
    other = SnapshotKey.create(tmp_path / "other")
    for refused in (lambda: verify(path, other), lambda: host.restore(path, key=other, lazy=True)):
        with pytest.raises(WrongKeyError) as found:
            refused()
        assert found.value.exit_status == 4


def test_a_chain_whose_parent_is_missing_or_another_snapshot_is_refused(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    change(vm, [1])
    vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    vm.snapshot(tmp_path / "other.arrow", key=key)
    os.replace(tmp_path / "a.arrow", tmp_path / "kept.arrow")
    with pytest.raises(WrongParentError, match=r"a\.arrow") as found:
        Chain(tmp_path / "b.arrow", key)
    assert found.value.exit_status == 4
    shutil.copy(tmp_path / "other.arrow", tmp_path / "a.arrow")
    with pytest.raises(WrongParentError, match="builds on root"):
        host.restore(tmp_path / "b.arrow", key=key)
    (tmp_path / "a.arrow").write_bytes(b"")
    with pytest.raises(WrongParentError, match="not an Arrow file"):
        host.restore(tmp_path / "b.arrow", key=key)


def test_what_cannot_be_read_says_so(sixteen, tmp_path):
    _, key, _ = sixteen
    with pytest.raises(UsageError, match="No such file"):
        verify(tmp_path / "none.arrow", key)
    with pytest.raises(UsageError, match=r"regular file|directory"):
        verify(tmp_path, key)


def test_flipped_bits_are_refused_by_the_command_with_status_4(sixteen, tmp_path):
    _, key, path = sixteen
    for _, part, byte, bit in random_flips(path, key, COMMAND_FLIPS, seed=2):
        with Flipped(path, byte, bit):
            done = subprocess.run(
                [sys.executable, "-m", "lazypv", "snapshot", "verify", str(path), "--key", str(key.path)],
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
        assert done.returncode == 4, done.stderr
        assert part in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
