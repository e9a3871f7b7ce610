"""What a teardown policy is: the texts in which one way to end a protected guest differs from another.

The host asks its policy at six moments and does everything else itself: CPUs are destroyed before, locks are taken
around, the address space dies at its own pace. Another policy is another object with these methods; nothing else of the
host changes. What runs is the same whoever drives it, so a policy is explored, measured and used as one text.

A design that needs further moments (an ioctl that sets a guest aside, one that cleans up, a notifier before an address
space dies) adds methods here, and to :class:`lazypv.host.teardown.SeriesTeardown` what the series does then: nothing.
A policy that derives from it goes on as before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from lazypv.errors import LazyPVError, PolicyError, UsageError
from lazypv.host.kvm import Result
from lazypv.steps import Text

if TYPE_CHECKING:
    from types import TracebackType

    from lazypv.host.host import Host
    from lazypv.host.mm import Mm, Vma
    from lazypv.host.vm import Vm
    from lazypv.ultravisor import Answer


class TeardownPolicy(Protocol):
    """How protected guests end.

    Every method is a text (``async def``) and awaits steps only: those of :mod:`lazypv.steps`, and texts of the host
    that are made of them. Between two awaits it runs alone. What it has to remember it keeps in locals, in records of
    its own or on itself, never in globals: whoever explores it puts those back before each run.
    """

    async def enabled(self, vm: Vm) -> None:
        """KVM_PV_ENABLE has worked: configuration and CPUs exist, ``kvm->lock`` is held."""

    async def reset(self, vm: Vm) -> Result:
        """KVM_PV_DISABLE: the guest reboots. Its CPUs are gone, ``kvm->lock`` is held, its process lives.

        On success the VM is without a configuration: ``vm.kvm.pv`` is a new ``Protected()``, and
        ``vm.gmap.guest_handle`` is 0. Guest memory below ``vm.host.sync_below_pages`` belongs to nobody any more
        (invariant 22).

        Returns
        -------
        Result
            errno, rc, rrc; :data:`lazypv.host.teardown.DEFERRED` when work goes on behind the guest's back.
        """
        raise NotImplementedError

    async def closed(self, vm: Vm) -> Result:
        """The VM's file is closed: CPUs gone, ``kvm->lock`` held. The address space may be torn down already."""
        raise NotImplementedError

    async def abandoned(self, vm: Vm, answer: Answer) -> None:
        """The VM's file is closed, but a CPU answered `answer` to its destruction: the configuration stays for good."""

    async def immediate(self, vm: Vm) -> Result:
        """Everything now, in the caller's time: KVM_PV_ENABLE got a configuration that has to be destroyed again."""
        raise NotImplementedError

    async def unmapped(self, host: Host, mm: Mm, vma: Vma, at: int) -> int:
        """`mm` dies while configurations of it exist: take the next pages of `vma`, from entry `at` on, out of it.

        With ``mm.unmap`` the mappings' references become the text's own. Secure CPUs may still live; then pages can
        only be exported, or kept for later.

        Returns
        -------
        int
            The entry at which to go on: above `at`, at most ``vma.pte.size``.
        """
        raise NotImplementedError


METHODS: Final = ("enabled", "reset", "closed", "abandoned", "immediate", "unmapped")


class Record(Protocol):
    """A deferred destruction as the host knows it: whether whoever has it is a user of `mm`, and holds it."""

    @property
    def mm(self) -> Mm:
        """The address space."""

    @property
    def has_mm(self) -> bool:
        """One of ``mm_users`` is its."""

    @property
    def holds_mm(self) -> bool:
        """One of ``mm_count`` is its."""


class Guarded:
    """A policy that somebody else wrote: what it gives back is looked at before the host goes on with it.

    Raises
    ------
    UsageError
        Not a policy; says what it lacks.
    """

    def __init__(self, policy: TeardownPolicy) -> None:
        if problems := lacks(policy):
            raise UsageError(f"{name_of(policy)} is not a teardown policy: {'; '.join(problems)}")
        self.policy = policy

    async def enabled(self, vm: Vm) -> None:
        """As of :class:`TeardownPolicy`, like all methods here."""
        await self.policy.enabled(vm)

    async def reset(self, vm: Vm) -> Result:
        return _result("reset", await self.policy.reset(vm))

    async def closed(self, vm: Vm) -> Result:
        return _result("closed", await self.policy.closed(vm))

    async def abandoned(self, vm: Vm, answer: Answer) -> None:
        await self.policy.abandoned(vm, answer)

    async def immediate(self, vm: Vm) -> Result:
        return _result("immediate", await self.policy.immediate(vm))

    async def unmapped(self, host: Host, mm: Mm, vma: Vma, at: int) -> int:
        following: object = await self.policy.unmapped(host, mm, vma, at)
        if not isinstance(following, int) or not at < following <= vma.pte.size:
            raise ValueError(f"unmapped gave back {following!r}, not an entry above {at} and up to {vma.pte.size}")
        return following

    def blame(self, where: str, error: BaseException, text: Text[Any]) -> LazyPVError | None:
        """As :func:`blame`, for a text that broke down, or that awaits the step that did."""
        return blame(self.policy, where, error, text)


def _result(method: str, given: object) -> Result:
    if not isinstance(given, Result):
        raise TypeError(f"{method} gave back {given!r}, not a Result")
    return given


def lacks(policy: object) -> list[str]:
    """What keeps an object from being a teardown policy; empty if it is one."""
    return [problem for name in METHODS if (problem := _lacks_method(policy, name))]


def _lacks_method(policy: object, name: str) -> str:
    method = getattr(policy, name, None)
    if method is None:
        return f"it has no method {name}"
    if not inspect.iscoroutinefunction(method):
        return f"its {name} is not an async method"
    wanted = list(inspect.signature(getattr(TeardownPolicy, name)).parameters)[1:]
    try:
        inspect.signature(method).bind(*wanted)
    except TypeError:
        return f"its {name} does not take ({', '.join(wanted)})"
    return ""


def name_of(policy: object) -> str:
    """The name of a policy's class."""
    return (policy if isinstance(policy, type) else type(policy)).__name__


def blame(
    policy: TeardownPolicy, where: str, error: BaseException, text: Text[Any] | None = None
) -> LazyPVError | None:
    """The error of `policy` that `error` is: its file, line and function; None if it has nothing to do with it.

    Whatever passes through the policy's code is the policy's: also what the host's texts raise when it calls them
    wrongly, and what a step raises that it awaits.

    Parameters
    ----------
    where : str
        Actor and step.
    text : coroutine or None
        Who broke down.
    """
    files = _files_of(policy)
    frames = [*_standing(text), *_frames(error.__traceback__)]
    own = [(file, line, function) for file, line, function in frames if file in files]
    if not own and not any(file == __file__ for file, _, _ in frames):
        return None
    at = "{}:{}, in {}: ".format(*own[-1]) if own else ""
    step = f" ({where})" if where else ""
    return PolicyError(f"policy {name_of(policy)}{step}: {at}{type(error).__name__}: {error}")


def _files_of(policy: TeardownPolicy) -> set[str]:
    """Files of the policy's class and of those that it derives from, the package's own excepted."""
    modules = [kind.__module__ for kind in type(policy).__mro__ if kind.__module__.partition(".")[0] not in _OURS]
    return {file for name in modules if (file := getattr(sys.modules.get(name), "__file__", None))}


_OURS: Final = frozenset({"lazypv", "lazypv_kernels", "typing", "builtins"})


def _standing(text: Any) -> Iterator[tuple[str, int, str]]:
    """Where a suspended text stands, along its await chain."""
    while (frame := getattr(text, "cr_frame", None)) is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        text = text.cr_await


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int, str]]:
    while trace is not None:
        code: Any = trace.tb_frame.f_code
        yield code.co_filename, trace.tb_lineno, code.co_name
        trace = trace.tb_next
