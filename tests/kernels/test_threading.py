"""Our kernels on a pool of threads beside numba's own threads: the process never aborts.

numba's `workqueue` aborts the process when two Python threads enter parallel kernels at once. Ours are not parallel in
that sense: whoever uses this package may use numba's threads beside it, whichever kind is installed.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lazypv_kernels import door, sweep
from lazypv_kernels.compiled import KERNELS

BOTH = """
import sys, threading
import numba, numpy as np
from lazypv_kernels import scan, sweep
from lazypv_kernels.workers import Workers
numba.config.THREADING_LAYER = sys.argv[1]

@numba.njit(parallel=True)
def theirs(values):
    total = 0.0
    for i in numba.prange(values.size):
        total += np.sqrt(values[i])
    return total

words = np.zeros((4096, 512), np.uint64)
hashes = np.zeros(4096, np.uint64)
frames = np.arange(4096)
values = np.ones(100_000)
theirs(values)
scan.hash_frames(words, 0, 1, hashes)
workers = Workers(4)
done = threading.Event()
errors = []

def ours():
    try:
        while not done.is_set():
            workers.run(4096, lambda first, last: scan.hash_frames(words, first, last, hashes), chunk=64)
            state, owner = np.zeros(4096, np.uint8), np.zeros(4096, np.uint16)
            assert sweep.donate(state, owner, frames, 4, 0) == -1 and state.all()
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=ours) for _ in range(3)]
for thread in threads:
    thread.start()
sums = {theirs(values) for _ in range(300)}
done.set()
for thread in threads:
    thread.join()
workers.close()
assert not errors, errors
assert len(set(hashes.tolist())) == 1
print(numba.threading_layer(), max(sums))
"""


def layer_is_there(layer):
    """Whether numba can load this layer here."""
    module = {"omp": "omppool", "tbb": "tbbpool"}.get(layer, layer)
    code = f"from numba.np.ufunc import {module}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_a_pool_of_ours_and_any_threading_layer_of_numba_live_side_by_side(layer):
    """Issue: never aborts the process."""
    if not layer_is_there(layer):
        pytest.skip(f"numba has no {layer} here: the library that it needs is not installed")
    done = subprocess.run(
        [sys.executable, "-c", BOTH, layer], capture_output=True, text=True, env=os.environ.copy(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [layer, "100000.0"]


def test_no_kernel_is_parallel_in_numbas_sense():
    """One that were would abort the process as soon as two guests meet in it; all let go of the interpreter lock."""
    assert KERNELS
    for kernel in KERNELS:
        assert not kernel.targetoptions.get("parallel"), kernel.py_func.__name__
        assert kernel.targetoptions["nogil"], kernel.py_func.__name__


def test_no_two_threads_parse_at_once(monkeypatch):
    """On CPython 3.11 two parsers at work end in "AST constructor recursion depth mismatch", as vCPUs once found."""
    inside, most = [], []
    parse = ast.parse

    def watched(source):
        inside.append(None)
        time.sleep(0.001)
        most.append(len(inside))
        try:
            return parse(source)
        finally:
            inside.pop()

    monkeypatch.setattr(door.ast, "parse", watched)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(door.read_only_parameters, [sweep.destroy_pages.py_func] * 8))
    assert max(most) == 1
    assert all(each == read[0] for each in read)
