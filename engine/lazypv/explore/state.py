"""The state of a small world: taken down, put back, and boiled down to a number.

All mutable objects of host, firmware and texts are found by walking attributes from a few roots. Taking a state down
keeps a copy of each container and array; putting it back writes those copies into the very same objects, so that
references between them stay what they were. A digest numbers objects in the order of the walk, so that two worlds with
the same shape and content have the same digest whatever their addresses are.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from enum import Enum
from types import CoroutineType, FunctionType, MethodType
from typing import Any

import numpy as np

_PLAIN = (int, float, str, bytes, bool, type(None), Enum, range, frozenset, type)
_IGNORED_FIELDS = frozenset({"issued", "useless", "history", "directory"})
"""Statistics, which decide nothing, and the kernels' directory, whose addresses differ and whose rest is elsewhere."""


class Snapshot:
    """Copies of everything mutable that can be reached from `roots` through objects of `packages`."""

    def __init__(self, roots: list[Any], opaque: tuple[type, ...]) -> None:
        self._opaque = opaque
        self._kept: list[tuple[Any, Any]] = []
        self._keep(roots)

    def restore(self) -> None:
        """Write the copies back into the objects that they were taken of."""
        for thing, copy in self._kept:
            if isinstance(thing, np.ndarray):
                thing[...] = copy
            elif isinstance(thing, list):
                thing[:] = copy
            elif isinstance(thing, dict | set):
                thing.clear()
                thing.update(copy)
            elif isinstance(thing, deque):
                thing.clear()
                thing.extend(copy)
            else:
                for name, value in copy.items():
                    object.__setattr__(thing, name, value)

    def _keep(self, roots: list[Any]) -> None:
        seen: set[int] = set()
        todo = list(roots)
        while todo:
            thing = todo.pop()
            if isinstance(thing, _PLAIN) or id(thing) in seen or isinstance(thing, self._opaque):
                continue
            seen.add(id(thing))
            if isinstance(thing, np.ndarray):
                if thing.flags.writeable:
                    self._kept.append((thing, thing.copy()))
            elif isinstance(thing, list | set | deque):
                self._kept.append((thing, type(thing)(thing)))
                todo += thing
            elif isinstance(thing, dict):
                self._kept.append((thing, dict(thing)))
                todo += thing.values()
            elif isinstance(thing, tuple):
                todo += thing
            else:
                fields = _fields(thing)
                if fields is not None:
                    self._kept.append((thing, fields))
                    todo += fields.values()


def _fields(thing: Any) -> dict[str, Any] | None:
    """Attributes of an object of ours; None for what has no state of its own."""
    if not type(thing).__module__.startswith("lazypv"):
        return None
    found = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if name != "__weakref__" and hasattr(thing, name):
                found[name] = getattr(thing, name)
    return found


class Digester:
    """Boils a world down to a number; a fresh one for each digest."""

    def __init__(self, opaque: tuple[type, ...]) -> None:
        self._opaque = opaque
        self._numbers: dict[int, int] = {}
        self._out: list[Any] = []

    def digest(self, things: list[Any]) -> int:
        """Hash of everything that can be reached from `things`; the same within this process."""
        for thing in things:
            self._add(thing)
        return hash(tuple(self._out))

    def fingerprint(self, things: list[Any]) -> str:
        """The same in any process: hexadecimal."""
        for thing in things:
            self._add(thing)
        return hashlib.blake2b(repr(self._out).encode(), digest_size=16).hexdigest()

    def _add(self, thing: Any) -> None:
        out = self._out
        if isinstance(thing, _PLAIN):
            out.append(thing)
            return
        if isinstance(thing, np.ndarray):
            out.append(thing.tobytes())
            return
        if isinstance(thing, np.generic):
            out.append(thing.item())
            return
        number = self._numbers.get(id(thing))
        if number is not None:
            out.append(number)
            return
        self._numbers[id(thing)] = len(self._numbers)
        if isinstance(thing, self._opaque):
            out.append(type(thing).__name__)
        elif isinstance(thing, Counter):
            out.append("counter")
        elif isinstance(thing, list | tuple | deque):
            out.append(len(thing))
            for each in thing:
                self._add(each)
        elif isinstance(thing, set):
            out.append(len(thing))
            for each in sorted(thing, key=repr):
                self._add(each)
        elif isinstance(thing, dict):
            out.append(len(thing))
            for key, value in thing.items():
                self._add(key)
                self._add(value)
        elif isinstance(thing, CoroutineType):
            self._text(thing)
        elif isinstance(thing, FunctionType):
            out.append(thing.__qualname__)
            for cell in thing.__closure__ or ():
                self._add(cell.cell_contents)
        elif isinstance(thing, MethodType):
            out.append(thing.__func__.__qualname__)
            self._add(thing.__self__)
        else:
            fields = _fields(thing)
            out.append(type(thing).__name__)
            if fields is not None:
                for name, value in fields.items():
                    if name not in _IGNORED_FIELDS:
                        self._add(value)

    def _text(self, text: CoroutineType[Any, Any, Any]) -> None:
        """Where a text stands along its await chain, and its locals there."""
        at: Any = text
        while isinstance(at, CoroutineType):
            frame = at.cr_frame
            if frame is None:
                self._out.append("ended")
                return
            self._out.append((at.__qualname__, frame.f_lasti))
            for value in frame.f_locals.values():
                self._add(value)
            at = at.cr_await
