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
import threading
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from operator import attrgetter
from types import CodeType, CoroutineType, FunctionType, MethodType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazypv.sizes import PAGE_SIZE
from lazypv_kernels import scan

_WITHOUT_IDENTITY = (int, float, str, bytes, bool, type(None), frozenset)
_CONSTANT = (Enum, range, type, type(threading.Lock()), type(threading.RLock()), threading.local)
IGNORED_FIELDS = frozenset({"issued", "useless", "history", "directory"})
"""Statistics, which decide nothing, and the kernels' directory, whose addresses differ and whose rest is elsewhere."""
_LIBRARIES = sys.stdlib_module_names | {"numpy", "numba", "llvmlite", "nacl", "_cffi_backend", "pyarrow"}
"""Packages whose objects are no state of host, firmware or texts; everybody else's may be."""


class Snapshot:
    """Copies of everything mutable that can be reached from `roots` through objects of ours.

    Attributes
    ----------
    objects, containers, arrays : list
        What was copied: objects of ours, lists and the like, writable arrays; each in the order of the walk.
    views : list
        Arrays over the very memory of another.
    constants : list
        What else was met, and cannot change.
    """

    def __init__(self, roots: list[Any], opaque: tuple[type, ...]) -> None:
        self.objects: list[Any] = []
        self.containers: list[Any] = []
        self.arrays: list[np.ndarray[Any, Any]] = []
        self.views: list[np.ndarray[Any, Any]] = []
        self.constants: list[Any] = []
        self._opaque = opaque
        self._array_copies: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._memory: set[tuple[int, int]] = set()
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._tables: list[tuple[Any, Any]] = []
        self._queues: list[tuple[deque[Any], deque[Any]]] = []
        self._named: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._slots: list[tuple[Any, str, Any]] = []
        self._keep(roots)

    def restore(self) -> None:
        """Write the copies back into the objects that they were taken of."""
        for array, copy in self._array_copies:
            array[...] = copy
        for each, items in self._lists:
            each[:] = items
        for table, entries in self._tables:
            table.clear()
            table.update(entries)
        for queue, waiting in self._queues:
            queue.clear()
            queue.extend(waiting)
        for fields, values in self._named:
            fields.update(values)  # clearing it first would make every later look at the object slower
        for thing, name, value in self._slots:
            object.__setattr__(thing, name, value)

    def _keep(self, roots: list[Any]) -> None:
        seen: set[int] = set()
        todo = list(roots)
        while todo:
            thing = todo.pop()
            if isinstance(thing, _WITHOUT_IDENTITY) or id(thing) in seen:
                continue
            seen.add(id(thing))
            if isinstance(thing, (*_CONSTANT, *self._opaque)) or _closes_over_nothing(thing):
                self.constants.append(thing)
            elif isinstance(thing, np.ndarray):
                self._keep_array(thing)
            elif isinstance(thing, list | set | deque | dict):
                todo += self._keep_container(thing)
            elif isinstance(thing, tuple):
                todo += thing
            else:
                todo += self._keep_object(thing)

    def _keep_array(self, array: np.ndarray[Any, Any]) -> None:
        memory = array.ctypes.data, array.nbytes
        if not array.flags.writeable:
            self.constants.append(array)
        elif memory in self._memory:
            self.views.append(array)
        else:
            self._memory.add(memory)
            self.arrays.append(array)
            self._array_copies.append((array, array.copy()))

    def _keep_container(self, each: Any) -> list[Any]:
        self.containers.append(each)
        if isinstance(each, dict):
            self._tables.append((each, dict(each)))
            return list(each.values())
        if isinstance(each, list):
            self._lists.append((each, list(each)))
        elif isinstance(each, set):
            self._tables.append((each, set(each)))
        else:
            self._queues.append((each, deque(each)))
        return list(each)

    def _keep_object(self, thing: Any) -> list[Any]:
        fields = fields_of(thing)
        if fields is None:
            return []
        self.objects.append(thing)
        named = getattr(thing, "__dict__", None)
        if named is not None:
            self._named.append((named, dict(named)))
        self._slots += [(thing, name, value) for name, value in fields.items() if named is None or name not in named]
        return list(fields.values())


def _closes_over_nothing(thing: Any) -> bool:
    return isinstance(thing, FunctionType) and not thing.__closure__


def fields_of(thing: Any) -> dict[str, Any] | None:
    """Attributes of an object of ours, or of somebody's own policy; None for what has no state of its own."""
    if type(thing).__module__.partition(".")[0] in _LIBRARIES:
        return None
    found = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if name != "__weakref__" and hasattr(thing, name):
                found[name] = getattr(thing, name)
    return found


class _Hasher:
    """64 bits that depend on every byte of what it is given, and its place.

    Hashes of the pages that it fills, hashed in turn: a cryptographic hash of all would take as long as the pickler.
    """

    def __init__(self) -> None:
        self._make_room(16)

    def _make_room(self, rows: int) -> None:
        self._bytes = np.zeros(rows * PAGE_SIZE, np.uint8)
        self._words = self._bytes.view(np.uint64).reshape(rows, -1)
        self._hashes = np.empty(rows, np.uint64)

    def hash_of(self, parts: list[NDArray[np.uint8]]) -> int:
        """Of `parts`, one behind the other."""
        size = sum([part.size for part in parts])
        rows = -(-size // PAGE_SIZE)
        if rows > self._hashes.size:
            self._make_room(2 * rows)
        np.concatenate(parts, out=self._bytes[:size])
        self._bytes[size : rows * PAGE_SIZE] = 0
        scan.hash_frames(self._words, 0, rows, self._hashes)
        key = size.to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(self._hashes[:rows].data, digest_size=8, key=key).digest(), "little")


class Pickled:
    """What every object of ours is said to be rebuilt from: its class is named, its fields are its state."""


Recipe = tuple[Any, ...]
Teller = Callable[[Any], Recipe]


class _Function:
    """A function of a text: of a function itself the pickler would say where it is to be imported from."""

    __slots__ = ("function",)

    def __init__(self, function: Any) -> None:
        self.function = function


def _in_order(each: set[Any]) -> list[Any]:
    """Names in a set, in an order that is the same in every process."""
    return sorted(each, key=str) if each else []


_COPY: dict[type, Callable[[Any], Any]] = {dict: dict, set: _in_order}
"""What is handed to the pickler in the place of a container that it knows by its number."""
_NOTHING: Recipe = (Pickled, ())


class Digester:
    """Boils a world down to a number.

    What a world keeps for good stays where it is from run to run, so the pickler is told beforehand: it names such an
    object by its number, and what is in each of them is handed to it in lists. Only what comes and goes is walked.

    Parameters
    ----------
    opaque : tuple of type
        Instances that count as the same whatever is in them.
    storage_bytes : int
        Arrays as large as that are the machine's storage, of which the caller has the hashes.
    roots : list
        Where the walk begins to what is kept for good.
    fleeting : tuple of type
        Instances that come and go, with everything that is reached by way of them alone.
    """

    def __init__(
        self,
        opaque: tuple[type, ...],
        storage_bytes: int,
        roots: list[Any] | None = None,
        fleeting: tuple[type, ...] = (),
    ) -> None:
        self._storage_bytes = storage_bytes
        self._tellers = tellers = _Tellers(opaque, storage_bytes)

        class Quick(pickle.Pickler):
            dispatch_table = tellers

        class Thorough(pickle.Pickler):
            """Takes functions, too, wherever they are."""

            def reducer_override(self, thing: Any) -> Any:
                return NotImplemented if isinstance(thing, type) else tellers[type(thing)](thing)

        self._hasher = _Hasher()
        self._into = io.BytesIO()
        self._quick = Quick(self._into, 5)
        self._thorough = Thorough(self._into, 5)
        self._objects: list[tuple[Callable[[Any], Any], Any]] = []
        self._containers: list[tuple[Callable[[Any], Any], Any]] = []
        self._bytes: list[NDArray[np.uint8]] = []
        self._known = pickle.Pickler(io.BytesIO(), 5)
        if roots:
            self._build_on(Snapshot(roots, (*opaque, *fleeting)), fleeting)

    def _build_on(self, built: Snapshot, fleeting: tuple[type, ...]) -> None:
        ignored = [getattr(each, name) for each in built.objects for name in IGNORED_FIELDS if hasattr(each, name)]
        left_out = {id(each) for each in ignored}
        for each in built.objects:
            fields = [name for name in fields_of(each) or () if name not in IGNORED_FIELDS]
            if fields:
                self._objects.append((attrgetter(*fields), each))
        for each in built.containers:
            if id(each) not in left_out and not isinstance(each, Counter):
                self._containers.append((_COPY.get(type(each), list), each))
        for array in built.arrays:
            if id(array) not in left_out and array.nbytes < self._storage_bytes:
                self._bytes.append(array.reshape(-1).view(np.uint8))
        known = [*built.objects, *built.containers, *built.arrays, *built.views]
        known += [each for each in built.constants if not isinstance(each, fleeting)]
        self._known.memo = {id(each): (number, each) for number, each in enumerate(known)}

    def digest(self, things: Any, *more: NDArray[Any]) -> int:
        """Hash of everything that can be reached from `things`, and of the bytes of `more`."""
        told = [things, [values(each) for values, each in self._objects], [of(each) for of, each in self._containers]]
        self._tell(told)
        parts = [np.frombuffer(self._into.getbuffer(), np.uint8), *self._bytes, *[each.view(np.uint8) for each in more]]
        return self._hasher.hash_of(parts)

    def _tell(self, things: Any) -> None:
        """Have a pickler write `things` down; what the world keeps for good is named in them, not told."""
        try:
            self._dump(self._quick, things)
        except (pickle.PicklingError, AttributeError):
            self._dump(self._thorough, things)

    def _dump(self, pickler: pickle.Pickler, things: Any) -> None:
        self._into.seek(0)
        self._into.truncate()
        self._tellers.functions.clear()
        pickler.memo = self._known.memo
        try:
            pickler.dump(things)
        finally:
            pickler.clear_memo()  # else it would keep what it has met


_LOCALS: dict[int, tuple[tuple[str, ...], CodeType]] = {}


def _locals_of(code: CodeType) -> tuple[str, ...]:
    """Names of a function's locals, in its order: Python's is the one in which they were first found bound."""
    found = _LOCALS.get(id(code))  # to hash the code itself takes as long as all the rest
    if found is None:
        names = tuple(dict.fromkeys((*code.co_varnames, *code.co_cellvars, *code.co_freevars)))
        found = _LOCALS[id(code)] = names, code
    return found[0]


class _Tellers(dict[type, Teller]):
    """How objects of each class are told, found out when the first one is met.

    Attributes
    ----------
    functions : dict
        What stands for each function of a text that was met, while one world is told.
    """

    def __init__(self, opaque: tuple[type, ...], storage_bytes: int) -> None:
        super().__init__()
        self.functions: dict[FunctionType, _Function] = {}
        self._opaque = opaque
        self[np.ndarray] = lambda array: _NOTHING if array.nbytes >= storage_bytes else (Pickled, (array.tobytes(),))
        self[CoroutineType] = self._text
        self[FunctionType] = self._function
        self[_Function] = lambda wrapper: self._function(wrapper.function)
        self[MethodType] = lambda method: (Pickled, (method.__func__.__qualname__,), method.__self__)
        self[deque] = lambda each: (Pickled, (len(each),), tuple(each))
        self[range] = lambda each: (Pickled, (each.start, each.stop, each.step))

    def __missing__(self, kind: type) -> Teller:
        return lambda thing: self._found_out(kind, thing)(thing)

    def _found_out(self, kind: type, thing: Any) -> Teller:
        teller: Teller
        if issubclass(kind, np.generic):
            teller = _scalar
        elif issubclass(kind, Enum):
            teller = _member
        elif issubclass(kind, tuple | list) and not issubclass(kind, self._opaque):
            teller = _items
        elif issubclass(kind, Counter) or issubclass(kind, self._opaque):
            teller = _opaque
        else:
            fields = [name for name in fields_of(thing) or () if name not in IGNORED_FIELDS]
            teller = _fields_told(kind.__qualname__, fields)
        self[kind] = teller
        return teller

    def _wrapped(self, value: Any) -> Any:
        if type(value) is not FunctionType:
            return value
        return self.functions.get(value) or self.functions.setdefault(value, _Function(value))

    def _function(self, function: Any) -> Recipe:
        cells = function.__closure__
        if not cells:
            return (Pickled, (function.__qualname__,))
        return (Pickled, (function.__qualname__,), tuple([self._wrapped(cell.cell_contents) for cell in cells]))

    def _text(self, text: CoroutineType[Any, Any, Any]) -> Recipe:
        """Where a text stands along its await chain, and its locals there."""
        told: list[Any] = []
        at: Any = text
        while type(at) is CoroutineType:
            frame = at.cr_frame
            if frame is None:
                told.append("ended")
                break
            inner = at.cr_await  # told next, and not a second time as somebody's local
            told += (at.__qualname__, frame.f_lasti)
            values = [None if value is inner else value for value in map(frame.f_locals.get, _locals_of(at.cr_code))]
            told += [self._wrapped(value) if type(value) is FunctionType else value for value in values]
            at = inner
        return (Pickled, (), told)


def _fields_told(name: str, fields: list[str]) -> Teller:
    if not fields:
        return lambda _thing: (Pickled, (name,))
    values = attrgetter(*fields)
    return lambda thing: (Pickled, (name,), (values(thing),))


def _opaque(_thing: Any) -> Recipe:
    return _NOTHING


def _items(each: Any) -> Recipe:
    """A named tuple, or another sequence with a name of its own."""
    return (Pickled, (type(each).__qualname__, len(each)), tuple(each))


def _scalar(value: Any) -> Recipe:
    return (Pickled, (value.item(),))


def _member(member: Enum) -> Recipe:
    return (Pickled, (member.name,))
