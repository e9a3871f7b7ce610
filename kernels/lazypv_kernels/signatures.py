"""Which kinds of arguments a kernel is meant for, read off its source: for compiling it before anybody calls it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import from_dtype, types

from lazypv_kernels.compiled import KERNELS, Kernel
from lazypv_kernels.door import ELEMENTS


def entries() -> list[Kernel]:
    """Kernels that no other kernel calls; with these all others are compiled."""
    inner = {name for kernel in KERNELS for name in kernel.py_func.__code__.co_names}
    return [kernel for kernel in KERNELS if kernel.py_func.__name__ not in inner]


def signature_of(kernel: Kernel) -> tuple[types.Type, ...]:
    """Kinds of arguments of `kernel`: contiguous arrays, int64 for whole numbers."""
    return tuple(_kind_of(kernel, parameter) for parameter in inspect.signature(kernel.py_func).parameters.values())


def _kind_of(kernel: Kernel, parameter: inspect.Parameter) -> types.Type:
    if parameter.annotation == "bool":
        return types.boolean
    element = ELEMENTS.get(parameter.annotation)
    if element is None:
        return types.int64
    return types.Array(from_dtype(np.dtype(element)), _dimensions(kernel, parameter), "C")


def _dimensions(kernel: Kernel, parameter: inspect.Parameter) -> int:
    """Of an array: as elements are taken, as the docstring says, or as another kernel's says of the same name."""
    taken = max(_indices(kernel, parameter.name), _documented(kernel, parameter.name))
    if taken:
        return taken
    elsewhere = (
        _documented(other, parameter.name)
        for other in KERNELS
        if other.py_func.__annotations__.get(parameter.name) == parameter.annotation
    )
    return max(elsewhere, default=0) or 1


def _documented(kernel: Kernel, name: str) -> int:
    """Dimensions of what the docstring gives a shape, as in ``keys : uint8[slots, 32]``; 0 if it does not."""
    names = rf"(?:\w+, )*{name}(?:, \w+)*(?: and \w+)?"
    shape = re.search(rf"\b{names} : \w+\[([^\]]*)\]", kernel.py_func.__doc__ or "")
    return shape[1].count(",") + 1 if shape else 0


def _indices(kernel: Kernel, name: str) -> int:
    """With how many indices elements of `name` are taken, here or where it is handed on to; 0 if it cannot be seen."""
    found = [0]
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kernel.py_func)))):
        if isinstance(node, ast.Subscript) and _is(node.value, name):
            found.append(len(node.slice.elts) if isinstance(node.slice, ast.Tuple) else 1)
        elif isinstance(node, ast.Call):
            found += [_indices(callee, parameter) for callee, parameter in _handed_on(kernel, node, name)]
    return max(found)


def _handed_on(kernel: Kernel, call: ast.Call, name: str) -> Iterator[tuple[Kernel, str]]:
    """Kernel and parameter for which `call` gives `name`."""
    callee: Any = kernel.py_func.__globals__.get(call.func.id) if isinstance(call.func, ast.Name) else None
    if isinstance(callee, Kernel) and callee is not kernel:
        parameters = list(inspect.signature(callee.py_func).parameters)
        yield from ((callee, parameters[at]) for at, part in enumerate(call.args) if _is(part, name))


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
