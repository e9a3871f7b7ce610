"""The state of a small world: taken down, put back, and boiled down to a number.

All mutable objects of host, firmware and texts are found by walking attributes from a few roots. Taking a state down
keeps a copy of each container and array; putting it back writes those copies into the very same objects, so that
references between them stay what they were. A digest is the hash of what the pickler of the standard library makes of
the same objects: it numbers them in the order of its walk, so that two worlds with the same shape and content have the
same digest whatever their addresses are, and it does that twenty times as fast as a walk written in Python.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from operator import attrgetter
from types import CoroutineType, FunctionType, MethodType
from typing import Any

import numpy as np

_PLAIN = (int, float, str, bytes, bool, type(None), Enum, range, frozenset, type)
_IGNORED_FIELDS = frozenset({"issued", "useless", "history", "directory"})
"""Statistics, which decide nothing, and the kernels' directory, whose addresses differ and whose rest is elsewhere."""
_LIBRARIES = sys.stdlib_module_names | {"numpy", "numba", "llvmlite", "nacl", "_cffi_backend", "pyarrow"}
"""Packages whose objects are no state of host, firmware or texts; everybody else's may be."""


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
    """Attributes of an object of ours, or of somebody's own policy; None for what has no state of its own."""
    if type(thing).__module__.partition(".")[0] in _LIBRARIES:
        return None
    found = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if name != "__weakref__" and hasattr(thing, name):
                found[name] = getattr(thing, name)
    return found


class Pickled:
    """What every object of ours is said to be rebuilt from: its class is named, its fields are its state."""


Recipe = tuple[Any, ...]
_NOTHING: Recipe = (Pickled, ())


class Digester:
    """Boils a world down to a number.

    Parameters
    ----------
    opaque : tuple of type
        Instances that count as the same whatever is in them.
    storage_bytes : int
        Arrays as large as that are the machine's storage, of which the caller has the hashes.
    """

    def __init__(self, opaque: tuple[type, ...], storage_bytes: int) -> None:
        self._opaque = opaque
        self._storage_bytes = storage_bytes
        self._recipes: dict[type, Callable[[Any], Recipe]] = {
            np.ndarray: self._array,
            CoroutineType: _text,
            FunctionType: _function,
            MethodType: lambda method: (Pickled, (method.__func__.__qualname__,), method.__self__),
            deque: lambda each: (Pickled, (len(each),), tuple(each)),
            range: lambda each: (Pickled, (each.start, each.stop, each.step)),
        }
        recipes = self._recipes
        recipe_of = self._recipe_of

        class Pickler(pickle.Pickler):
            def reducer_override(self, thing: Any) -> Any:
                kind = type(thing)
                return (recipes.get(kind) or recipe_of(thing, kind))(thing)

        self._pickler = Pickler

    def digest(self, things: Any) -> int:
        """Hash of everything that can be reached from `things`."""
        into = io.BytesIO()
        self._pickler(into, 5).dump(things)
        return int.from_bytes(hashlib.sha256(into.getbuffer()).digest()[:8], "little")

    def _array(self, array: np.ndarray[Any, Any]) -> Recipe:
        return _NOTHING if array.nbytes >= self._storage_bytes else (Pickled, (array.tobytes(),))

    def _recipe_of(self, thing: Any, kind: type) -> Callable[[Any], Recipe]:
        """How objects of that class are told, found out when the first one is met."""
        recipe: Callable[[Any], Recipe]
        if isinstance(thing, type):
            recipe = _as_it_is
        elif issubclass(kind, np.generic):
            recipe = _scalar
        elif issubclass(kind, Enum):
            recipe = _member
        elif issubclass(kind, tuple | list) and not issubclass(kind, self._opaque):
            recipe = _items
        elif issubclass(kind, Counter) or issubclass(kind, self._opaque):
            recipe = _opaque
        else:
            fields = [name for name in _fields(thing) or () if name not in _IGNORED_FIELDS]
            recipe = _teller(kind.__qualname__, fields)
        self._recipes[kind] = recipe
        return recipe


def _teller(name: str, fields: list[str]) -> Callable[[Any], Recipe]:
    if not fields:
        return lambda _thing: (Pickled, (name,))
    values = attrgetter(*fields)
    return lambda thing: (Pickled, (name,), (values(thing),))


def _as_it_is(_kind: type) -> Any:
    return NotImplemented


def _opaque(_thing: Any) -> Recipe:
    return _NOTHING


def _items(each: Any) -> Recipe:
    """A named tuple, or another sequence with a name of its own."""
    return (Pickled, (type(each).__qualname__, len(each)), tuple(each))


def _scalar(value: Any) -> Recipe:
    return (Pickled, (value.item(),))


def _member(member: Enum) -> Recipe:
    return (Pickled, (member.name,))


def _function(function: Any) -> Recipe:
    cells = function.__closure__
    if not cells:
        return (Pickled, (function.__qualname__,))
    return (Pickled, (function.__qualname__,), tuple([cell.cell_contents for cell in cells]))


def _text(text: CoroutineType[Any, Any, Any]) -> Recipe:
    """Where a text stands along its await chain, and its locals there."""
    told: list[Any] = []
    at: Any = text
    while type(at) is CoroutineType:
        frame = at.cr_frame
        if frame is None:
            told.append("ended")
            break
        told.append(at.__qualname__)
        told.append(frame.f_lasti)
        told.extend(frame.f_locals.values())
        at = at.cr_await
    return (Pickled, (), told)
