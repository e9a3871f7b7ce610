"""The ciphers of export and import, from libsodium: AEGIS-256, and AES-256-GCM for people who must.

A page is sealed in place, its tag goes where the configuration keeps it. We write no ciphers.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any, Final

import nacl._sodium as _sodium
import numpy as np
from numba import types

from lazypv_kernels.arrays import U8, U64, Integer
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import PAGE_SIZE, SCRATCH_SIZE, TAG_SIZE
from lazypv_kernels.native import (
    address_of,
    aegis256_decrypt,
    aegis256_encrypt,
    clear_bytes,
    copy_bytes,
    register_sodium,
)

AEGIS256 = 0
AES256GCM = 1
CIPHERS: Final = {"aegis256": AEGIS256, "aes256gcm": AES256GCM}
"""Ciphers by the names that people use."""

GCM_TAG_SIZE = 16
_DOMAIN_SHIFT = 61
"""Versions have 61 bits, so that version and domain are one word of a nonce of 12 bytes."""

_LIBRARY: Final = ctypes.CDLL(_sodium.__file__)


def _tells(name: str) -> bool:
    """What libsodium's question of that name is answered with; no, where a wheel hides it."""
    question: Any = getattr(_LIBRARY, name, None)
    return question is not None and question() == 1


def _has(*names: str) -> bool:
    return all(hasattr(_LIBRARY, name) for name in names)


HAS_AES: Final = _tells("sodium_runtime_has_aesni") or _tells("sodium_runtime_has_armcrypto")
"""Whether this CPU has AES instructions and libsodium uses them; without, AEGIS-256 is some 300 times slower."""
HAS_AES256GCM: Final = _tells("crypto_aead_aes256gcm_is_available") and _has(
    "crypto_aead_aes256gcm_encrypt_detached", "crypto_aead_aes256gcm_decrypt_detached"
)
"""Whether there is AES-256-GCM: libsodium has it only with AES instructions."""
DETACHED = _has("crypto_aead_aegis256_encrypt_detached", "crypto_aead_aegis256_decrypt_detached")
"""Whether a page can be sealed where it is; where a wheel hides that, by way of a scratch page."""

_u64, _i32 = types.uint64, types.int32
_SEAL = _i32(*[_u64] * 10)
_OPEN = _i32(*[_u64] * 9)


def _function(name: str, there: bool, kind: Any) -> Any:
    """libsodium's function of that name; another one, never to be called, where it is not there."""
    return types.ExternalFunction(register_sodium(name if there else "crypto_aead_aegis256_encrypt"), kind)


# int encrypt(c, mac, maclen_p, m, mlen, ad, adlen, nsec, npub, k)
_aegis_seal = _function("crypto_aead_aegis256_encrypt_detached", DETACHED, _SEAL)
_gcm_seal = _function("crypto_aead_aes256gcm_encrypt_detached", HAS_AES256GCM, _SEAL)
# int decrypt(m, nsec, c, clen, mac, ad, adlen, npub, k): -1 when the tag does not fit.
_aegis_open = _function("crypto_aead_aegis256_decrypt_detached", DETACHED, _OPEN)
_gcm_open = _function("crypto_aead_aes256gcm_decrypt_detached", HAS_AES256GCM, _OPEN)


def portable_cipher_warning() -> str | None:
    """What to tell people whose CPU has no AES instructions; None if it has."""
    if HAS_AES:
        return None
    return (
        f"this CPU ({platform.machine()}) has no AES instructions that libsodium could use: export, import and"
        " snapshots take some 300 times as long"
    )


@kernel
def write_nonce(nonce: U64, page: Integer, version: Integer, domain: Integer, cipher: Integer) -> None:
    """nonce : uint64[4]: guest page, version, domain, zero; for AES-256-GCM 12 bytes: version with domain, page."""
    if cipher == AES256GCM:
        nonce[0] = np.uint64(version) | np.uint64(domain) << np.uint64(_DOMAIN_SHIFT)
        nonce[1] = page
        nonce[2] = 0
    else:
        nonce[0] = page
        nonce[1] = version
        nonce[2] = domain
    nonce[3] = 0


@kernel
def seal_page(
    contents: U8, frame: Integer, tag_address: Integer, nonce: U64, keys: U8, row: Integer, scratch: U8, cipher: Integer
) -> None:
    """Encrypt row `frame` of `contents` in place; the tag goes to `tag_address`. scratch : uint8[SCRATCH_SIZE]."""
    page, once, key = address_of(contents, frame), address_of(nonce, 0), address_of(keys, row)
    if cipher == AES256GCM:
        _gcm_seal(page, tag_address, 0, page, PAGE_SIZE, 0, 0, 0, once, key)
        clear_bytes(tag_address + np.uint64(GCM_TAG_SIZE), TAG_SIZE - GCM_TAG_SIZE)
    elif DETACHED:
        _aegis_seal(page, tag_address, 0, page, PAGE_SIZE, 0, 0, 0, once, key)
    else:
        sealed = address_of(scratch, 0)
        aegis256_encrypt(sealed, 0, page, PAGE_SIZE, 0, 0, 0, once, key)
        copy_bytes(page, sealed, PAGE_SIZE)
        copy_bytes(tag_address, sealed + np.uint64(PAGE_SIZE), TAG_SIZE)


@kernel
def open_page(
    contents: U8, frame: Integer, tag_address: Integer, nonce: U64, keys: U8, row: Integer, scratch: U8, cipher: Integer
) -> bool:
    """Verify and decrypt row `frame` in place; false, and nothing changed, if the tag does not fit.

    scratch : uint8[2 * SCRATCH_SIZE]; plain text is left there, which the caller clears behind the last page
    (:func:`clear_scratch`): to clear it behind each took a tenth of an import.
    """
    page, once, key = address_of(contents, frame), address_of(nonce, 0), address_of(keys, row)
    plain = address_of(scratch, SCRATCH_SIZE)
    if cipher == AES256GCM:
        answer = _gcm_open(plain, 0, page, PAGE_SIZE, tag_address, 0, 0, once, key)
    elif DETACHED:
        answer = _aegis_open(plain, 0, page, PAGE_SIZE, tag_address, 0, 0, once, key)
    else:
        sealed = address_of(scratch, 0)
        copy_bytes(sealed, page, PAGE_SIZE)
        copy_bytes(sealed + np.uint64(PAGE_SIZE), tag_address, TAG_SIZE)
        answer = aegis256_decrypt(plain, 0, 0, sealed, SCRATCH_SIZE, 0, 0, once, key)
    if answer == 0:
        copy_bytes(page, plain, PAGE_SIZE)
    return bool(answer == 0)


@kernel
def decrypt_bare(contents: U8, frame: Integer, tag_address: Integer, nonce: U64, key: U8, plain: U8) -> bool:
    """Nothing but libsodium's AEGIS-256: row `frame` verified, and decrypted into plain : uint8[SCRATCH_SIZE].

    Only where pages can be sealed in place (DETACHED).
    """
    where, into = address_of(contents, frame), address_of(plain, 0)
    answer = _aegis_open(into, 0, where, PAGE_SIZE, tag_address, 0, 0, address_of(nonce, 0), address_of(key, 0))
    return bool(answer == 0)


@kernel
def clear_scratch(scratch: U8) -> None:
    """No plain text outlives a call. scratch : uint8[2 * SCRATCH_SIZE]."""
    clear_bytes(address_of(scratch, SCRATCH_SIZE), SCRATCH_SIZE)
