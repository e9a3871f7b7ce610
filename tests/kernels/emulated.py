"""Kernels as programs of aarch64, without a C library, run by qemu's user emulation.

A kernel is called with a place for its result, one for its error, and each array as owner, parent, size, bytes of an
element, data, shape and strides. The program writes its arrays and its result to standard output.
"""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys

import numpy as np

EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
ASSEMBLER, LINKER = shutil.which("aarch64-linux-gnu-as"), shutil.which("aarch64-linux-gnu-ld")
RESULT_BYTES = 32

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
PROGRAMS = r"""
import os, pickle
import numpy as np

def bytes_of(array):
    return "".join(chr(92) + format(byte, "02X") for byte in array.tobytes())

def argument(at, value):
    if isinstance(value, bool):
        return [f"i8 {int(value)}"]
    if isinstance(value, int):
        return [f"i64 {value}"]
    numbers = [f"i64 {number}" for number in (*value.shape, *value.strides)]
    return ["ptr null", "ptr null", f"i64 {value.size}", f"i64 {value.itemsize}", f"ptr @array{at}", *numbers]

def program(name, arguments):
    lines = ['target triple = "aarch64-unknown-linux-gnu"']
    written = [("result", RESULT)]
    for at, value in enumerate(arguments):
        if isinstance(value, np.ndarray):
            lines.append(f'@array{at} = global [{value.nbytes} x i8] c"{bytes_of(value)}", align 64')
            written.append((f"array{at}", value.nbytes))
    parts = [part for at, value in enumerate(arguments) for part in argument(at, value)]
    kinds = ", ".join(part.split()[0] for part in parts)
    lines += [
        f"@result = global [{RESULT} x i8] zeroinitializer, align 16",
        "@error = global ptr null",
        # What numba's runtime would give a kernel to work in: one piece, with one reference, that nobody takes back.
        "@room = global [65536 x i8] zeroinitializer, align 64",
        "@piece = global {i64, ptr, ptr, ptr, i64, ptr} {i64 1, ptr null, ptr null, ptr @room, i64 65536, ptr null}",
        "define ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align) {",
        "ret ptr @piece",
        "}",
        "define void @NRT_MemInfo_call_dtor(ptr %piece) {",
        "ret void",
        "}",
        f'declare i32 @"{name}"(ptr, ptr, {kinds})',
        "declare i64 @system_call(i64, i64, ptr, i64)",
        "define void @_start() {",
        f'%status = call i32 @"{name}"(ptr @result, ptr @error, {", ".join(parts)})',
        "%code = zext i32 %status to i64",
    ]
    lines += [f"call i64 @system_call(i64 64, i64 1, ptr @{data}, i64 {size})" for data, size in written]
    return chr(10).join([*lines, "call i64 @system_call(i64 93, i64 %code, ptr null, i64 0)", "unreachable", "}"])

RESULT = int(sys.argv[2])
for name, (module, arguments) in pickle.load(sys.stdin.buffer).items():
    compiled = compile_for(getattr(importlib.import_module("lazypv_kernels." + module), name))
    start = llvm.parse_assembly(program(compiled.fndesc.mangled_name, arguments))
    folder = os.path.join(sys.argv[1], name)
    open(folder + ".kernel.o", "wb").write(object_of(compiled.library))
    open(folder + ".start.o", "wb").write(compiled.library._codegen._tm.emit_object(start))
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


def build(folder, calls):
    """Programs in `folder`, one for each of `calls`: {kernel: (module, arguments)}."""
    code = AS_AARCH64 + PROGRAMS
    asked = pickle.dumps(calls)
    subprocess.run([sys.executable, "-c", code, folder, str(RESULT_BYTES)], input=asked, check=True)
    subprocess.run([ASSEMBLER, "-o", folder / "calls.o", "-"], input=SYSTEM_CALL, text=True, check=True)
    for name in calls:
        # What a kernel's object also has, for being called from Python, stays unresolved and uncalled.
        parts = [folder / f"{name}.start.o", folder / "calls.o", folder / f"{name}.kernel.o"]
        subprocess.run([LINKER, "--unresolved-symbols=ignore-all", "-o", folder / name, *parts], check=True)


def run(program, arguments):
    """What a program leaves: the bytes of its result, and its arrays."""
    done = subprocess.run([EMULATOR, program], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    result, at, arrays = done.stdout[:RESULT_BYTES], RESULT_BYTES, []
    for value in arguments:
        if isinstance(value, np.ndarray):
            arrays.append(np.frombuffer(done.stdout, value.dtype, value.size, at).reshape(value.shape))
            at += value.nbytes
    assert at == len(done.stdout)
    return result, arrays
