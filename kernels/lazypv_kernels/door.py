"""The one door through which arrays come to a kernel that has not been compiled for their kind.

To numba a strided array and a read-only one are other types: another signature, and 0.3 s and more of compiling. So
what a kernel only reads is made to look like any other array: what is strided or has other elements is copied, what is
merely read-only is looked at in place. What a kernel could write to is refused: a copy would get the result, and the
caller's array would not.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lazypv_kernels.native import ARGUMENTS_READ

ELEMENTS: Final[Mapping[str, type[np.generic]]] = {
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I64": np.int64,
    "Flags": np.bool_,
    "Table": np.uint32,
}
"""Element types by the names that signatures use for arrays (:mod:`lazypv_kernels.arrays`)."""

ANY_DIMENSIONS: Final = 99
_SIZES: Final = {"size", "shape", "ndim"}


class ArrayRefusedError(TypeError):
    """An array that a kernel may write to is strided, read-only, unaligned, or has other elements."""

    def __init__(self, kernel: str, parameter: str, array: NDArray[Any], element: type[np.generic] | None) -> None:
        flags = array.flags
        wrong = {
            "strided": not flags.c_contiguous,
            "read-only": not flags.writeable,
            "not aligned": not flags.aligned,
            f"not of {np.dtype(element)}": not _has_elements(array, element),
        }
        what = ", ".join(each for each, so in wrong.items() if so)
        super().__init__(
            f"{kernel}: array {parameter!r}, {array.dtype}{list(array.shape)}, is {what}; the kernel may write to it,"
            " so that no copy is made for it"
        )


class Door:
    """What one kernel takes: its parameters, and which of them it only reads.

    Parameters
    ----------
    function : function
        The kernel's Python function; its annotations name the arrays' elements.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._parameters = tuple(inspect.signature(function).parameters.values())
        self._read: Mapping[str, int] | None = None

    @property
    def read(self) -> Mapping[str, int]:
        """Parameters that the kernel only reads, and for arrays of up to how many dimensions that is so."""
        if self._read is None:
            self._read = read_only_parameters(self._function)
        return self._read

    def admit(self, at: int, value: Any) -> Any:
        """Argument `at` as the kernel is to get it: `value` itself wherever that will do.

        Raises
        ------
        ArrayRefusedError
            It would have to be a copy, and the kernel may write to it.
        """
        if isinstance(value, np.ndarray):
            return self._admit_array(self._parameters[at], value)
        if isinstance(value, np.bool_):
            return bool(value)
        if isinstance(value, np.integer) and not isinstance(value, np.int64 | np.uint64):
            # Each width of a whole number would be a signature of its own; Python's int is int64.
            return int(value)
        return value

    def _admit_array(self, parameter: inspect.Parameter, array: NDArray[Any]) -> NDArray[Any]:
        element = ELEMENTS.get(parameter.annotation)
        in_place = array.flags.c_contiguous and array.flags.aligned and _has_elements(array, element)
        if in_place and array.flags.writeable:
            return array
        convertible = element is None or np.can_cast(array.dtype, element, "safe")
        if not convertible or array.ndim > self.read.get(parameter.name, -1):
            raise ArrayRefusedError(self._function.__name__, parameter.name, array, element)
        if in_place:
            return _as_if_writable(array)
        return np.array(array, element or array.dtype.newbyteorder("="), order="C")


def _has_elements(array: NDArray[Any], element: type[np.generic] | None) -> bool:
    return array.dtype.isnative and (element is None or array.dtype == element)


class _SameMemory:
    """An array's memory under another description; keeps the array alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.__array_interface__ = dict(array.__array_interface__, data=(array.ctypes.data, False))


def _as_if_writable(array: NDArray[Any]) -> NDArray[Any]:
    """The very memory of `array`, for a kernel that only reads; the memory may well be mapped read-only."""
    return np.asarray(_SameMemory(array))


# --- what a kernel only reads --------------------------------------------------------------------------------------


def read_only_parameters(function: Callable[..., Any]) -> dict[str, int]:
    """Parameters of which `function` only reads elements, sizes and shapes; up to how many dimensions that is so.

    Elements taken with k indices are scalars in arrays of up to k dimensions; of more they would be views, which could
    be written to. Handing an array on counts as reading where the kernel or intrinsic that gets it only reads.
    """
    return _read_only_parameters(function, frozenset())


def _read_only_parameters(function: Callable[..., Any], above: frozenset[Any]) -> dict[str, int]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    read = _elements_read(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            for at, dimensions in _arguments_read(node.func.id, function, above).items():
                if at < len(node.args):
                    read[id(node.args[at])] = dimensions
    allowed = dict.fromkeys(inspect.signature(function).parameters, ANY_DIMENSIONS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in allowed:
            allowed[node.id] = min(allowed[node.id], read.get(id(node), -1))
    return {name: dimensions for name, dimensions in allowed.items() if dimensions > 0}


def _elements_read(tree: ast.AST) -> dict[int, int]:
    """Names, by their place in `tree`, that only an element, a size or a shape is taken of; dimensions of each."""
    read = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in _SIZES:
            read[id(node.value)] = ANY_DIMENSIONS
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            if not any(isinstance(part, ast.Slice) for part in ast.walk(node.slice)):
                read[id(node.value)] = len(node.slice.elts) if isinstance(node.slice, ast.Tuple) else 1
    return read


def _arguments_read(called: str, function: Callable[..., Any], above: frozenset[Any]) -> dict[int, int]:
    """Positions of the arguments that what `function` calls `called` only reads; dimensions of each."""
    if called in ARGUMENTS_READ:
        return dict.fromkeys(ARGUMENTS_READ[called], ANY_DIMENSIONS)
    target = getattr(function, "__globals__", {}).get(called)
    callee = getattr(target, "py_func", None)
    if callee is None or callee in above:
        return {}
    read = _read_only_parameters(callee, above | {function})
    return {at: read[name] for at, name in enumerate(inspect.signature(callee).parameters) if name in read}
