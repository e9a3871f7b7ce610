"""Kernels on other processors: run with what every x86-64 has, and compiled for aarch64."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parents[1]
SAMPLE = (
    "tests/kernels/test_sweep.py::test_destroying_is_its_twin",
    "tests/kernels/test_sweep.py::test_every_byte_of_every_destroyed_page_is_zero",
    "tests/kernels/test_seal.py",
    "tests/kernels/test_claims.py",
)
SAMPLED = "1- or 7- or 65- or test_every_byte or claim or sealed or export"

AS_AARCH64 = """
import importlib, json, pkgutil, sys
import llvmlite.binding as llvm
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
# numba compiles for the processor that LLVM says this is.
llvm.get_process_triple = llvm.get_default_triple = lambda: "aarch64-unknown-linux-gnu"
llvm.get_host_cpu_name = lambda: "generic"
llvm.get_host_cpu_features = lambda: llvm.FeatureMap()
import lazypv_kernels
for module in pkgutil.iter_modules(lazypv_kernels.__path__):
    importlib.import_module("lazypv_kernels." + module.name)
from lazypv_kernels.signatures import entries, signature_of

def compile_for(kernel):
    return kernel._compiler.compile(signature_of(kernel), None)

def object_of(library):
    return library._codegen._tm.emit_object(library._final_module)
"""
EVERY = """
for kernel in entries():
    library = compile_for(kernel).library
    assembly = library.get_asm_str()
    counts = {word: assembly.count(chr(9) + word + chr(9)) for word in ("stnp", "dmb", "ldaxr", "ldaxrb", "stlxrb")}
    counts["yield"] = assembly.count(chr(9) + "yield")
    print(json.dumps({"name": kernel.py_func.__name__, "elf": object_of(library)[:20].hex(), **counts}), flush=True)
"""
# A program without a C library. A kernel is called with a place for its result, one for its error, and each array as
# owner, parent, size, bytes of an element, data, shape and strides.
ONE = r"""
from lazypv_kernels import sweep
compiled = compile_for(sweep.give_back)
name = compiled.fndesc.mangled_name

def array(data, element, rows, columns=0):
    shape = [rows, columns] if columns else [rows]
    strides = [element * columns, element] if columns else [element]
    size = rows * (columns or 1)
    numbers = [f"i64 {number}" for number in shape + strides]
    return ", ".join(["ptr null", "ptr null", f"i64 {size}", f"i64 {element}", f"ptr @{data}", *numbers])

arguments = ", ".join(
    [array("contents", 1, 5, 4096), array("state", 1, 5), array("owner", 2, 5), array("frames", 8, 3)]
)
kinds = ", ".join(part.split()[0] for part in arguments.split(", "))
lines = [
    'target triple = "aarch64-unknown-linux-gnu"',
    '@contents = global [20480 x i8] c"' + r"\AA" * 20480 + '", align 64',
    '@state = global [5 x i8] c"' + r"\04" * 5 + '"',
    "@owner = global [5 x i16] [" + ", ".join(["i16 7"] * 5) + "]",
    "@frames = global [3 x i64] [i64 4, i64 0, i64 2]",
    "@result = global i64 0",
    "@error = global ptr null",
    f'declare i32 @"{name}"(ptr, ptr, {kinds})',
    "declare i64 @system_call(i64, i64, ptr, i64)",
    "define void @_start() {",
    f'%status = call i32 @"{name}"(ptr @result, ptr @error, {arguments})',
    "%code = zext i32 %status to i64",
]
for data, size in (("contents", 20480), ("state", 5), ("owner", 10)):
    lines.append(f"call i64 @system_call(i64 64, i64 1, ptr @{data}, i64 {size})")
lines += ["call i64 @system_call(i64 93, i64 %code, ptr null, i64 0)", "unreachable", "}"]
open(sys.argv[1], "wb").write(object_of(compiled.library))
start = llvm.parse_assembly(chr(10).join(lines))
open(sys.argv[2], "wb").write(compiled.library._codegen._tm.emit_object(start))
"""
SYSTEM_CALL = """
.global system_call
system_call:
    mov x8, x0
    mov x0, x1
    mov x1, x2
    mov x2, x3
    svc #0
    ret
"""
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
ASSEMBLER, LINKER = shutil.which("aarch64-linux-gnu-as"), shutil.which("aarch64-linux-gnu-ld")
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


@pytest.mark.timeout(900)
@pytest.mark.skipif(not EMULATOR, reason="no qemu-aarch64 (Debian: qemu-user or qemu-user-static)")
@pytest.mark.skipif(not (ASSEMBLER and LINKER), reason="no aarch64-linux-gnu-ld (Debian: binutils-aarch64-linux-gnu)")
def test_a_kernel_runs_on_an_emulated_aarch64(tmp_path):
    """Donated frames 4, 0 and 2 of five are claimed, cleared with streaming stores, and published; the others stay."""
    kernel, start, calls, program = (tmp_path / name for name in ("kernel.o", "start.o", "calls.o", "program"))
    subprocess.run([ASSEMBLER, "-o", calls, "-"], input=SYSTEM_CALL, text=True, check=True)
    subprocess.run([sys.executable, "-c", AS_AARCH64 + ONE, kernel, start], check=True)
    # What the kernel's object also has, for being called from Python, stays unresolved and uncalled.
    subprocess.run([LINKER, "--unresolved-symbols=ignore-all", "-o", program, start, calls, kernel], check=True)
    done = subprocess.run([EMULATOR, program], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    contents = np.frombuffer(done.stdout, np.uint8, 5 * 4096).reshape(5, 4096)
    state, owner = np.frombuffer(done.stdout, np.uint8, 5, 5 * 4096), np.frombuffer(done.stdout[-10:], np.uint16)
    assert not contents[[0, 2, 4]].any()
    assert (contents[[1, 3]] == 0xAA).all()
    assert state.tolist() == [0, 4, 0, 4, 0]
    assert owner.tolist() == [0, 7, 0, 7, 0]
