"""Which cipher a machine's exported pages have."""

from __future__ import annotations

import sys
import warnings

from lazypv.errors import CipherError, SlowCipherWarning
from lazypv_kernels.ciphers import AES256GCM, CIPHERS, HAS_AES256GCM, portable_cipher_warning


def cipher_number(name: str, contents: bool) -> int:
    """The kernels' number of the cipher called `name`; warns where there are `contents`, and sealing them takes long.

    Raises
    ------
    CipherError
        No such cipher, or not on this computer.
    """
    if name not in CIPHERS:
        raise CipherError(f"{name!r} is not a cipher: choose one of {', '.join(CIPHERS)}")
    if CIPHERS[name] == AES256GCM and not HAS_AES256GCM:
        raise CipherError("aes256gcm is refused: libsodium has it only on CPUs with AES instructions; choose aegis256")
    if contents and (warning := portable_cipher_warning()) is not None:
        warnings.warn(warning, SlowCipherWarning, stacklevel=_levels_to_caller())
    return CIPHERS[name]


def _levels_to_caller() -> int:
    """How far above :func:`cipher_number` the first line is that is not ours: whoever wants a machine, in any way."""
    frame, levels = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("lazypv."):
        frame, levels = frame.f_back, levels + 1
    return levels
