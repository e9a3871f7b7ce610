"""Batches in which no two pages are alike: one step on secure, shared, donated, busy, held and normal pages.

What small worlds do page by page, real threads do with hundreds at once; there one page's answer must not become
another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from tests.host.stepping import Driven, Stepper
from tests.host.worlds import World

from lazypv.host import faults
from lazypv.host.faults import ProcessKilledError
from lazypv.steps import Bulk, Step, Wait
from lazypv.ultravisor import BulkAnswer
from lazypv_kernels.layout import MARK_SECURE, NS, PSH, RC_DONE, SEC, SHR

from .check import Check, NoticedError
from .footprints import counts_are_those_of_the_codes

SECURE, SHARED, BUSY, EXPORTED, HELD = 70, 71, 72, 73, 74
"""Guest pages, and what becomes of them in :func:`_world`; the one that is held is exported too."""
MIXED = np.array([SECURE, SHARED, BUSY, EXPORTED])


def checks() -> Iterator[Check]:
    """What the host does to pages, on a mixture."""
    for or_export in (False, True):
        yield Check("a mixture is destroyed", partial(_destroyed, or_export))
    yield Check("a mixture is destroyed or exported", _destroyed_or_exported)
    yield Check("a mixture is exported", _exported)
    yield Check("a mixture is made accessible", _accessible)
    yield Check("a mixture is imported", _imported)
    yield Check("a mixture is stored to while it is saved", _stored)
    yield Check("pages from the allocator that are secure", _from_the_allocator)


class _Mixed(Stepper):
    """Looks at each answer; lets go of the busy page, or the held one, once somebody has met it."""

    def __init__(self, let_go: Callable[[], object]) -> None:
        super().__init__()
        self._let_go = [let_go]

    def perform(self, actor: Driven, step: Step[Any]) -> Any:
        """Do `step`, and look at what it gives back."""
        if isinstance(step, Wait) and self._let_go:
            self._let_go.pop()()
        answer = super().perform(actor, step)
        if isinstance(step, Bulk) and isinstance(answer, BulkAnswer):
            counts_are_those_of_the_codes(step, answer)
            if answer.busy and self._let_go:
                self._let_go.pop()()
        return answer


def _world() -> tuple[World, Callable[[], None]]:
    """A running guest, one of whose pages somebody else has a claim on; how he lets go of it."""
    world = World()
    world.full_guest()
    world.share(SHARED)
    world.machine.ultravisor.export_pages(world.frames([EXPORTED, HELD]))
    world.machine.frames.get(world.frames(HELD))
    let_go = world.machine.ultravisor.begin(int(world.frames(BUSY)[0]))
    assert let_go is not None
    return world, let_go


def _left(world: World, pages: Any = MIXED) -> list[tuple[int, int]]:
    """Of each page: state, references."""
    frames = world.frames(pages)
    counts = [world.machine.frames.reference_count(int(frame)) for frame in frames]
    return list(zip((int(world.firmware.state[frame]) for frame in frames), counts, strict=True))


def _destroyed(or_export: bool) -> None:
    """The guest's CPUs live, so that its pages are refused: left alone, or exported, each with one call."""
    world, let_go = _world()
    frames = world.frames(MIXED)
    world.machine.frames.get(frames)
    before = world.issued("CONV_FROM_SEC_STOR")
    _Mixed(let_go).run(world.host.pages.destroy_and_put(frames, "destroyed_sync", or_export=or_export))
    states = [NS] * 4 if or_export else [SEC, SHR, SEC, NS]
    _expect("pages", _left(world), [(state, 1) for state in states])
    _expect("exports", world.issued("CONV_FROM_SEC_STOR") - before, 3 if or_export else 0)
    _expect("pages destroyed", world.host.ledger.pages["destroyed_sync"], 0)


def _destroyed_or_exported() -> None:
    world, let_go = _world()
    rc = _Mixed(let_go).run(world.host.pages.destroy_or_export(world.frames(MIXED)))
    _expect("codes", rc.tolist(), [RC_DONE] * 4)
    _expect("pages", _left(world), [(NS, 1)] * 4)


def _exported() -> None:
    world, let_go = _world()
    frames = np.append(world.frames(MIXED), world.vm.kvm.pv.base[0])
    rc = _Mixed(let_go).run(world.host.pages.export_owned(frames)).tolist()
    _expect("codes of pages and of donated storage", [code == RC_DONE for code in rc], [True] * 4 + [False])
    _expect("pages", _left(world), [(NS, 1)] * 4)
    marks = world.machine.frames.byte[frames] & MARK_SECURE
    _expect("marks of what was exported", marks[:3].tolist(), [0] * 3)


def _accessible() -> None:
    """Shared pages are pinned, others exported, and what the host may not have is refused."""
    world, let_go = _world()
    donated = world.vm.kvm.pv.base[:1]
    world.machine.frames.byte[donated] |= MARK_SECURE
    rc = _Mixed(let_go).run(world.host.pages.make_accessible(np.append(world.frames(MIXED), donated))).tolist()
    _expect("codes of pages and of donated storage", [code == RC_DONE for code in rc], [True] * 4 + [False])
    _expect("pages", [state for state, _ in _left(world)], [NS, PSH, NS, NS])


def _imported() -> None:
    """What somebody holds is not imported before he lets go (invariant 5), and nothing beside it is held up."""
    world, let_go = _world()
    let_go()
    held = world.frames(HELD)
    seen: list[list[int]] = []

    def put() -> None:
        seen.append([state for state, _ in _left(world, [EXPORTED, HELD])])
        world.machine.frames.put(held)

    _Mixed(put).run(faults.non_secure(world.vm, np.array([HELD, EXPORTED])))
    _expect("pages while one was held", seen, [[SEC, NS]])
    _expect("pages afterwards", _left(world, [EXPORTED, HELD]), [(SEC, 1), (SEC, 1)])


def _stored() -> None:
    """Of pages that have still to be saved as many are copied as there is room for; the others wait."""
    world, let_go = _world()
    let_go()
    handle, ultravisor, pages = world.vm.kvm.pv.handle, world.machine.ultravisor, np.arange(80, 84)
    _expect("a snapshot", ultravisor.begin_snapshot(handle, None, 2) is not None, True)
    aside: list[int] = []
    _Mixed(lambda: aside.append(ultravisor.end_snapshot(handle, None))).run(faults.protection(world.vm, pages))
    _expect("pages aside when there was no more room", aside, [2])


def _from_the_allocator() -> None:
    """0x3d in the kernel: a page that bears its mark is exported; one that bears none is the end (invariant 1)."""
    for marked in (True, False):
        world, let_go = _world()
        let_go()
        frames, fresh = world.frames([SECURE]), np.array([200])
        if not marked:
            world.machine.frames.byte[frames] &= 0xFF ^ MARK_SECURE
        world.vm.gmap.pte.arrays[fresh] = 0
        world.machine.frames.allocate, allocate = (lambda _want, got=frames: got), world.machine.frames.allocate  # type: ignore[method-assign]
        ended: Exception | None = None
        try:
            _Mixed(let_go).run(faults.page_fault(world.vm, fresh))
        except ProcessKilledError as error:
            ended = error
        world.machine.frames.allocate = allocate  # type: ignore[method-assign]
        broken = [number for number, _ in world.host.ledger.broken]
        _expect("the end of the process, and what is broken", (ended is None, broken), (marked, [] if marked else [1]))
        if marked:
            _expect(
                "the page", (world.frames(200).tolist(), world.firmware.state[frames].tolist()), ([frames[0]], [NS])
            )


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise NoticedError(f"{what}: {found}, not {wanted}")
