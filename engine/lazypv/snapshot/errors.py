"""What can be wrong with a snapshot, a key file or a ledger, and where."""

from __future__ import annotations

import errno
from pathlib import Path

from lazypv.errors import IntegrityError, LazyPVError


class NotAnArrowFileError(LazyPVError):
    """Neither end of the file bears Arrow's magic."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path}: not an Arrow file: neither end bears its magic")


class KeyFileError(LazyPVError):
    """A key file that is refused; says why, and never what is in it."""


class SnapshotStateError(LazyPVError):
    """A guest that cannot be saved or restored as it is now."""


class SnapshotWriteError(LazyPVError):
    """The store did not take the snapshot; says how far it was. Nothing of it is left there."""

    def __init__(self, path: object, error: OSError, where: str) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "no space left" if full else error.strerror or str(error)
        super().__init__(f"{path}: {why}, while {where} was written; no snapshot was made")
        self.errno = error.errno


class DamagedSnapshotError(IntegrityError):
    """A snapshot, or a part of it, that is not what was sealed: truncated, altered, moved, of another file or key.

    Attributes
    ----------
    part : str
        ``"header"``, ``"footer"``, or ``"batch N"``.
    batch, page : int or None
        Which batch, and which guest page of it, where that is known.
    """

    def __init__(
        self, path: object, part: str, problem: str, *, batch: int | None = None, page: int | None = None
    ) -> None:
        super().__init__(f"{path}: {part}: {problem}")
        self.part = part
        self.batch = batch
        self.page = page


class WrongKeyError(DamagedSnapshotError):
    """The key is another than the one that the file was sealed with, or its header was altered."""


class WrongParentError(IntegrityError):
    """A parent that is missing, or is not the snapshot that another one builds on."""


class RollBackError(IntegrityError):
    """The ledger knows better: an older snapshot, or a second child of the same parent."""


class IncompleteSnapshotError(IntegrityError):
    """A recovered part of a snapshot, which is not restored unless that is asked for."""


def damaged_batch(path: Path | str, index: int, problem: str, page: int | None = None) -> DamagedSnapshotError:
    """Batch `index` is not what was sealed, as far as `page` shows."""
    where = "" if page is None else f"guest page {page:#x} "
    return DamagedSnapshotError(path, f"batch {index}", f"{where}{problem}", batch=index, page=page)
