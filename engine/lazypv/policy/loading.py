"""Somebody's own policy, by the name that a person types: ``FILE.py:NAME``, or an entry point.

A file is run as it was read, so that what its digest says is what runs. It is not put on the module path, and nothing
is written beside it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from lazypv.errors import LazyPVError, ModelError, UsageError, ViolationError
from lazypv.host.policy import METHODS, TeardownPolicy, blame, lacks

ENTRY_POINTS: Final = "lazypv.policies"
"""Group of entry points in which packages announce policies."""


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy that was found, ready to be made for any number of hosts.

    Attributes
    ----------
    spelling : str
        What the person typed.
    source : str
        BLAKE2b of the file that it was read from, hexadecimal.
    make : callable
        ``make()`` gives a new policy, for one host.
    """

    spelling: str
    source: str
    make: Callable[[], TeardownPolicy]

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which reads the same source again."""
        return load_policy, (self.spelling, self.source)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Within this, whatever the policy breaks is reported as the policy's.

        Raises
        ------
        PolicyError
            Its code raised something.
        ViolationError
            It used the host in a way that the host can see is wrong: a reference dropped twice, a deadlock.
        """
        try:
            yield
        except ModelError as error:
            if error.__cause__ is None:
                raise ViolationError(f"under the policy {self.spelling}: {error}") from error
            self._blame(error.__cause__)
            raise
        except LazyPVError:
            raise
        except Exception as error:
            self._blame(error)
            raise

    def _blame(self, error: BaseException) -> None:
        blamed = blame(self.make(), "", error)
        if blamed is not None:
            raise blamed from error


def load_policy(spelling: str, expected: str | None = None, *, besides: Iterable[str] = ()) -> LoadedPolicy:
    """The policy that `spelling` means: ``FILE.py:NAME``, or the name of an entry point of group "lazypv.policies".

    Parameters
    ----------
    expected : str or None
        The digest that its source has to have. A file of another one is not run.
    besides : iterable of str
        Other names that the person may have meant.

    Raises
    ------
    UsageError
        No such file, name or entry point; a file that cannot be read, is no Python, raises when it is run, or has
        another digest; what was named is not a policy.
    """
    path, colon, name = spelling.rpartition(":")
    if colon:
        module, digest = _module_of(Path(path), expected, spelling)
        if not hasattr(module, name):
            raise UsageError(f"{path} has no {name!r}{_offered(module)}")
        made = getattr(module, name)
    elif spelling.endswith(".py"):
        raise UsageError(f"{spelling!r} names no policy: write FILE.py:NAME, such as {spelling}:MyTeardown")
    else:
        made, digest = _announced(spelling, expected, besides)
    if not callable(made):
        raise UsageError(f"{spelling} is {made!r}, not a class of teardown policies")
    try:
        problems = lacks(made())
    except Exception as error:
        raise UsageError(f"{spelling} could not be made: {_said(error)}") from error
    if problems:
        raise UsageError(f"{spelling} is not a teardown policy: {'; '.join(problems)}")
    return LoadedPolicy(spelling, digest, made)


def _module_of(path: Path, expected: str | None, spelling: str) -> tuple[ModuleType, str]:
    """The file as a module, run once however often it is asked for, and its digest."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    digest = _digest(source)
    _check(spelling, digest, expected)
    where = str(path.resolve())
    name = f"lazypv_policy_{_digest(source + where.encode())[:16]}"
    if name in sys.modules:
        return sys.modules[name], digest
    module = ModuleType(name)
    module.__file__ = where
    sys.modules[name] = module
    try:
        exec(compile(source, where, "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UsageError(f"{path}: {_said(error, where)}") from error
    return module, digest


def _announced(name: str, expected: str | None, besides: Iterable[str]) -> tuple[Any, str]:
    """What an entry point of that name stands for, and the digest of the file that it is in."""
    found: dict[str, EntryPoint] = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = [*besides, *sorted(found)]
        others = f", or one of {', '.join(known)}" if known else ""
        raise UsageError(f"{name!r} is not a policy: write FILE.py:NAME{others}")
    try:
        made = found[name].load()
        file = inspect.getsourcefile(made)
        digest = _digest(Path(file).read_bytes()) if file else ""
    except Exception as error:
        raise UsageError(f"policy {name!r} ({found[name].value}) could not be loaded: {_said(error)}") from error
    _check(name, digest, expected)
    return made, digest


def _check(spelling: str, digest: str, expected: str | None) -> None:
    if expected is not None and digest != expected:
        raise UsageError(f"{spelling} is not what it was: its source has the digest {digest}, not {expected}")


def _digest(source: bytes) -> str:
    return hashlib.blake2b(source, digest_size=16).hexdigest()


def _said(error: BaseException, where: str = "") -> str:
    """What went wrong and in which line, in one line."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == where:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{f'line {line}: ' if line else ''}{type(error).__name__}: {error}"


def _offered(module: ModuleType) -> str:
    """The policies that a module does have."""
    own = [
        name
        for name, thing in vars(module).items()
        if isinstance(thing, type)
        and thing.__module__ == module.__name__
        and all(hasattr(thing, each) for each in METHODS)
    ]
    return f": it has {', '.join(own)}" if own else ""
