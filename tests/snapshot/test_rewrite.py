"""Merge, diff, recover, export, import; files that data tools read; stores named by a URI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from elftools.elf.elffile import ELFFile

from lazypv.errors import UsageError
from lazypv.image import open_image
from lazypv.snapshot import layout
from lazypv.snapshot.elf_core import export_core
from lazypv.snapshot.errors import DamagedSnapshotError, IncompleteSnapshotError, SnapshotWriteError
from lazypv.snapshot.reader import SnapshotFile
from lazypv.snapshot.rewrite import import_image, merge, recover, unfinished_beside
from lazypv.snapshot.verify import diff, info, table, verify

from .conftest import PAGES, an_image, change, end, memory_of

READELF = shutil.which("readelf")


@pytest.fixture
def chain(vm, key, tmp_path):
    """Three snapshots, each on the one before."""
    names = [tmp_path / name for name in ("a.arrow", "b.arrow", "c.arrow")]
    vm.snapshot(names[0], key=key)
    change(vm, [1, 2, 600], seed=1)
    vm.snapshot(names[1], key=key, parent=names[0])
    change(vm, [2, 900], seed=2)
    vm.snapshot(names[2], key=key, parent=names[1])
    return names


def test_a_merged_file_is_the_newest_state_alone(host, vm, key, tmp_path, chain):
    merge(list(chain), tmp_path / "m.arrow", key)
    for name in chain:
        name.unlink()
    other = host.restore(tmp_path / "m.arrow", key=key)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_a_merged_file_stands_for_what_it_was_made_of(host, vm, key, tmp_path, chain):
    """As new as its newest part in the ledger, and a parent for the guest that goes on."""
    merge([chain[2]], tmp_path / "m.arrow", key)
    assert verify(tmp_path / "m.arrow", key).ledger == "newest"
    change(vm, [44])
    assert vm.snapshot(tmp_path / "d.arrow", key=key, parent=tmp_path / "m.arrow").pages == 1
    other = host.restore(tmp_path / "d.arrow", key=key)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_a_child_of_a_snapshot_is_a_child_of_its_merged_form(host, vm, key, tmp_path, chain):
    merge([chain[1]], tmp_path / "m.arrow", key)
    shutil.move(tmp_path / "m.arrow", chain[1])
    chain[0].unlink()
    other = host.restore(chain[2], key=key)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    end(host, vm, other)


def test_nothing_replaces_what_it_is_made_of(host, vm, key, tmp_path, chain):
    """A child in its parent's place would be its own parent, and the state lost; others may build on it too."""
    before = [name.read_bytes() for name in chain]
    (tmp_path / "link").symlink_to(chain[0])
    for target in (*chain, tmp_path / "link"):
        with pytest.raises(UsageError, match="would be replaced"):
            vm.snapshot(target, key=key, parent=chain[2])
        with pytest.raises(UsageError, match="would be replaced"):
            export_core(chain[2], target, key)
    for target in chain[:2]:
        with pytest.raises(UsageError, match="would be replaced"):
            merge(list(chain), target, key)
        with pytest.raises(UsageError, match="would be replaced"):
            recover(target, target, key)
    assert [name.read_bytes() for name in chain] == before
    vm.snapshot(tmp_path / "d.arrow", key=key, parent=chain[2])
    merge([chain[2]], chain[2], key)
    assert verify(chain[2], key).files == [str(chain[2])]
    end(host, vm)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_save_needs_no_more_of_its_chain_than_the_parent(host, vm, key, tmp_path, chain, lost):
    chain[lost].unlink()
    assert vm.snapshot(tmp_path / "d.arrow", key=key, parent=chain[2]).pages == 0
    end(host, vm)


@pytest.mark.parametrize("uri", ["foo://x", "://"])
def test_a_uri_that_names_no_store_is_bad_use(host, vm, key, uri):
    with pytest.raises(UsageError, match=re.escape(uri)):
        verify(uri, key)
    with pytest.raises(UsageError, match=re.escape(uri)):
        vm.snapshot(uri, key=key)
    end(host, vm)


def test_files_that_are_no_chain_are_not_merged(vm, key, tmp_path, chain):
    vm.snapshot(tmp_path / "other.arrow", key=key)
    with pytest.raises(UsageError, match="does not build on"):
        merge([*chain, tmp_path / "other.arrow"], tmp_path / "m.arrow", key)
    assert not (tmp_path / "m.arrow").exists()


def test_a_difference_names_the_pages_that_differ(key, chain):
    assert diff(chain[0], chain[2], key).changed.tolist() == [1, 2, 600, 900]
    found = diff(chain[1], chain[2], key)
    assert found.changed.tolist() == [2, 900]
    assert found.compared == 2, "rows of the same file need no comparing"
    assert found.runs() == [(2, 1), (900, 1)]


def test_a_difference_is_of_content_not_of_cipher_text(vm, key, tmp_path):
    for name in ("a.arrow", "b.arrow"):
        vm.snapshot(tmp_path / name, key=key)
    found = diff(tmp_path / "a.arrow", tmp_path / "b.arrow", key)
    assert found.changed.size == 0
    assert found.compared > 500


# --- recover -----------------------------------------------------------------------------------------------------


def test_complete_batches_of_an_unfinished_file_are_recovered_and_marked(host, vm, key, tmp_path):
    """A file that ends in its third batch, and whose second was never written."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    file = SnapshotFile(tmp_path / "a.arrow", key)
    file.close()
    part = tmp_path / "part"
    content = bytearray((tmp_path / "a.arrow").read_bytes()[: file.layout.offset(3) - 1])
    content[file.layout.offset(1) : file.layout.offset(2)] = bytes(file.layout.stride)
    part.write_bytes(content)
    found = recover(part, tmp_path / "r.arrow", key)
    assert (found.batches, found.of) == (1, 4)
    told = verify(tmp_path / "r.arrow", key)
    assert told.incomplete
    assert told.rows == 256
    assert info(tmp_path / "r.arrow")["incomplete"]
    with pytest.raises(IncompleteSnapshotError, match="--force") as refused:
        host.restore(tmp_path / "r.arrow", key=key)
    assert refused.value.exit_status == 4
    other = host.restore(tmp_path / "r.arrow", key=key, force=True)
    memory = memory_of(vm)
    memory[256:] = 0
    np.testing.assert_array_equal(memory_of(other), memory)
    end(host, vm, other)


def test_a_batch_with_a_flipped_bit_is_not_recovered(vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    file = SnapshotFile(tmp_path / "a.arrow", key)
    file.close()
    content = bytearray((tmp_path / "a.arrow").read_bytes())
    content[file.layout.offset(2) + 900] ^= 1
    (tmp_path / "part").write_bytes(content)
    assert recover(tmp_path / "part", tmp_path / "r.arrow", key).batches == 3


def test_where_nothing_is_complete_nothing_is_recovered(vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    (tmp_path / "part").write_bytes((tmp_path / "a.arrow").read_bytes()[:9000])
    with pytest.raises(DamagedSnapshotError, match="no batch"):
        recover(tmp_path / "part", tmp_path / "r.arrow", key)
    assert not (tmp_path / "r.arrow").exists()


# --- ELF ---------------------------------------------------------------------------------------------------------


def test_an_exported_core_has_shared_pages_plain_and_secure_ones_as_cipher_text(vm, key, tmp_path, chain):
    export_core(chain[2], tmp_path / "core", key)
    memory = memory_of(vm)
    with open(tmp_path / "core", "rb") as file:
        core = ELFFile(file)
        assert (core["e_type"], core["e_machine"], core.elfclass, core.little_endian) == (
            "ET_CORE", "EM_S390", 64, False,
        )  # fmt: skip
        found = np.zeros((PAGES, 4096), np.uint8)
        for segment in core.iter_segments("PT_LOAD"):
            data = np.frombuffer(segment.data(), np.uint8).reshape(-1, 4096)
            first = segment["p_paddr"] // 4096
            found[first : first + len(data)] = data
            assert segment["p_memsz"] % 4096 == 0
        assert sum(segment["p_memsz"] for segment in core.iter_segments("PT_LOAD")) == PAGES * 4096
    shared = [PAGES - 7, PAGES - 3]
    np.testing.assert_array_equal(found[shared], memory[shared])
    secure = np.flatnonzero(memory.any(axis=1) & ~np.isin(np.arange(PAGES), shared))
    assert not (found[secure] == memory[secure]).all(axis=1).any()
    assert found[secure].any(axis=1).all()


@pytest.mark.skipif(READELF is None, reason="this computer has no readelf")
def test_readelf_reads_an_exported_core(key, tmp_path, chain):
    export_core(chain[0], tmp_path / "core", key)
    done = subprocess.run([READELF, "-nl", "--wide", tmp_path / "core"], capture_output=True, text=True, check=True)
    assert "CORE (Core file)" in done.stdout
    assert "LAZYPV" in done.stdout
    assert done.stdout.count("LOAD ") > 3
    assert done.stderr == ""


def test_a_dump_becomes_a_snapshot_of_a_protected_guest(host, key, tmp_path, request):
    image = open_image(request.config.rootpath / "tests/data/s390x-256m-part.elf.zst")
    import_image(image, tmp_path / "a.arrow", key)
    told = verify(tmp_path / "a.arrow", key)
    assert told.kinds["sealed"] == np.count_nonzero(image.pages.any(axis=1))
    assert told.rows == image.size // 4096
    other = host.restore(tmp_path / "a.arrow", key=key)
    expected = np.zeros((image.size // 4096, 4096), np.uint8)
    expected[image.guest_page] = image.pages
    np.testing.assert_array_equal(memory_of(other), expected)
    end(host, other)


# --- other readers -----------------------------------------------------------------------------------------------


def test_plain_arrow_reads_a_snapshot(vm, key, tmp_path):
    """File and stream reader, columns as the format says, page bytes on 4 KiB boundaries of the file."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    read = pa.ipc.open_file(tmp_path / "a.arrow").read_all()
    read.validate(full=True)
    assert read.schema.equals(pa.schema(layout.FIELDS))
    assert read["guest_page"].to_pylist() == list(range(PAGES))
    assert read.equals(pa.ipc.open_stream((tmp_path / "a.arrow").read_bytes()[8:]).read_all())
    assert table(tmp_path / "a.arrow").equals(read)
    mapped = pa.memory_map(str(tmp_path / "a.arrow"))
    base = mapped.read_buffer(8).address
    reader = pa.ipc.open_file(mapped)
    for index in range(PAGES // 256):
        batch = reader.get_batch(index)
        assert batch.num_rows == 256
        assert (batch.column("data").buffers()[1].address - base) % 4096 == 0


def test_zero_pages_are_holes_of_the_file(host, key, tmp_path):
    vm = host.create_vm(PAGES * 4096, image=an_image(PAGES))
    vm.protect()
    vm.snapshot(tmp_path / "a.arrow", key=key)
    stored = (tmp_path / "a.arrow").stat().st_blocks * 512
    assert info(tmp_path / "a.arrow")["kinds"] == {"zero": 768, "plain": 0, "sealed": 256}
    if stored >= (tmp_path / "a.arrow").stat().st_size:
        pytest.skip("this file system has no holes")
    assert stored < 1.2 * 256 * 4096 + (64 << 10)


ONE_LINERS = re.search(
    r"<!-- one-liners -->\n```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("line", ONE_LINERS[1].splitlines())
def test_the_one_liners_of_the_readme_count_pages_of_each_kind(vm, key, tmp_path, monkeypatch, line):
    """pandas, polars and DuckDB, as the README has them; the last statement of a line is what it shows."""
    pytest.importorskip(re.match(r"import (\w+)", line)[1])
    vm.snapshot(tmp_path / "guest.arrow", key=key)
    monkeypatch.chdir(tmp_path)
    *before, shown = line.split("; ")
    names = {}
    exec("\n".join(before), names)
    found = eval(shown, names)
    rows = (
        found.to_dict().items()
        if hasattr(found, "to_dict") and hasattr(found, "index")
        else found.iter_rows() if hasattr(found, "iter_rows") else found.fetchall()
    )  # fmt: skip
    kinds = info("guest.arrow")["kinds"]
    assert dict(rows) == {number: kinds[name] for number, name in enumerate(layout.KINDS)}


def test_a_store_named_by_a_uri_takes_and_gives_snapshots(host, vm, key, tmp_path):
    """Through pyarrow's stream, in order; a chain is found there too."""
    folder = f"file://{tmp_path}"
    vm.snapshot(f"{folder}/a.arrow", key=key)
    change(vm, [3])
    vm.snapshot(f"{folder}/b.arrow", key=key, parent=f"{folder}/a.arrow")
    assert verify(f"{folder}/b.arrow", key).batches == 5
    other = host.restore(f"{folder}/b.arrow", key=key, lazy=True)
    np.testing.assert_array_equal(memory_of(other), memory_of(vm))
    assert sorted(path.name for path in tmp_path.iterdir() if "arrow" in path.name) == ["a.arrow", "b.arrow"]
    end(host, vm, other)


# --- stores that do not take it ----------------------------------------------------------------------------------


@pytest.fixture
def limited_files():
    """No file may grow beyond 2 MiB: a cheap stand-in for a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_store_leaves_nothing_and_harms_nobody(host, vm, key, tmp_path, limited_files):
    before = memory_of(vm)
    for step in (
        lambda: vm.snapshot(tmp_path / "a.arrow", key=key),
        lambda: vm.snapshot(f"file://{tmp_path}/a.arrow", key=key),
        lambda: import_image(an_image(PAGES), tmp_path / "a.arrow", key),
    ):
        with pytest.raises(SnapshotWriteError, match=r"batch [0-9] of 4") as found:
            step()
        assert found.value.exit_status == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["guest.key"]
    np.testing.assert_array_equal(memory_of(vm), before)
    end(host, vm)


def test_a_full_tmpfs_leaves_the_previous_snapshot_as_it_was(host, vm, key, tmp_path):
    (tmp_path / "small").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "none", tmp_path / "small"], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        target = tmp_path / "small" / "a.arrow"
        saved = vm.snapshot(target, key=key)
        for _ in range(3):
            with pytest.raises(SnapshotWriteError, match="no space left"):
                vm.snapshot(target, key=key)
            with pytest.raises(SnapshotWriteError, match="no space left"):
                merge([target], tmp_path / "small" / "m.arrow", key)
        told = verify(target, key)
        assert (told.root, told.ledger) == (saved.root, "newest")
        assert os.listdir(tmp_path / "small") == ["a.arrow"]
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


def test_no_permission_says_so(vm, key, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(UsageError, match="may not be written"):
        vm.snapshot(tmp_path / "closed" / "a.arrow", key=key)


def test_what_a_killed_save_leaves_is_found_beside_its_target(tmp_path):
    (tmp_path / ".a.arrow.0123.unfinished").touch()
    assert unfinished_beside(tmp_path / "a.arrow") == [tmp_path / ".a.arrow.0123.unfinished"]
