"""What a step touches, so that two steps of different actors are known to come to the same in either order.

What a step *writes* is seen: the state before it is compared with the state behind it, part by part, and all that is in
a digest is in some part but sums over all accounts, to which steps add the same in any order. What it *reads* nobody
sees. That is taken from its kind, as much as it may be and rather too much: a step of a kind that is not known here may
read anything.

What a text does between two awaits may read all that texts share, but for what the rules of texts and the walls of the
house keep from it: page states and contents, which only calls look at; the host's byte of a frame, which it uses by way
of operations that change it; the counters of an address space, which are read behind a `Touch` of it only; locks; the
set-aside list, unless it holds its lock; the books of configurations, in which a text only enters and strikes out.

Source: design, "Rules that make it true"; Godefroid, "Partial-Order Methods for the Verification of Concurrent
Systems" (1996), on conditional independence.
"""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from lazypv.explore.state import IGNORED_FIELDS, Digester, Snapshot, fields_of
from lazypv.host.gmap import Gmap
from lazypv.host.host import Host
from lazypv.host.kvm import KVM_LOCK, Kvm, Vcpu
from lazypv.host.mm import GATHER, MM_USERS, Mm, ProtectedCounter
from lazypv.host.set_aside import SetAsideList
from lazypv.host.teardown import DESTROY_THREAD
from lazypv.host.vm import Process, Vm
from lazypv.machine import HostFrames
from lazypv.steps import Acquire, Alloc, Bulk, Call, Lock, Release, Spawn, Touch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from lazypv.clocks.explore import Actor, Choice
    from lazypv.steps import Step

Part = Hashable
ANYTHING: Final = "anything"
"""Written by whoever writes at all."""
REST: Final = "the rest"
"""What texts share and what is no part of its own: page tables, lists, fields of objects."""
FIRMWARE: Final = "firmware"
"""The firmware's configurations, their CPUs, keys and records."""
VM: Final = "VMs"
"""VMs, the tasks of their processes, what a scene keeps; a thread that cleans looks at it under a table's lock only."""
CPUS: Final = "CPUs"
"""How many CPUs each configuration has: as long as it has some, its pages cannot be destroyed."""
BOOKS: Final = "books"
"""The host's: records of deferred destroys, configurations by handle, threads."""
FREE: Final = "free frames"
"""Which frames are free, and which of them comes next."""
EACH_PAGE, EACH_BYTE = "page of each frame", "host's byte of each frame"
"""Written with that of any frame."""
ACCOUNTS: Final = ("destroyed_sync", "destroyed_on_fault")
"""Those sums in the host's books that a scene looks at; no other decides anything."""

_HOST_BYTE: Final = 1
"""Which column of :func:`lazypv.invariants.whole.frames_state` is the host's own."""
_ON_A_FRAME: Final = frozenset({"clear fresh pages", "destroy pages", "destroy set-aside pages"})
"""Bulk steps over frames, a page of which looks at its frame, and whether its owner has CPUs."""
_SEALING: Final = frozenset({"export pages", "export unmapped pages", "make accessible"})
"""Bulk steps over frames, a page of which looks at its frame and at the owner's records."""
_BY_GUEST_PAGE: Final = frozenset({"guest access", "make secure"})
"""Bulk steps over guest pages, a page of which looks at what is mapped there."""
_COUNTERS: Final[dict[type, dict[str, str]]] = {
    Mm: {"users": MM_USERS, "count": "mm_count"},
    ProtectedCounter: {"value": "protected counter"},
}
"""Fields that are looked at behind a `Touch` of that name only."""
_COMMON: Final = ("lazypv.host.", "lazypv.machine.")
_OF_A_VM: Final = (Vm, Gmap, Kvm, Vcpu, Process)
_IN_THE_BOOKS: Final = frozenset({"records", "configurations", "leaked", "threads", "put_off_pages"})
_MARKS: Final = frozenset({ANYTHING, EACH_PAGE, EACH_BYTE})


class Footprint(NamedTuple):
    """Parts of the state that a step changes, and those that it changes or may look at."""

    writes: frozenset[Part]
    touches: frozenset[Part]

    def is_independent_of(self, other: Footprint) -> bool:
        """Whether two steps that both can be taken now come to the same in either order, and neither rules one out."""
        return self.writes.isdisjoint(other.touches) and other.writes.isdisjoint(self.touches)


class Look(NamedTuple):
    """A state, in parts.

    Attributes
    ----------
    frames : uint8[n, 16]
        What Ultravisor and host say of each frame, and a hash of its content.
    shared : dict
        Of each other part but locks, something that is equal as long as the part is what it was.
    texts : list of bytes
        Of each actor, where its text stands, and what it reaches that the world does not keep for good.
    """

    frames: NDArray[np.uint8]
    shared: dict[Part, Any]
    texts: list[bytes]


class Watcher(Digester):
    """Sees which parts of a world a step has changed.

    Parameters
    ----------
    frame_arrays : tuple of arrays
        What is kept of each frame; whoever has a look taken hands that over.
    """

    def __init__(
        self,
        opaque: tuple[type, ...],
        storage_bytes: int,
        roots: list[Any],
        fleeting: tuple[type, ...],
        frame_arrays: tuple[NDArray[Any], ...],
    ) -> None:
        self._frame_arrays = frame_arrays
        self._numbers: dict[int, int] = {}
        self._asides: list[SetAsideList] = []
        self._table_locks: list[Lock] = []
        self._mm_of: dict[int, Mm] = {}
        self._parts: dict[Part, _Teller] = {}
        super().__init__(opaque, storage_bytes, roots, fleeting)

    def _build_on(self, built: Snapshot, fleeting: tuple[type, ...]) -> None:
        super()._build_on(built, fleeting)
        self._numbers = {id(each): number for number, each in enumerate(built.objects)}
        self._asides = [each for each in built.objects if type(each) is SetAsideList]
        self._table_locks = [each.guest_table_lock for each in built.objects if type(each) is Gmap]
        self._mm_of = {id(mm.protected): mm for mm in built.objects if type(mm) is Mm}
        by_part: dict[Part, _Teller] = {REST: _Teller(), VM: _Teller()}
        part_of: dict[int, Part] = {}
        ignored: set[int] = set()
        for each in built.objects:
            for name, value in (fields_of(each) or {}).items():
                if name in IGNORED_FIELDS:
                    ignored.add(id(value))
                else:
                    part = part_of[id(value)] = self._part_of(each, name)
                    by_part.setdefault(part, _Teller()).add_field(each, name)
        for of, each in self._containers:
            by_part[part_of.get(id(each), VM)].containers.append((of, each))
        for array in built.arrays:
            apart = any(np.shares_memory(array, other) for other in self._frame_arrays)
            if not apart and id(array) not in ignored and array.nbytes < self._storage_bytes:
                by_part[part_of.get(id(array), REST)].arrays.append(array)
        by_part.pop(None, None)
        self._parts = by_part

    def _part_of(self, each: Any, field: str) -> Part:
        """Of which part a field is, with the list, array and so on that it holds; None: whoever changes it says so."""
        kind = type(each)
        if kind is Lock:
            return None
        if kind is Host and field in _IN_THE_BOOKS:
            return BOOKS
        if kind is HostFrames and field == "_cursor":
            return FREE
        if (kind is Mm and field == "to_drain") or (kind is SetAsideList and field == "nodes"):
            return self._set_aside(each.set_aside if kind is Mm else each)
        if kind in _COUNTERS and field in _COUNTERS[kind]:
            mm = each if kind is Mm else self._mm_of.get(id(each))
            return self._counter(mm, _COUNTERS[kind][field])
        if kind.__module__.startswith("lazypv.ultravisor"):
            return FIRMWARE
        return REST if kind.__module__.startswith(_COMMON) and kind not in _OF_A_VM else VM

    def _counter(self, mm: object, name: str) -> Part:
        return (name, self._numbers.get(id(mm)))

    def _set_aside(self, aside: SetAsideList) -> Part:
        return ("set aside", self._numbers.get(id(aside)))

    def _lock(self, lock: Lock) -> Part:
        return ("lock", self._numbers.get(id(lock)))

    # --- what is written -----------------------------------------------------------------------------------------

    def look(self, frames: NDArray[np.uint8], cpus: list[Any], scene: list[Any], texts: list[Any]) -> Look:
        """The state now: frames, CPUs and what a scene keeps as handed over, and where each text stands."""
        shared = {part: teller.look(self._told, scene if part is VM else []) for part, teller in self._parts.items()}
        shared[CPUS] = cpus
        return Look(frames, shared, [self._told(text) for text in texts])

    def _told(self, things: Any) -> bytes:
        self._tell(things)
        return self._into.getvalue()

    def footprint(self, number: int, step: Step[Any], reads: frozenset[Part], before: Look, after: Look) -> Footprint:
        """What an actor's `step` touched that may look at `reads`."""
        writes = {part for part, was in before.shared.items() if was != after.shared[part]}
        texts = enumerate(zip(before.texts, after.texts, strict=False))
        writes |= {("text", other) for other, (was, now) in texts if other != number and was != now}
        writes |= set(_frames_changed(before.frames, after.frames))
        if isinstance(step, Alloc):
            writes.add(FREE)
        if isinstance(step, Acquire | Release) and not step.shared:
            writes.add(self._lock(step.lock))
        if writes or isinstance(step, Acquire | Release | Spawn):
            writes.add(ANYTHING)
        return Footprint(frozenset(writes), reads | (writes - _MARKS))

    # --- what may be read ----------------------------------------------------------------------------------------

    def reads(self, choice: Choice, actor: Actor) -> frozenset[Part]:
        """What an actor's next step may look at. Every failure notes in what a scene keeps that there was one."""
        parts = self._reads(choice.actor, actor)
        return parts | {VM} if choice.fault else parts

    def _reads(self, number: int, actor: Actor) -> frozenset[Part]:
        step = actor.pending
        if isinstance(step, Bulk) and actor.page < step.pages:
            return frozenset({("text", number), *self._reads_of_a_page(step, actor.page)})
        parts = {("text", number), REST, *self._reads_under_locks(step, actor)}
        if not actor.name.startswith(DESTROY_THREAD) or getattr(step, "lock", None) in self._table_locks:
            parts.add(VM)
        if isinstance(step, Bulk):
            on_frames = step.name in _ON_A_FRAME or step.name in _SEALING
            return frozenset(parts.union(("byte", frame) for frame in step.footprint.tolist() if on_frames))
        if isinstance(step, Touch):
            return frozenset(parts | {self._counter(step.what, step.name)})
        if isinstance(step, Acquire | Release):
            parts.add(self._lock(step.lock))
            if isinstance(step, Release) and step.lock.name == KVM_LOCK:
                # Who comes back from an ioctl is a scene, which may look at what that has left to the old run.
                parts |= {FIRMWARE, EACH_PAGE}
            return frozenset(parts)
        if isinstance(step, Alloc):
            # A new top table is a copy of the old one.
            return frozenset(parts | {FREE, EACH_PAGE})
        if isinstance(step, Call) and step.uvc:
            return frozenset(parts | {FIRMWARE, EACH_PAGE})
        if isinstance(step, Call) and step.name == GATHER:
            return frozenset(parts)
        return frozenset({("text", number), ANYTHING})

    def _reads_under_locks(self, step: Step[Any] | None, actor: Actor) -> Iterator[Part]:
        """Set-aside lists that it may use: it holds the lock, or there is none; then it may make a node, too."""
        for aside in self._asides:
            if not aside.has_lock or aside.lock in actor.holds or getattr(step, "lock", None) is aside.lock:
                yield self._set_aside(aside)
                yield FREE

    def _reads_of_a_page(self, step: Bulk[Any], at: int) -> Iterator[Part]:
        page = int(step.columns[0][at])
        if step.name in _ON_A_FRAME or step.name in _SEALING:
            yield from (("page", page), ("byte", page), FIRMWARE if step.name in _SEALING else CPUS)
        elif step.name in _BY_GUEST_PAGE and step.frame_of is not None:
            frame = step.frame_of(page)
            yield from (REST, VM, FIRMWARE, ("page", frame))
            if step.uvc:
                yield ("byte", frame)
        else:
            yield ANYTHING


class _Teller:
    """What is told of one part."""

    def __init__(self) -> None:
        self._objects: dict[int, tuple[Any, list[str]]] = {}
        self._getters: list[tuple[Callable[[Any], Any], Any]] = []
        self.containers: list[tuple[Callable[[Any], Any], Any]] = []
        self.arrays: list[NDArray[Any]] = []

    def add_field(self, each: Any, name: str) -> None:
        self._objects.setdefault(id(each), (each, []))[1].append(name)
        self._getters = [(attrgetter(*names), one) for one, names in self._objects.values()]

    def look(self, tell: Callable[[Any], bytes], more: list[Any]) -> Any:
        """Something that is equal as long as the part is what it was; a number is told as it is."""
        values = [of(each) for of, each in self._getters]
        if len(values) == 1 and type(values[0]) is int and not self.containers:
            return values[0]
        told = tell([values, [of(each) for of, each in self.containers], more])
        return told, [array.tobytes() for array in self.arrays]


def _frames_changed(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Iterator[Part]:
    changed = before != after
    for frame in changed.any(axis=1).nonzero()[0].tolist():
        was, now = int(before[frame, _HOST_BYTE]), int(after[frame, _HOST_BYTE])
        if was != now:
            yield from (("byte", frame), EACH_BYTE)
            changed[frame, _HOST_BYTE] = False
        if bool(was) != bool(now):
            yield FREE
        if changed[frame].any():
            yield from (("page", frame), EACH_PAGE)
