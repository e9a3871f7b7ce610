"""Kernels on other processors: run with what every x86-64 has, and compiled for aarch64."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from .emulated import AS_AARCH64

TESTS = Path(__file__).parents[1]
SAMPLE = (
    "tests/kernels/test_sweep.py::test_destroying_is_its_twin",
    "tests/kernels/test_sweep.py::test_every_byte_of_every_destroyed_page_is_zero",
    "tests/kernels/test_seal.py",
    "tests/kernels/test_claims.py",
)
SAMPLED = "1- or 7- or 65- or test_every_byte or claim or sealed or export"

EVERY = """
for kernel in entries():
    library = compile_for(kernel).library
    assembly = library.get_asm_str()
    counts = {word: assembly.count(chr(9) + word + chr(9)) for word in ("stnp", "dmb", "ldaxr", "ldaxrb", "stlxrb")}
    counts["yield"] = assembly.count(chr(9) + "yield")
    print(json.dumps({"name": kernel.py_func.__name__, "elf": object_of(library)[:20].hex(), **counts}), flush=True)
"""
EM_AARCH64 = 183
BASELINE = "x86-64"


@pytest.mark.timeout(900)
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the baseline of x86-64 runs on x86-64 only")
def test_kernels_do_the_same_on_the_baseline_of_their_processor(tmp_path):
    """No feature beyond what every x86-64 has: streaming stores of 16 bytes, no AVX; the twins agree all the same."""
    environment = os.environ | {
        "NUMBA_CPU_NAME": BASELINE,
        "NUMBA_CPU_FEATURES": "",
        "LAZYPV_CACHE_DIR": str(tmp_path),
        "PYTEST_ADDOPTS": "",
    }
    check = "from lazypv_kernels.store import processor; print(*processor(), sep='|')"
    said = subprocess.run(
        [sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert said == f"{BASELINE}|"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *SAMPLE, "-v", "-p", "no:cacheprovider", "-k", SAMPLED],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 30
    assert list(tmp_path.rglob("*.kernel")), "the kernels of this processor were not compiled here"


@pytest.fixture(scope="module")
def compiled_for_aarch64():
    """What was emitted for each kernel that others do not contain."""
    done = subprocess.run([sys.executable, "-c", AS_AARCH64 + EVERY], capture_output=True, text=True, check=False)
    if "No available targets" in done.stderr or "Unable to find target" in done.stderr:
        pytest.skip("this llvmlite cannot emit code for aarch64")
    assert done.returncode == 0, done.stderr[-4000:]
    return {each["name"]: each for each in map(json.loads, done.stdout.splitlines())}


@pytest.mark.timeout(900)
def test_every_kernel_compiles_for_aarch64(compiled_for_aarch64):
    """To an object file of that machine: no intrinsic of another processor is left in it."""
    assert len(compiled_for_aarch64) > 40
    for name, each in compiled_for_aarch64.items():
        head = bytes.fromhex(each["elf"])
        assert head[:4] == b"\x7fELF", name
        assert int.from_bytes(head[18:20], "little") == EM_AARCH64, name


@pytest.mark.timeout(900)
def test_intrinsics_become_what_aarch64_has_for_them(compiled_for_aarch64):
    """Streaming stores of pairs, barriers, exclusive loads for compare-and-swap, and a hint in loops that wait."""
    destroy = compiled_for_aarch64["clean_configuration"]
    assert destroy["stnp"] > 0
    assert destroy["dmb"] > 0
    assert destroy["ldaxr"] + destroy["ldaxrb"] > 0
    assert compiled_for_aarch64["give_back"]["yield"] > 0
    assert compiled_for_aarch64["first_outside"]["stnp"] == 0
