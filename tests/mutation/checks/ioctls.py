"""KVM_PV_ENABLE and KVM_PV_DISABLE with each step failing in turn: what they say is what happened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tests.host.worlds import World as Hosted

from lazypv.clocks.explore import Choice, ExploringClock
from lazypv.clocks.live import LiveClock
from lazypv.explore.faults import UNKNOWN_RC, faults_for
from lazypv.explore.scenarios import SCENARIOS
from lazypv.explore.world import World
from lazypv.host import kvm
from lazypv.host.gmap import CRST_ALLOC_PAGES
from lazypv.host.kvm import EINVAL, EIO, ENOMEM, Result
from lazypv.host.vm import Vm
from lazypv.invariants import check_frames, check_structures
from lazypv.series import Series
from lazypv.sizes import PAGE_SIZE
from lazypv.ultravisor.interface import UVC_RC_NEED_DESTROY

from .check import Check, NoticedError

RC_OF = {"refused": UNKNOWN_RC, "refused, to be destroyed": UNKNOWN_RC | UVC_RC_NEED_DESTROY}
BASE_ALIGNMENT = 4
"""Pages: base storage lies in one piece, at a multiple of 16 KiB (semantics 3.5)."""
NOT_YET = {"no memory", *RC_OF}
"""Faults that an enabling cannot survive; it is tried again after a busy call."""


def checks() -> Iterator[Check]:
    """The first step failing, then the second, and so on; and ioctls at the wrong time."""
    yield Check("enabling with each step failing", _enable)
    yield Check("ioctls that work", _all_well)
    yield Check("ioctls at the wrong time", _wrong_time)
    yield Check("a top table that is replaced is copied", _copied)


def _enable() -> None:
    world = SCENARIOS["shutdown"].build(Series(), 2)
    process = world.host.create_process(private=0, shared_file=0, special=0)
    vm = world.host.create_vm(process, [range(2)], 2)
    world.vms.append(vm)
    world.take_down()
    free = world.machine.frames.free()
    for at in range(1000):
        names = _faults_at(world, vm, at)
        if names is None:
            return
        for number, name in enumerate(names, 1):
            world.restore()
            _one_fault(world, vm, at, number, name, free)
    raise NoticedError("enabling a guest comes to no end")


def _faults_at(world: World, vm: Vm, at: int) -> list[str] | None:
    """Names of the faults of step `at`; None if there is no such step."""
    world.restore()
    clock = _clock(world, vm)
    for _ in range(at):
        if not clock.enabled():
            return None
        clock.step(Choice(0))
    names = [name for name, _ in clock.faults_of(0)] if clock.enabled() else None
    clock.close()
    return names


def _clock(world: World, vm: Vm) -> ExploringClock:
    clock = ExploringClock(faults_for(world.machine.ultravisor))
    clock.start(_keep(vm), "qemu")
    return clock


_results: list[Result] = []


async def _keep(vm: Vm) -> None:
    _results.append(await kvm.enable(vm))


def _one_fault(world: World, vm: Vm, at: int, number: int, name: str, free: int) -> None:
    _results.clear()
    clock = _clock(world, vm)
    for step in range(1000):
        enabled = clock.enabled()
        if not enabled:
            break
        clock.step(Choice(enabled[0], number if step == at else 0))
    if not _results:
        raise NoticedError(f"step {at} of enabling ({name}): it never ended, {clock.actors[0].error!r}")
    result, what = _results[0], f"step {at} of enabling ({name}) gave {_results[0]}"
    clock.close()
    if name not in NOT_YET:
        taken = free - world.machine.frames.free()
        if taken != world.host.storage_sizes.total(vm.guest_pages, len(vm.kvm.vcpus)):
            raise NoticedError(f"{what}, and took {taken} frames")
        base = vm.kvm.pv.base
        if (np.diff(base) != 1).any() or base[0] % BASE_ALIGNMENT:
            raise NoticedError(f"{what}, and base storage lies in frames {base}")
        if result.errno or not vm.kvm.pv.handle or not all(vcpu.handle for vcpu in vm.kvm.vcpus):
            raise NoticedError(f"{what}, although nothing has failed")
        return
    if result.errno != (ENOMEM if name == "no memory" else EIO) or result.rc != RC_OF.get(name, 0):
        raise NoticedError(what)
    if vm.kvm.pv.handle or vm.gmap.guest_handle or any(vcpu.handle for vcpu in vm.kvm.vcpus):
        raise NoticedError(f"{what}, and left a configuration behind")
    if world.machine.frames.free() != free:
        raise NoticedError(f"{what}, and {world.machine.frames.free()} frames are free, not {free}")
    broken: list[Any] = [*check_frames(world.host), *check_structures(world.host, drained=False)]
    if broken:
        raise NoticedError(f"{what}: {broken[0]}")


def _all_well() -> None:
    """errno 0, rc 1, rrc 0 from each (semantics 3.5)."""
    world = SCENARIOS["shutdown"].build(Series(), 2)
    vm = world.vms[0]
    clock = LiveClock()
    results = [
        clock.run(kvm.set_parameters(vm, world.image.header)),
        clock.run(kvm.verify(vm)),
        clock.run(kvm.start_cpus(vm)),
    ]
    if results != [Result(0, 1, 0)] * len(results):
        raise NoticedError(f"parameters, verification, start gave {results}")


def _copied() -> None:
    """Its entries are those of the old one, which point to tables of the host (patch 01)."""
    world = Hosted()
    world.protect()
    old = world.vm.gmap.table
    entries = world.machine.load(old.origin, CRST_ALLOC_PAGES * PAGE_SIZE)
    world.hold()
    world.disable()
    new = world.vm.gmap.table
    if new is old or not any(entries) or world.machine.load(new.origin, len(entries)) != entries:
        raise NoticedError(f"the table at {new.origin:#x} is no copy of the one at {old.origin:#x}")
    world.close()


def _wrong_time() -> None:
    world = SCENARIOS["shutdown"].build(Series(), 2)
    vm = world.vms[0]
    clock = ExploringClock()
    _results.clear()

    async def in_turn() -> None:
        await _keep(vm)
        await world.disable(vm)
        _results.append(await kvm.disable(vm))

    clock.start(in_turn(), "qemu")
    while clock.enabled():
        clock.step(Choice(clock.enabled()[0]))
    if [result.errno for result in _results] != [EINVAL, EINVAL]:
        raise NoticedError(f"enabled twice, disabled twice: {_results}")
