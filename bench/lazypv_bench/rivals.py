"""Rivals: how one would do the same without this package, with no locks, no ownership and no calls."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import ModelError
from lazypv_bench.harness import Work
from lazypv_kernels.layout import PAGE_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv_bench.rig import Rig


SLOW_RIVAL_PAGES: Final = 1 << 15
"""Pages that a slow rival goes over, the first ones: 128 MiB, more than any cache has. A rate needs no more."""


def numpy_fancy_index(_rig: Rig, subject: Work) -> Work:
    """``memory[frames] = 0``."""
    contents = contents_of(subject)
    rows = np.arange(contents.shape[0])

    def run() -> None:
        contents[rows] = 0

    return Work(run=run, bytes=contents.nbytes)


def python_loop(_rig: Rig, subject: Work) -> Work:
    """The C library's memset in a Python loop over the pages."""
    contents = contents_of(subject)[:SLOW_RIVAL_PAGES]
    start, end = contents.ctypes.data, contents.ctypes.data + contents.nbytes

    def run() -> None:
        for address in range(start, end, PAGE_SIZE):
            ctypes.memset(address, 0, PAGE_SIZE)

    return Work(run=run, bytes=contents.nbytes)


def contents_of(subject: Work) -> NDArray[np.uint8]:
    """Where the subject's bytes lie."""
    if subject.contents is None:
        raise ModelError("the subject has not said which bytes it goes over")
    return subject.contents
