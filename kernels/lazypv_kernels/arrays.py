"""The arrays of the kernels by the type of their elements: what ``uint8[n]`` is called in a signature."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

U8: TypeAlias = NDArray[np.uint8]
U16: TypeAlias = NDArray[np.uint16]
U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]
I64: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

Table: TypeAlias = U32 | tuple[U64, U32]
"""A page table, flat or below a segment table (:mod:`lazypv_kernels.tables`)."""

Integer: TypeAlias = int | np.integer
"""A whole number, as a Python caller or another kernel gives it."""
