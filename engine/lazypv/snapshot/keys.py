"""Key files, and the keys of one snapshot that are derived from them.

A key file has 32 random bytes as text. Every snapshot has keys of its own: HKDF (RFC 5869, SHA-256) of these bytes with
the snapshot's random file id as salt and a purpose as information. So no two files share a key, and a nonce has to be
unique within its file only. Nothing here shows a key in its representation.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from lazypv.snapshot.errors import KeyFileError
from lazypv_kernels.rows import AD_WORDS

KEY_BYTES = 32
FILE_ID_BYTES = 32
FORMAT_VERSION = 1
_MAGIC = "lazypv-key-1 "
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class SnapshotKey:
    """A person's key for snapshots.

    Attributes
    ----------
    path : Path or None
        The key file; its ledger lies beside it.
    """

    __slots__ = ("_secret", "path")

    def __init__(self, secret: bytes, path: Path | None = None) -> None:
        if len(secret) != KEY_BYTES:
            raise KeyFileError(f"a key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        self.path = path

    def __repr__(self) -> str:
        return f"SnapshotKey({str(self.path)!r})" if self.path else "SnapshotKey()"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a key is not written anywhere")

    @classmethod
    def random(cls) -> SnapshotKey:
        """A fresh key that is in no file; it has no ledger."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def create(cls, path: Path) -> SnapshotKey:
        """A fresh key in a new file, which only its owner may read.

        Raises
        ------
        KeyFileError
            The file is there already, or cannot be made.
        """
        secret = os.urandom(KEY_BYTES)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise KeyFileError(f"{path}: is there already, and a key is never replaced") from error
        except OSError as error:
            raise KeyFileError(f"{path}: {error.strerror}") from error
        with os.fdopen(handle, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"{_MAGIC}{secret.hex()}\n")
            file.flush()
            os.fsync(file.fileno())
        return cls(secret, path)

    @classmethod
    def load(cls, path: Path) -> SnapshotKey:
        """The key in `path`.

        Raises
        ------
        KeyFileError
            Not there, not a key file, or others than its owner may read or write it.
        """
        try:
            # Without O_NONBLOCK opening a pipe waits for somebody who writes to it.
            with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if not stat.S_ISREG(mode):
                    raise KeyFileError(f"{path}: is not a regular file")
                text = file.read(256).decode("ascii", "replace")
        except OSError as error:
            raise KeyFileError(f"{path}: {error.strerror}") from error
        if mode & _OTHERS:
            raise KeyFileError(f"{path}: mode {stat.S_IMODE(mode):04o} lets others at the key; it has to be 0600")
        try:
            if not text.startswith(_MAGIC):
                raise ValueError
            secret = bytes.fromhex(text.removeprefix(_MAGIC).strip())
        except ValueError:
            raise KeyFileError(f"{path}: is not a key file as `lazypv key new` writes it") from None
        return cls(secret, path)

    def derive(self, salt: bytes, purpose: str) -> bytes:
        """32 bytes for one purpose."""
        return HKDF(SHA256(), KEY_BYTES, salt, b"lazypv snapshot " + purpose.encode()).derive(self._secret)


class FileKeys:
    """The keys of one snapshot.

    Attributes
    ----------
    file_id : bytes
    rows, batches : uint8[32]
        For the rows, and for the MACs of batches.
    root, state : bytes
        For header, footer and root; for the configuration's state.
    check : bytes
        Tells the right key from a wrong one; it is in the header.
    """

    __slots__ = ("batches", "check", "file_id", "root", "rows", "state")

    def __init__(self, key: SnapshotKey, file_id: bytes) -> None:
        self.file_id = file_id
        self.rows: NDArray[np.uint8] = np.frombuffer(key.derive(file_id, "rows"), np.uint8).copy()
        self.batches: NDArray[np.uint8] = np.frombuffer(key.derive(file_id, "batches"), np.uint8).copy()
        self.root = key.derive(file_id, "root")
        self.state = key.derive(file_id, "state")
        self.check = key.derive(file_id, "check")[:16]

    def __repr__(self) -> str:
        return f"FileKeys({self.file_id.hex()[:8]})"

    def row_words(self) -> NDArray[np.uint64]:
        """Associated data of the file's rows, but for batch and row: uint64[9]."""
        words = np.zeros(AD_WORDS, np.uint64)
        words[0] = FORMAT_VERSION
        words[1:5] = np.frombuffer(self.file_id, "<u8")
        return words

    @property
    def id_bytes(self) -> NDArray[np.uint8]:
        """File id as uint8[32]."""
        return np.frombuffer(self.file_id, np.uint8).copy()
