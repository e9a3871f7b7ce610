"""How kernels are compiled and kept: once for each signature, never stale, by any number of processes."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import lazypv_kernels
from lazypv_kernels import access, scan, sweep
from lazypv_kernels.claims import claim
from lazypv_kernels.compiled import KERNELS, ArrayRefusedError, compilations
from lazypv_kernels.door import read_only_parameters
from lazypv_kernels.layout import DON_UV
from lazypv_kernels.native import load_acquire, store_release
from lazypv_kernels.scan import first_outside

PACKAGE = Path(lazypv_kernels.__file__).parent
ASK = """
import json, sys
import numpy as np
from lazypv_kernels import scan
from lazypv_kernels.compiled import compilations
words, hashes = np.arange(1024, dtype=np.uint64).reshape(2, 512), np.zeros(2, np.uint64)
scan.hash_frames(words, 0, 2, hashes)
print(json.dumps({"answer": [str(h) for h in hashes], "compiled": compilations()}))
"""


def ask(cache, *, sources=PACKAGE.parent, code=ASK, **more):
    """Run `code` in a process of its own, with kernels from `sources`, kept in `cache`; what it says."""
    environment = os.environ | {"LAZYPV_CACHE_DIR": str(cache), "PYTHONPATH": str(sources)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, **more
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


def kept(cache):
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())


# --- the door ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_new_signature():
    """The kernels that were compiled before are all that there is afterwards."""
    frames, state = np.arange(4), np.zeros(4, np.uint8)
    sweep.donate(state, np.zeros(4, np.uint16), frames, DON_UV, 0)
    scan.hash_frames(np.zeros((2, 512), np.uint64), 0, 2, np.zeros(2, np.uint64))
    scan.first_outside(frames, 4)
    before = {kernel.py_func: len(kernel.signatures) for kernel in KERNELS}
    yield
    assert {kernel.py_func: len(kernel.signatures) for kernel in KERNELS} == before


def donate(state, owner, frames, *more):
    return sweep.donate(state, owner, frames, *(more or (DON_UV, 0)))


@pytest.mark.parametrize("step", [2, -1, 3])
@pytest.mark.usefixtures("no_new_signature")
def test_a_strided_array_that_is_only_read_is_made_contiguous(step):
    """And the kernel does to the frames that it names what it always does."""
    state, frames = np.zeros(16, np.uint8), np.arange(16)[::step]
    assert donate(state, np.zeros(16, np.uint16), frames) == -1
    assert np.array_equal(np.flatnonzero(state == DON_UV), np.sort(frames))


@pytest.mark.usefixtures("no_new_signature")
def test_a_strided_array_that_is_written_to_is_refused():
    """A copy would get the result: neither array is touched, and the message says which parameter it is."""
    state = np.zeros(32, np.uint8)
    with pytest.raises(ArrayRefusedError, match=r"donate: array 'state', uint8\[16\], is strided"):
        donate(state[::2], np.zeros(16, np.uint16), np.arange(16))
    assert not state.any()


@pytest.mark.usefixtures("no_new_signature")
def test_a_read_only_array_that_is_written_to_is_refused():
    """Whoever made it read-only meant that."""
    state = np.zeros(16, np.uint8)
    state.flags.writeable = False
    with pytest.raises(ArrayRefusedError, match=r"'state'.* is read-only"):
        donate(state, np.zeros(16, np.uint16), np.arange(16))
    assert not state.any()


@pytest.mark.usefixtures("no_new_signature")
def test_a_read_only_array_that_is_only_read_is_read_where_it_is(tmp_path):
    """Memory that is mapped read-only: a copy would show in the answer to a change made from another mapping."""
    file = tmp_path / "words"
    file.write_bytes(np.arange(1024, dtype=np.uint64).tobytes())
    with open(file, "r+b") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        words = np.frombuffer(mapped, np.uint64).reshape(2, 512)
        assert not words.flags.writeable
        hashes, again = np.zeros(2, np.uint64), np.zeros(2, np.uint64)
        scan.hash_frames(words, 0, 2, hashes)
        scan.hash_frames(words.copy(), 0, 2, again)
    assert np.array_equal(hashes, again)
    assert np.shares_memory(scan.hash_frames._door.admit(0, words), words)
    assert not words.flags.writeable


@pytest.mark.usefixtures("no_new_signature")
def test_other_elements_are_converted_where_they_are_only_read_and_fit():
    """Frames as int32, or in the other byte order; not where a value could be lost."""
    state, owner = np.zeros(16, np.uint8), np.zeros(16, np.uint16)
    assert donate(state, owner, np.array([3, 5], np.int32)) == -1
    assert donate(state, owner, np.array([7], ">i8")) == -1
    assert np.flatnonzero(state).tolist() == [3, 5, 7]
    with pytest.raises(ArrayRefusedError, match=r"'frames'.*is not of int64"):
        donate(state, owner, np.array([1.0]))
    with pytest.raises(ArrayRefusedError, match=r"'owner'.*is not of uint16"):
        donate(state, owner.astype(np.uint32), np.arange(2))


@pytest.mark.usefixtures("no_new_signature")
def test_every_width_of_a_whole_number_is_the_same_to_a_kernel():
    """NumPy gives its own kinds; each would be compiled anew."""
    frames = np.arange(4)
    for kind in (int, np.int64, np.int32, np.uint8, np.uint16, np.uint32):
        assert scan.first_outside(frames, kind(3)) == 3


def test_what_could_be_written_to_is_not_taken_for_read():
    """Elements, sizes and shapes are read; a view, another name, a store or an unknown callee are not."""

    def function(element, size, two, view, row, alias, store, added, loaded, released, given, handed, unused):
        other = alias
        store[0] = added[0]
        added[1] += 1
        load_acquire(loaded, 0)
        store_release(released, 0, 1)
        first_outside(given, 3)
        claim(handed, 0)
        return element[3], size.size, two[0, 1], view[1:], row[0][1], other

    read = read_only_parameters(function)
    assert {"element", "size", "two", "loaded", "given", "unused"} <= set(read)
    assert not {"view", "alias", "store", "added", "released", "handed"} & set(read)
    assert (read["element"], read["two"], read["row"], read["given"]) == (1, 2, 1, 1)


def test_a_row_of_a_page_is_a_view_and_so_refused():
    """An element of a one-dimensional array is a number; the same text on two dimensions gives a view."""
    door = scan.count_owned._door
    with pytest.raises(ArrayRefusedError):
        door.admit(0, np.zeros((4, 8), np.uint8)[:, ::2])
    assert door.admit(0, np.zeros(8, np.uint8)[::2]).flags.c_contiguous


# --- what is kept ------------------------------------------------------------------------------------------------


def test_importing_compiles_nothing(tmp_path):
    """No signature is given at import: not even a file is looked for."""
    code = (
        "import importlib, json, pkgutil, lazypv_kernels\n"
        "for each in pkgutil.iter_modules(lazypv_kernels.__path__):\n"
        "    importlib.import_module('lazypv_kernels.' + each.name)\n"
        "from lazypv_kernels.compiled import KERNELS, compilations\n"
        "loaded = sum(len(k.signatures) for k in KERNELS)\n"
        "print(json.dumps({'compiled': compilations(), 'kernels': len(KERNELS), 'loaded': loaded}))"
    )
    said = ask(tmp_path, code=code)
    assert (said["compiled"], said["loaded"]) == (0, 0)
    assert said["kernels"] > 50
    assert kept(tmp_path) == []


def test_a_second_process_compiles_nothing(tmp_path):
    """What the first has kept is what it runs."""
    first, second = ask(tmp_path), ask(tmp_path)
    assert first["compiled"] > 0
    assert second["compiled"] == 0
    assert first["answer"] == second["answer"]
    assert len(kept(tmp_path)) == first["compiled"]


def test_an_edited_callee_in_another_file_is_never_stale(tmp_path):
    """scan.hash_frames calls access.hash_words: the caller's own file stays as it was."""
    sources = tmp_path / "sources"
    shutil.copytree(PACKAGE, sources / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    cache = tmp_path / "cache"
    before = ask(cache, sources=sources)
    edited = sources / PACKAGE.name / "access.py"
    text = edited.read_text()
    start = text.index("def hash_words")
    at = text.index("return ", start)
    edited.write_text(text[:at] + "return np.uint64(4711)\n    " + text[at:])
    after = ask(cache, sources=sources)
    assert after["answer"] == ["4711", "4711"] != before["answer"]
    edited.write_text(text)
    again = ask(cache, sources=sources)
    assert (again["answer"], again["compiled"]) == (before["answer"], 0)


@pytest.mark.parametrize(
    ("name", "value"), [("NUMBA_CPU_FEATURES", "+sse2"), ("NUMBA_CPU_NAME", "generic")], ids=["features", "name"]
)
def test_another_processor_has_kernels_of_its_own(tmp_path, monkeypatch, name, value):
    """The same home directory on two computers: neither runs what was compiled for the other."""
    code = "import json; from lazypv_kernels.compiled import source_key; print(json.dumps({'key': source_key()}))"
    here = ask(tmp_path, code=code)
    monkeypatch.setenv(name, value)
    assert ask(tmp_path, code=code)["key"] != here["key"]


def test_two_processes_may_compile_at_once(tmp_path):
    """Both get the right answer, and leave one whole file for each signature."""
    said = [None] * 3

    def one(at):
        said[at] = ask(tmp_path)

    threads = [threading.Thread(target=one, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(each["answer"]) for each in said}) == 1
    last = ask(tmp_path)
    assert (last["compiled"], last["answer"]) == (0, said[0]["answer"])
    files = kept(tmp_path)
    assert len(files) == max(each["compiled"] for each in said)
    assert all(name.endswith(".kernel") for name in files)


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-9] + b"x" + data[-8:]])
def test_a_file_that_is_not_whole_is_compiled_anew(tmp_path, harm):
    """Cut off, empty, or with a byte changed."""
    first = ask(tmp_path)
    for path in tmp_path.rglob("*.kernel"):
        path.write_bytes(harm(path.read_bytes()))
    second = ask(tmp_path)
    assert (second["answer"], second["compiled"]) == (first["answer"], first["compiled"])
    assert ask(tmp_path)["compiled"] == 0


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path):
    """The answer is the same; one line, no traceback."""
    (tmp_path / "file").write_text("in the way")
    said = ask(tmp_path / "file")
    assert said["compiled"] > 1
    assert len(said["stderr"].splitlines()) == 1
    assert "cannot be kept" in said["stderr"]
    assert "LAZYPV_CACHE_DIR" in said["stderr"]


def test_a_full_disk_costs_one_warning_and_leaves_nothing_behind(tmp_path):
    """Here a limit on the size of files stands for it: the write fails in the middle."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    said = ask(tmp_path, code=limit + ASK)
    assert said["compiled"] > 1
    assert len(said["stderr"].splitlines()) == 1
    assert "cannot be kept" in said["stderr"]
    assert kept(tmp_path) == []
    assert ask(tmp_path)["answer"] == said["answer"]


def test_compilations_are_counted():
    """A signature that was never met is one; the same again is none."""
    before = compilations()
    access.stamp_offset(5)
    between = compilations()
    access.stamp_offset(6)
    assert compilations() == between <= before + 1
