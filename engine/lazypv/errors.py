"""Every error that a caller of lazypv can meet, and the exit status that the command line gives for it.

An exception carries the offending value in its message; the person who reads it knows what to do next.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_VIOLATION = 3
EXIT_INTEGRITY = 4
EXIT_INTERRUPTED = 130


class LazyPVError(Exception):
    """Base of all errors of this package; `exit_status` is what the command line makes of it."""

    exit_status = EXIT_BAD_INPUT


class SizeError(LazyPVError):
    """A size that cannot be read, is not in whole pages, or does not fit."""


class ImageError(LazyPVError):
    """A guest image that cannot be read; says what was expected at which offset."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


class FrameError(LazyPVError):
    """A frame number outside the machine."""


class MemoryShortageError(LazyPVError):
    """The machine under this program, or the modelled one, has less memory than was asked for."""


class UsageError(LazyPVError):
    """An option or argument that is refused, alone or in this combination."""


class CipherError(UsageError):
    """A cipher that there is not, or not on this computer."""


class SlowCipherWarning(UserWarning):
    """This CPU has no AES instructions: everything that is sealed or opened takes very long."""


class PolicyError(LazyPVError):
    """What somebody's own teardown policy raised while it ran; says where in its file."""


class ViolationError(LazyPVError):
    """An invariant of the model did not hold."""

    exit_status = EXIT_VIOLATION


class IntegrityError(LazyPVError):
    """Protected content that was altered, moved or replayed."""

    exit_status = EXIT_INTEGRITY


class ModelError(LazyPVError):
    """A bug of the model itself: names the actor and the step in which it happened."""

    exit_status = EXIT_BUG


class LifetimeError(ModelError):
    """Something was used after its end, ended twice, or let go of by one who did not hold it.

    Attributes
    ----------
    invariant : int
        The one that rules it out, as in semantics 9.
    what : str
        What happened, in words.
    """

    def __init__(self, invariant: int, what: str) -> None:
        super().__init__(f"{what} (invariant {invariant})")
        self.invariant = invariant
        self.what = what


class DeadlockError(ModelError):
    """All actors wait for each other; carries the cycle."""


class ProgramInterruption(Exception):  # noqa: N818  (the architecture's own name)
    """A program interruption of the modelled machine, such as 0x3d, secure storage access.

    Attributes
    ----------
    code : int
        Program-interruption code.
    address : int or None
        Absolute address of the access, where there is one.
    """

    def __init__(self, code: int, address: int | None = None) -> None:
        where = "" if address is None else f" at absolute address {address:#x}"
        super().__init__(f"program interruption {code:#04x}{where}")
        self.code = code
        self.address = address
