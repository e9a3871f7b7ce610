"""A process in which every call of the cipher is recorded: run by test_nonces.py.

The symbol that kernels call is redirected before any kernel is loaded. Prints one line for each call that encrypts:
key, nonce, and a digest of what went in; MACs of batches are told apart, since verifying one computes it again.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import threading
from pathlib import Path

import llvmlite.binding as llvm
import nacl.bindings

from lazypv_kernels import ciphers, native

RECORD = []
_LOCK = threading.Lock()
_library = ctypes.CDLL(native._sodium.__file__)


def _address_of(name):
    try:
        return ctypes.cast(getattr(_library, name), ctypes.c_void_p).value
    except AttributeError:
        lib, ffi = native._sodium.lib, native._sodium.ffi
        return int(ffi.cast("uintptr_t", ffi.addressof(lib, name))) if hasattr(lib, name) else 0


def _note(key, nonce, text, data):
    domain = int.from_bytes(nonce[16:24], "little")
    with _LOCK:
        RECORD.append((key.hex(), nonce.hex(), hashlib.sha256(text + b"|" + data).hexdigest(), domain))


def _redirect(name, outputs):
    """Record every call of `name`, whose first `outputs` arguments say where the results go; keep the return alive."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint64] * (outputs + 7))
    if not _address_of(name):
        return None
    real = kind(_address_of(name))

    def recording(*arguments):
        text, size, data, data_size, _, nonce, key = arguments[outputs:]
        _note(
            ctypes.string_at(key, 32), ctypes.string_at(nonce, 32), ctypes.string_at(text, size),
            ctypes.string_at(data, data_size) if data_size else b"",
        )  # fmt: skip
        return real(*arguments)

    callback = kind(recording)
    llvm.add_symbol(f"lazypv_{name}", ctypes.cast(callback, ctypes.c_void_p).value)
    return callback


# Whoever imports the ciphers registers the symbols: so that has happened before.
_CALLBACKS = [_redirect("crypto_aead_aegis256_encrypt", 2)]
if ciphers.DETACHED:
    _CALLBACKS.append(_redirect("crypto_aead_aegis256_encrypt_detached", 3))
_sealed = nacl.bindings.crypto_aead_aegis256_encrypt


def _state(text, data, nonce, key):
    _note(key, nonce, text, data or b"")
    return _sealed(text, data, nonce, key)


nacl.bindings.crypto_aead_aegis256_encrypt = _state


def main(folder):
    import numpy as np

    import lazypv
    from lazypv.snapshot import SnapshotKey
    from lazypv.snapshot.rewrite import merge, recover

    key = SnapshotKey.create(folder / "key")
    host = lazypv.Host(lazypv.Machine("160MiB", threads=2))
    image = lazypv.GuestImage("x", np.ones((64, 4096), np.uint8), np.arange(64, dtype=np.uint32), 512 * 4096)
    vm = host.create_vm(512 * 4096, image=image)
    vm.protect()
    vm.run(lazypv.Workload("sequential", touches=512))
    vm.share(np.array([500]))

    def export(guest):
        # A reference that nobody of the clock's has would make a prefetch wait for what the clock cannot see.
        guest.complete_restore()
        frames = guest.kernel_vm.gmap.pte.frames()[:40]
        frames = frames[frames >= 0]
        host.machine.frames.get(frames)
        host.clock.run(guest.kernel_vm.host.pages.export_owned(frames), "export")
        host.machine.frames.put(frames)
        guest.read(np.arange(40))

    a, forks = folder / "a.arrow", []
    vm.snapshot(a, key=key)
    vm.snapshot(folder / "again.arrow", key=key, allow_fork=True)
    export(vm)
    export(vm)
    for number in range(3):  # restored twice and once lazily, each a roll-back of the one before
        guest = host.restore(a, key=key, lazy=number == 2, allow_rollback=True)
        guest.write_pages(np.arange(8), np.full((8, 4096), number, np.uint8))
        export(guest)
        forks.append(folder / f"fork{number}.arrow")
        guest.snapshot(forks[-1], key=key, parent=a, allow_fork=True)
        guest.shutdown()
        host.drain()
    merge([forks[0]], folder / "m.arrow", key)
    recover(a, folder / "r.arrow", key)
    host.close()
    print(json.dumps(RECORD))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
