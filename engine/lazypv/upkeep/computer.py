"""The computer under this program, as far as it decides how fast the program is."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from lazypv.scenario.compare import describe_computer

HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage")
PACKAGES: Final = ("numpy", "numba", "llvmlite", "pyarrow", "PyNaCl")

TELLING_FLAGS: Final = (
    "aes", "vaes", "pmull", "avx2", "avx512f", "neon", "asimd", "sve", "sve2", "clwb", "erms", "fsrm", "movdir64b",
)  # fmt: skip
"""Features of a processor that decide something here: of the cipher, of wide stores, of the C library's memset."""


def describe() -> dict[str, Any]:
    """What the figures of a benchmark were measured on."""
    computer = describe_computer(1)
    del computer["threads"]  # every benchmark has its own
    return computer | {
        "kernel": platform.release(),
        "huge_pages": huge_pages()["anonymous"],
        "features": cpu_features(),
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Of the interpreter and of what is under the kernels; None for what is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package.lower()] = version(package)
        except PackageNotFoundError:
            found[package.lower()] = None
    return found | {"libsodium": libsodium_version(), "libc": " ".join(platform.libc_ver()) or None}


def libsodium_version() -> str:
    """Of the libsodium that PyNaCl uses; the one in its wheels does not tell, so that PyNaCl's own version stands."""
    import nacl._sodium as _sodium

    try:
        tell = ctypes.CDLL(_sodium.__file__).sodium_version_string
    except (AttributeError, OSError):
        return f"bundled with PyNaCl {version('PyNaCl')}"
    tell.restype = ctypes.c_char_p
    return str(tell().decode())


def cpu_flags() -> frozenset[str]:
    """Features of the processor as the operating system lists them; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def cpu_features() -> list[str]:
    """Those of its features that decide something here."""
    flags = cpu_flags()
    return [flag for flag in TELLING_FLAGS if flag in flags]


def usable_cores() -> int:
    """Cores that this process may run on, which may be fewer than the computer has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def huge_pages() -> dict[str, str | None]:
    """Settings of transparent huge pages: of anonymous memory, of shared memory, and how hard they are looked for."""
    return {
        "anonymous": _chosen(HUGE_PAGES / "enabled"),
        "shared": _chosen(HUGE_PAGES / "shmem_enabled"),
        "defrag": _chosen(HUGE_PAGES / "defrag"),
    }


def _chosen(path: Path) -> str | None:
    """The word in brackets: of several settings the one in force."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or text.strip()


def free_memory() -> int:
    """Bytes that nobody uses now: less than what is available, which also counts what can be taken back."""
    return int(psutil.virtual_memory().free)
