"""How a kernel is compiled: on first call, without the interpreter lock, cached under a key of all kernel sources.

numba's own cache looks only at the file of the function that is called: edit a callee in another file and the caller
goes on returning the old answer. Here the key is the text of every file of this package and which cipher symbols were
found; numba adds its version, the CPU and the signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from platformdirs import user_cache_path

_F = TypeVar("_F", bound=Callable[..., Any])

KERNELS: list[Any] = []
"""Every kernel of the package, in order of definition: what `lazypv warm` compiles and what tests count."""


@cache
def source_key() -> str:
    """Hash of all kernel sources, in hexadecimal."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


def cache_directory() -> Path:
    """Where compiled kernels lie; ``LAZYPV_CACHE_DIR`` moves it."""
    chosen = os.environ.get("LAZYPV_CACHE_DIR")
    return (Path(chosen) if chosen else user_cache_path("lazypv")) / "kernels" / source_key()


class _Locator(_CacheLocator):
    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        self._name = f"{Path(py_file).stem}-{py_func.__code__.co_firstlineno}"

    def get_cache_path(self) -> str:
        return str(cache_directory())

    def get_source_stamp(self) -> str:
        return source_key()

    def get_disambiguator(self) -> str:
        return self._name

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> Any:
        locator: Any = cls(py_func, py_file)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator


class _CacheImpl(CompileResultCacheImpl):
    _locator_classes: Any = (_Locator,)


class _Cache(FunctionCache):
    _impl_class: Any = _CacheImpl


def kernel(function: _F) -> _F:
    """Make `function` a kernel: ``nogil``, compiled on first call, cached by the sources of all kernels."""
    dispatcher: Any = numba.njit(nogil=True)(function)
    open_cache: Any = _Cache
    # No folder can be written: compile in each process rather than fail.
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = open_cache(function)
    KERNELS.append(dispatcher)
    return cast(_F, dispatcher)


def compilations() -> int:
    """Signatures that this process compiled itself rather than load from the cache."""
    return sum(sum(dispatcher.stats.cache_misses.values()) for dispatcher in KERNELS)
