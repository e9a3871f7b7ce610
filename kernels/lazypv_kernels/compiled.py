"""How a kernel is compiled: on first call, without the interpreter lock, and kept for later processes.

A call with a compiled signature goes straight to the machine code. One that meets none comes by
:mod:`lazypv_kernels.door`, is looked up in :mod:`lazypv_kernels.store`, and only then compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba.core.registry import CPUDispatcher

from lazypv_kernels.door import ArrayRefusedError, Door
from lazypv_kernels.store import KernelStore, cache_directory, source_key

__all__ = [
    "KERNELS",
    "LISTENERS",
    "ArrayRefusedError",
    "Kernel",
    "cache_directory",
    "compilations",
    "kernel",
    "source_key",
]

_F = TypeVar("_F", bound=Callable[..., Any])

KERNELS: list[Any] = []
"""Every kernel of the package, in order of definition: what `lazypv warm` compiles and what tests count."""

LISTENERS: list[Callable[[Any], None]] = []
"""Who is told of each kernel that can be called now, compiled or loaded: a progress bar."""


class Kernel(CPUDispatcher):
    """numba's dispatcher, with the door before its compiler and our store behind it."""

    def __init__(self, py_func: Callable[..., Any], *options: Any, **more: Any) -> None:
        super().__init__(py_func, *options, **more)
        self._cache = KernelStore(py_func)
        self._door = Door(py_func)

    def _compile_for_args(self, *args: Any, **kws: Any) -> Any:
        """What the dispatcher calls with arguments that fit no compiled signature; gives back what it calls then."""
        admitted = tuple(self._door.admit(at, value) for at, value in enumerate(args))
        if all(new is old for new, old in zip(admitted, args, strict=True)):
            return super()._compile_for_args(*args, **kws)  # type: ignore[misc]
        self._types_active_call.clear()  # type: ignore[attr-defined]
        return lambda *_args: self(*admitted)

    def compile(self, sig: Any) -> Any:
        """Machine code for `sig`, as kept or compiled now."""
        entry = super().compile(sig)
        for listener in LISTENERS:
            listener(self)
        return entry


def kernel(function: _F) -> _F:
    """Make `function` a kernel: ``nogil``, compiled on first call, kept by the sources of all kernels."""
    dispatcher = Kernel(function, targetoptions={"nogil": True, "nopython": True, "boundscheck": None})
    if function.__module__.partition(".")[0] == __name__.partition(".")[0]:
        KERNELS.append(dispatcher)
    return cast(_F, dispatcher)


def compilations() -> int:
    """Signatures that this process compiled itself rather than load from what was kept."""
    return sum(sum(dispatcher.stats.cache_misses.values()) for dispatcher in KERNELS)
