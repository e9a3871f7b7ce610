"""Where compiled kernels are kept: one file for each kernel and signature, whole or not there at all.

numba's own store numbers its files in an index. Two processes that compile at once can leave an index which names one
signature and a file which holds another, and the wrong machine code is called. It also looks only at the file of the
function that is called: edit a callee in another file and the caller goes on returning the old answer. Here a file's
name is a hash of all that decides what is in it, it is put in place by one rename, and a checksum tells whether all of
it is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from platformdirs import user_cache_path

SUFFIX = ".kernel"
_HERE = Path(__file__).resolve().parent
_CHECKSUM = hashlib.sha256().digest_size


class KernelCacheWarning(UserWarning):
    """Compiled kernels cannot be kept; every process compiles them anew."""


@cache
def sources_of(folder: Path) -> str:
    """Hash of all Python sources below `folder`, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def processor() -> tuple[str, str]:
    """Name and features of the processor that kernels are compiled for, as LLVM writes them."""
    _triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return str(name), str(features)


@cache
def source_key() -> str:
    """What compiled kernels depend on: all kernel sources, the compiler, the interpreter, the processor."""
    interpreter = f"{sys.implementation.cache_tag} {sys.platform}"
    parts = (sources_of(_HERE), numba.__version__, llvmlite.__version__, interpreter, *processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def cache_root() -> Path:
    """Where compiled kernels of all versions lie; ``LAZYPV_CACHE_DIR`` moves it."""
    chosen = os.environ.get("LAZYPV_CACHE_DIR")
    return (Path(chosen) if chosen else user_cache_path("lazypv")) / "kernels"


def cache_directory() -> Path:
    """Where the compiled kernels of these sources, this compiler and this processor lie."""
    return cache_root() / source_key()


class KernelStore(_Cache):
    """The compiled forms of one kernel, as a dispatcher looks them up.

    Parameters
    ----------
    function : function
        The kernel's Python function. One that does not stand in this package, as a benchmark's bare loop, also depends
        on all sources beside it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._enabled = True

    @property
    def cache_path(self) -> str:
        """Folder of the files."""
        return str(cache_directory())

    def path_of(self, signature: Any) -> Path:
        """The file of one signature: a tuple of numba types."""
        code = self._function.__code__
        beside = Path(code.co_filename).resolve().parent
        sources = "" if beside == _HERE else sources_of(beside)
        what = f"{self._function.__qualname__}\0{code.co_firstlineno}\0{tuple(signature)!r}\0{sources}"
        name = f"{Path(code.co_filename).stem}.{code.co_name}-{hashlib.sha256(what.encode()).hexdigest()[:20]}{SUFFIX}"
        return cache_directory() / name

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for `sig` before, or None: a file that is not whole, or not ours, is as good as none."""
        if not self._enabled:
            return None
        target_context.refresh()
        try:
            kept = self.path_of(sig).read_bytes()
            if hashlib.sha256(kept[_CHECKSUM:]).digest() != kept[:_CHECKSUM]:
                return None
            rebuild: Any = CompileResult._rebuild
            return rebuild(target_context, *pickle.loads(kept[_CHECKSUM:]))
        except OSError:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for `sig`; where that cannot be, say so once and go on without."""
        if not self._enabled or data.lifted or data.library.has_dynamic_globals:
            return
        compiled: bytes = dumps(data._reduce())  # type: ignore[no-untyped-call]
        try:
            _put(self.path_of(sig), hashlib.sha256(compiled).digest() + compiled)
        except OSError as error:
            _warn_once(error.strerror or str(error))

    def enable(self) -> None:
        """Look things up, and keep them."""
        self._enabled = True

    def disable(self) -> None:
        """Do neither."""
        self._enabled = False

    def flush(self) -> None:
        """Forget nothing: other processes may be reading, and what is stale has another name."""


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@cache
def _warn_once(why: str) -> None:
    message = (
        f"compiled kernels cannot be kept in {cache_root()} ({why}): every process compiles them anew, which takes a"
        " minute; LAZYPV_CACHE_DIR names another folder"
    )
    warnings.warn_explicit(message, KernelCacheWarning, "lazypv", 0)
