"""What the texts read and write between two awaits: a segment may have one unprotected access, and no more.

A text runs alone between two awaits. Had a segment two accesses to state that others may change and that no lock it
holds protects, a real race would be atomic here, and no search could find it. So objects record their accesses while a
text runs, and such a segment is an error of the text.

Source: design, "Rules that make it true".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lazypv.clocks.explore import Actor, ExploringClock, Faults, describe
from lazypv.errors import LazyPVError
from lazypv.explore.run import UnprotectedAccessError
from lazypv.explore.sampling import Manner, sample
from lazypv.explore.search import Bounds, Explorer
from lazypv.host.gmap import Gmap
from lazypv.host.kvm import Kvm
from lazypv.host.mm import Mm, ProtectedCounter
from lazypv.host.set_aside import SetAsideList
from lazypv.steps import Touch

if TYPE_CHECKING:
    from lazypv.explore.world import Scene, World
    from lazypv.steps import Lock, Step

SEGMENT_RUNS: Final = 5
Locks = Callable[[Any], tuple["Lock", ...]]


class Shared(NamedTuple):
    """Fields of a class that several texts use.

    Attributes
    ----------
    locks : callable
        Of an object, the locks each of which protects the fields.
    alone : callable
        Whether nobody else can come to the object any more.
    """

    kind: type
    fields: frozenset[str]
    locks: Locks
    alone: Callable[[Any], bool]


def _no_locks(_thing: Any) -> tuple[Lock, ...]:
    return ()


def _never(_thing: Any) -> bool:
    return False


def _nobody_uses(mm: Any) -> bool:
    return bool(object.__getattribute__(mm, "users") == 0)


def shared_state(world: World) -> tuple[Shared, ...]:
    """The fields of a world's objects that texts share, and what protects them.

    Ranges of an address space neither come nor go while anything runs in it, so they are not among them; what is mapped
    in a range is the business of bulk steps.
    """
    kvm_of = {id(vm.gmap): vm.kvm.lock for vm in world.vms}
    list_of = {id(mm): mm.set_aside.lock for mm in (process.mm for process in world.processes)}
    return (
        Shared(Mm, frozenset({"users"}), _no_locks, _never),
        Shared(Mm, frozenset({"count"}), _no_locks, _never),
        Shared(Mm, frozenset({"pv_sync_destroy"}), lambda mm: (mm.mmap_lock,), _nobody_uses),
        Shared(Mm, frozenset({"to_drain"}), lambda mm: (list_of[id(mm)],) if id(mm) in list_of else (), _never),
        Shared(ProtectedCounter, frozenset({"value"}), _no_locks, _never),
        Shared(SetAsideList, frozenset({"nodes"}), lambda aside: (aside.lock,), _never),
        Shared(
            Gmap,
            frozenset({"asce", "table", "guest_handle", "crst_list"}),
            lambda gmap: (gmap.guest_table_lock, *([kvm_of[id(gmap)]] if id(gmap) in kvm_of else [])),
            _never,
        ),
        Shared(Kvm, frozenset({"pv"}), lambda kvm: (kvm.lock,), _never),
    )


class AccessRecorder:
    """Has the objects of a world tell what is read and written of them while a text runs.

    The objects' classes are exchanged for others that tell; :meth:`stop` exchanges them back.
    """

    def __init__(self, world: World) -> None:
        self.running: Actor | None = None
        self.found: dict[tuple[int, str], str] = {}
        self._changed: list[tuple[Any, type]] = []
        shared = shared_state(world)
        mms = [process.mm for process in world.processes]
        things = [*mms, *(mm.protected for mm in mms), *(mm.set_aside for mm in mms)]
        things += [vm.gmap for vm in world.vms] + [vm.kvm for vm in world.vms]
        for thing in things:
            rules = {field: each for each in shared if each.kind is type(thing) for field in each.fields}
            self._changed.append((thing, type(thing)))
            thing.__class__ = _telling(type(thing), rules, self)

    def stop(self) -> None:
        """Have nobody tell any more."""
        for thing, kind in self._changed:
            thing.__class__ = kind

    def told(self, thing: Any, field: str, rule: Shared) -> None:
        """A field was read or written."""
        actor = self.running
        if actor is None or rule.alone(thing):
            return
        self.running = None  # what the rule itself looks at is nobody's access
        try:
            if not any(lock in actor.holds for lock in rule.locks(thing)):
                self.found[id(thing), field] = f"{rule.kind.__name__}.{field}"
        finally:
            self.running = actor


def _telling(kind: type, rules: dict[str, Shared], recorder: AccessRecorder) -> type:
    """`kind`, but its instances tell when one of the fields is used."""

    def read(self: Any, name: str) -> Any:
        if name in rules and recorder.running is not None:
            recorder.told(self, name, rules[name])
        return object.__getattribute__(self, name)

    def write(self: Any, name: str, value: Any) -> None:
        if name in rules and recorder.running is not None:
            recorder.told(self, name, rules[name])
        object.__setattr__(self, name, value)

    return type(kind.__name__, (kind,), {"__slots__": (), "__getattribute__": read, "__setattr__": write})


class RecordingClock(ExploringClock):
    """An exploring clock that looks at what each segment used.

    Raises
    ------
    UnprotectedAccessError
        From :meth:`step`: a segment had more than one unprotected access to different things.
    """

    def __init__(self, recorder: AccessRecorder, faults: Faults | None = None) -> None:
        super().__init__(faults)
        self._recorder = recorder

    def _resume(self, actor: Actor, value: Any, thrown: LazyPVError | None = None) -> None:
        recorder, step, outer = self._recorder, actor.pending, self._recorder.running
        outer_found, recorder.found, recorder.running = recorder.found, {}, actor
        try:
            super()._resume(actor, value, thrown)
        finally:
            found, recorder.found, recorder.running = recorder.found, outer_found, outer
        if len(found) > 1:
            raise UnprotectedAccessError(f"{actor.name} {_after(step)} uses unprotected {', '.join(found.values())}")


def _after(step: Step[Any] | None) -> str:
    if step is None:
        return "before its first await"
    what: Final = f" of {type(step.what).__name__}" if isinstance(step, Touch) else ""
    return f"after '{describe(step)}{what}'"


def check_segments(world: World, scene: Scene, faults: Faults, runs: int = SEGMENT_RUNS) -> None:
    """Run a scene in a few random orders, some with a fault, and look at what each segment uses.

    Raises
    ------
    UnprotectedAccessError
        A text has two unprotected accesses where it has one await.
    """
    recorder = AccessRecorder(world)
    try:
        explorer = Explorer(world, scene, Bounds(faults=1), faults, new_clock=partial(RecordingClock, recorder))
        sample(explorer, range(runs), "segments", Manner.RANDOM)
    finally:
        recorder.stop()
