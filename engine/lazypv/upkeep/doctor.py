"""What lazypv finds on this computer, what slows it down there, and what makes it unusable."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lazypv.machine.storage import available_memory
from lazypv.scenario.compare import describe_computer
from lazypv.sizes import format_size
from lazypv.upkeep import computer
from lazypv.upkeep.warm import MARK
from lazypv_kernels.store import SUFFIX, cache_directory, cache_root, processor

MINIMUM = 256 << 20
"""A reboot of the smallest guest that is worth one, twice over."""
_AES = {"aes", "pmull"}


@dataclass
class Finding:
    """What was found.

    Attributes
    ----------
    facts : dict
        By subject, nested.
    warnings : list of str
        What makes it slower than it could be.
    fatal : str or None
        What makes it unusable, in one line.
    """

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    fatal: str | None = None


def examine() -> Finding:
    """Look at everything."""
    found = Finding()
    _look_at_processor(found)
    _look_at_cipher(found)
    _look_at_cache(found)
    _look_at_memory(found)
    found.facts["versions"] = computer.versions()
    return found


def _look_at_processor(found: Finding) -> None:
    about = describe_computer(1)
    cores, usable = int(os.cpu_count() or 1), computer.usable_cores()
    found.facts["processor"] = {
        "name": about["cpu"],
        "system": about["system"],
        "compiled_for": processor()[0],
        "features": computer.cpu_features(),
        "cores": cores,
        "threads": usable,
    }
    if usable < cores:
        found.warnings.append(f"this process may use {usable} of {cores} cores")


def _look_at_cipher(found: Finding) -> None:
    working = cipher_works()
    flags = computer.cpu_flags()
    instructions = bool(_AES & flags)
    found.facts["cipher"] = {
        "name": "AEGIS-256",
        "available": working,
        "aes_instructions": instructions,
        "path": "AES instructions" if instructions else "portable code",
    }
    if not working:
        found.fatal = (
            f"libsodium ({computer.libsodium_version()}) gives no AEGIS-256, the cipher of exported pages: install"
            " PyNaCl 1.6 or later, with the library that it brings along"
        )
    elif not instructions and flags:
        found.warnings.append(
            "this processor has no AES instructions: exports, imports and snapshots run the portable cipher, which is"
            " a hundred times slower and more"
        )


def cipher_works() -> bool:
    """Whether libsodium seals and opens a message with AEGIS-256, and refuses it once it was altered."""
    try:
        from nacl import bindings, exceptions

        key, nonce, message = os.urandom(32), os.urandom(32), os.urandom(64)
        sealed = bindings.crypto_aead_aegis256_encrypt(message, None, nonce, key)
        if bindings.crypto_aead_aegis256_decrypt(sealed, None, nonce, key) != message:
            return False
    except (ImportError, AttributeError):
        return False
    try:
        bindings.crypto_aead_aegis256_decrypt(sealed[:-1] + bytes([sealed[-1] ^ 1]), None, nonce, key)
    except exceptions.CryptoError:
        return True
    return False


def _look_at_cache(found: Finding) -> None:
    root, folder = cache_root(), cache_directory()
    files = [path.stat().st_size for path in folder.glob(f"*{SUFFIX}")] if folder.is_dir() else []
    others = [path for path in root.iterdir() if path.is_dir() and path != folder] if root.is_dir() else []
    why_not = _why_not_writable(root)
    state = "warm" if (folder / MARK).exists() else "partly warm" if files else "cold"
    found.facts["cache"] = {
        "folder": str(folder),
        "state": state,
        "writable": why_not is None,
        "signatures": len(files),
        "bytes": sum(files),
        "of_other_versions": len(others),
    }
    if why_not and state != "warm":
        found.warnings.append(
            f"compiled kernels cannot be kept in {root} ({why_not}): every process compiles them anew; LAZYPV_CACHE_DIR"
            " names another folder"
        )
    elif state != "warm":
        found.warnings.append(
            "not all kernels are compiled: first calls wait for the compiler, or `lazypv warm` does it now"
        )


def _why_not_writable(folder: Path) -> str | None:
    """What the operating system says when a file is made in `folder`, or in the nearest that there is above it."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _look_at_memory(found: Finding) -> None:
    huge, available = computer.huge_pages(), available_memory()
    found.facts["memory"] = {
        "total_bytes": describe_computer(1)["memory_bytes"],
        "available_bytes": available,
        "free_bytes": computer.free_memory(),
        "huge_pages": huge,
    }
    if huge["anonymous"] in (None, "never"):
        found.warnings.append(
            "there are no transparent huge pages for anonymous memory: the first touch of a machine's storage takes"
            " several times as long"
        )
    if available < MINIMUM and found.fatal is None:
        found.fatal = (
            f"{format_size(available)} of memory are available: the smallest guest worth trying takes"
            f" {format_size(MINIMUM)}"
        )
