"""Policies of somebody's own: one that holds, one that does not, and what is no policy at all."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

from lazypv.errors import UsageError
from lazypv.explore.faults import faults_for
from lazypv.explore.scenarios import SCENARIOS
from lazypv.explore.search import Bounds, Explorer, Outcome
from lazypv.host.kvm import Result
from lazypv.host.policy import Guarded, blame
from lazypv.host.teardown import SeriesTeardown
from lazypv.policy import load_policy
from lazypv.series import Series

from .check import Check, NoticedError

GOOD = "examples/configuration_first.py:ConfigurationFirst"
BAD = "examples/configuration_first_draft.py:ConfigurationFirst"
SIZE = 4


def checks() -> Iterator[Check]:
    """The examples explored, and a policy's results looked at."""
    for name in ("reboot-into-normal", "shutdown", "two-guests-in-one-process"):
        yield Check(f"explore {name}, a policy of somebody's own", partial(_good, name))
    yield Check("explore reboot-into-normal, a policy that breaks something", _bad)
    yield Check("what a policy gives back is looked at", _results)
    yield Check("what is no policy is refused", _no_policies)
    yield Check("who broke down is told", _blame)


def _explored(name: str, spelling: str, bounds: Bounds) -> Outcome:
    of = SCENARIOS[name]
    world = of.build(Series(), 2, load_policy(spelling))
    return Explorer(world, of.scene, bounds, faults_for(world.machine.ultravisor)).exhaust()


def _good(name: str) -> None:
    if broken := _explored(name, GOOD, Bounds(0, 1)).broken:
        raise NoticedError(f"{GOOD}: {broken[0].violation}")


def _bad() -> None:
    if not _explored("reboot-into-normal", BAD, Bounds(2)).broken:
        raise NoticedError(f"{BAD}: nothing was found")


class _Gives(SeriesTeardown):
    """Gives back whatever it was made with, or raises it."""

    def __init__(self, what: Any) -> None:
        self._what = what

    async def reset(self, _vm: Any) -> Any:
        """What it was made with."""
        if isinstance(self._what, Exception):
            raise self._what
        return self._what

    async def unmapped(self, _host: Any, _mm: Any, _vma: Any, _at: int) -> Any:
        """The same."""
        return self._what

    closed = immediate = reset


def _run(text: Coroutine[Any, Any, Any]) -> Any:
    try:
        text.send(None)
    except StopIteration as end:
        return end.value
    raise NoticedError("a text without steps awaited one")


def _results() -> None:
    vma: Any = SimpleNamespace(pte=SimpleNamespace(size=SIZE))
    nobody: Any = None
    for at in range(SIZE):
        for following in (*range(SIZE + 2), "1", None):
            fits = isinstance(following, int) and at < following <= SIZE
            text = Guarded(_Gives(following)).unmapped(nobody, nobody, vma, at)
            _raises(None if fits else ValueError, partial(_run, text))
    good = Result(0, 1, 0)
    for method in ("reset", "closed", "immediate"):
        if _run(getattr(Guarded(_Gives(good)), method)(nobody)) != good:
            raise NoticedError(f"{method} did not give back what the policy gave")
        _raises(TypeError, partial(_run, getattr(Guarded(_Gives((0, 1, 0))), method)(nobody)))


def _no_policies() -> None:
    class WithoutReset:
        pass

    class NotAsync(SeriesTeardown):
        def reset(self, _vm: Any) -> Any: ...  # type: ignore[override]

    class OtherParameters(SeriesTeardown):
        async def reset(self) -> Any: ...  # type: ignore[override]

    for kind in (WithoutReset, NotAsync, OtherParameters):
        made: Any = kind()
        _raises(UsageError, lambda made=made: Guarded(made))  # type: ignore[misc]
    Guarded(SeriesTeardown())


def _blame() -> None:
    policy = _Gives(ZeroDivisionError("of its own"))
    nobody: Any = None
    try:
        _run(policy.reset(nobody))
    except ZeroDivisionError as error:
        if blame(policy, "", error) is None or "of its own" not in str(blame(policy, "", error)):
            raise NoticedError("what a policy broke down with was not told as its own") from error
    if blame(policy, "", ZeroDivisionError("somebody else's")) is not None:
        raise NoticedError("a policy was blamed for somebody else's error")


def _raises(kind: type[Exception] | None, use: Callable[[], object]) -> None:
    try:
        use()
    except Exception as error:
        if kind is None or not isinstance(error, kind):
            raise NoticedError(f"{error!r}, where {kind} was to be raised") from error
        return
    if kind is not None:
        raise NoticedError(f"{kind.__name__} should have been raised")
