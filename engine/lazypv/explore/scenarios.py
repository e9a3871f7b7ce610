"""Scenarios: small and readable, none of which names a defect. One set serves all searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazypv.errors import UsageError
from lazypv.explore.threads import Threads
from lazypv.explore.world import Scene, Shape, World
from lazypv.host import exit as host_exit
from lazypv.host import kvm
from lazypv.policy import LoadedPolicy
from lazypv.series import Series
from lazypv.steps import Text

Actors = list[tuple[str, Text[Any]]]


@dataclass(frozen=True)
class Scenario:
    """A world and what happens in it.

    Attributes
    ----------
    guests : tuple of int
        Guests of each process.
    """

    name: str
    says: str
    scene: Scene
    shape: Shape
    guests: tuple[int, ...]

    def build(self, series: Series, pages: int | None = None, policy: LoadedPolicy | None = None) -> World:
        """Its world, with every guest up, ready to be run any number of times; `policy`: somebody's own."""
        shape = self.shape if pages is None else replace(self.shape, pages=pages)
        world = World(shape, series, self.guests, policy)
        for vm in world.vms:
            world.boot(vm)
        world.take_down()
        return world


SCENARIOS: dict[str, Scenario] = {}


def _scenario(says: str, shape: Shape | None = None, guests: tuple[int, ...] = (1,)) -> Callable[[Scene], Scene]:
    def register(scene: Scene) -> Scene:
        name = scene.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, says, scene, shape or Shape(), guests)
        return scene

    return register


def scenario(name: str) -> Scenario:
    """The scenario of that name.

    Raises
    ------
    UsageError
        There is none.
    """
    if name not in SCENARIOS:
        raise UsageError(f"{name!r} is not a scenario: choose one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


async def _reboot_into_protected(world: World, qemu: Threads) -> None:
    vm = world.vms[0]
    await world.disable(vm)
    await world.bring_up(vm)
    await qemu.survive()
    await world.reads_zero(vm, list(range(1, vm.guest_pages)))


async def _reboot_into_normal(world: World, qemu: Threads) -> None:
    vm = world.vms[0]
    await world.disable(vm)
    await qemu.survive()
    await world.touches(vm, list(range(vm.guest_pages)))


def _qemu(world: World, text: Callable[[World, Threads], Text[None]]) -> Actors:
    """A process with one thread that counts."""
    qemu = Threads(world)
    return [("qemu", qemu.run(text(world, qemu)))]


# --- one guest, one thing after the other ------------------------------------------------------------------------


@_scenario("The guest's process ends.")
def shutdown(world: World) -> Actors:
    return [("qemu", world.processes[0].exit())]


@_scenario("The guest reboots and becomes protected again while its old memory is being cleaned.")
def reboot_into_protected(world: World) -> Actors:
    return _qemu(world, _reboot_into_protected)


@_scenario("The guest reboots and runs unprotected over its old memory.")
def reboot_into_normal(world: World) -> Actors:
    return _qemu(world, _reboot_into_normal)


@_scenario("The guest reboots, and its process ends while the old memory is being cleaned.")
def shutdown_during_cleanup(world: World) -> Actors:
    async def both() -> None:
        await world.disable(world.vms[0])
        await world.processes[0].exit()

    return [("qemu", both())]


@_scenario("A guest that is not above the limit reboots, and its process ends.", Shape(pages=2, limit=2))
def small_guest_ends(world: World) -> Actors:
    async def both() -> None:
        await world.disable(world.vms[0])
        await world.drained()
        await world.processes[0].exit()

    return [("qemu", both())]


@_scenario("A guest that is not above the limit reboots.", Shape(pages=2, limit=2))
def small_guest(world: World) -> Actors:
    return _qemu(world, _reboot_into_protected)


@_scenario("A reboot is asked for again if it fails, and then the process ends.")
def asked_again(world: World) -> Actors:
    async def twice() -> None:
        vm = world.vms[0]
        for _ in range(2):
            if vm.kvm.pv.handle:
                await kvm.disable(vm)
        await world.processes[0].exit()

    return [("qemu", twice())]


@_scenario("The guest reboots twice before the first cleaning has ended.")
def reboot_twice(world: World) -> Actors:
    async def twice(world: World, qemu: Threads) -> None:
        await world.disable(world.vms[0])
        await world.bring_up(world.vms[0])
        await qemu.survive()
        await world.disable(world.vms[0])

    return _qemu(world, twice)


@_scenario("The guest reboots into a protected run, and its process ends while the old memory is being cleaned.")
def shutdown_of_the_next_run(world: World) -> Actors:
    async def both(world: World, _qemu: Threads) -> None:
        await world.disable(world.vms[0])
        await world.bring_up(world.vms[0])
        await world.processes[0].exit()

    return _qemu(world, both)


@_scenario("The old memory of a rebooted guest is cleaned, and part of the new run's memory is given back.")
def give_back_after_reboot(world: World) -> Actors:
    async def reboot_then_balloon(world: World, qemu: Threads) -> None:
        vm = world.vms[0]
        await world.runs[0].unshare(0, _last_page(world))
        await _reboot_into_protected(world, qemu)
        await world.drained()
        await host_exit.unmap_range(world.host, vm.mm, vm.slots[0], 0, vm.guest_pages)

    return _qemu(world, reboot_then_balloon)


@_scenario(
    "Lazy destroy is off. A configuration may outlive its guest; afterwards another guest wants to be protected.",
    Shape(lazy_destroy=False),
)
def another_guest_afterwards(world: World) -> Actors:
    async def one_then_another() -> None:
        await kvm.disable(world.vms[0])
        await world.processes[0].exit()
        await world.drained()
        world.processes.append(world.host.create_process(private=0, shared_file=0, special=0))
        vm = world.host.create_vm(world.processes[1], [range(world.shape.pages)], 1)
        world.vms.append(vm)
        # What has failed before is no excuse: nothing is wrong with this guest.
        world.faulted = False
        another = Threads(world, process=1)
        await another.run(world.bring_up(vm))
        if not another.killed:
            await world.processes[1].exit()

    return [("qemu", one_then_another())]


@_scenario("A page that the guest shares is taken back, and then it reboots.", Shape(pages=2, limit=1))
def taken_back_then_reboot(world: World) -> Actors:
    async def unshare_then_reboot(world: World, qemu: Threads) -> None:
        await world.runs[0].unshare(0, _last_page(world))
        await _reboot_into_protected(world, qemu)

    return _qemu(world, unshare_then_reboot)


# --- the parameter, the feature bit ------------------------------------------------------------------------------


@_scenario("The parameter forbids lazy destroy: shutdown.", Shape(lazy_destroy=False))
def shutdown_with_the_parameter_off(world: World) -> Actors:
    return [("qemu", world.processes[0].exit())]


@_scenario("The parameter forbids lazy destroy: reboot.", Shape(lazy_destroy=False))
def reboot_with_the_parameter_off(world: World) -> Actors:
    return _qemu(world, _reboot_into_protected)


@_scenario("The parameter forbids lazy destroy: reboot into an unprotected run.", Shape(lazy_destroy=False))
def normal_with_the_parameter_off(world: World) -> Actors:
    return _qemu(world, _reboot_into_normal)


@_scenario("The machine has feature bit 0: an import takes a shared page over.", Shape(misc=True))
def reboot_with_feature_bit_0(world: World) -> Actors:
    return _qemu(world, _reboot_into_protected)


# --- more than one actor -----------------------------------------------------------------------------------------


@_scenario("While old memory is being cleaned, some of it is unmapped.")
def unmap_during_cleanup(world: World) -> Actors:
    vm = world.vms[0]

    async def swap() -> None:
        await host_exit.unmap_range(world.host, vm.mm, vm.slots[0], vm.guest_pages // 2, vm.guest_pages)

    return [("qemu", world.disable(vm)), ("kswapd", swap())]


@_scenario("The process is killed task by task while the guest reboots.")
def killed_during_reboot(world: World) -> Actors:
    async def other_tasks() -> None:
        process = world.processes[0]
        while process.tasks > 1:
            process.tasks -= 1
            await host_exit.mmput(world.host, process.mm)

    async def main() -> None:
        await world.disable(world.vms[0])
        await world.processes[0].exit()

    return [("main task", main()), ("other tasks", other_tasks())]


@_scenario("The process may be killed wherever its guest is on the way to its next run.", Shape(pages=2, limit=1))
def killed_at_any_point(world: World) -> Actors:
    qemu = Threads(world)
    return [("qemu", qemu.run(_reboot_into_protected(world, qemu))), ("somebody", qemu.kill())]


@_scenario("A guest takes a shared page back while a device of the host uses it.", Shape(pages=2, limit=1))
def device_and_guest(world: World) -> Actors:
    vm = world.vms[0]

    async def device() -> None:
        async with vm.mm.mmap_lock.shared():
            frames = world.host.machine.frames.look_up(vm.gmap.pte, _last_page(world))
        await world.host.pages.make_accessible(frames)
        world.host.machine.frames.put(frames)

    vcpu = Threads(world)
    return [("vcpu", vcpu.run(world.runs[0].unshare(0, _last_page(world)))), ("device", device())]


@_scenario("A guest that has rebooted runs while part of its memory is taken away.", Shape(pages=2, limit=1))
def slot_taken_away(world: World) -> Actors:
    vm = world.vms[0]

    async def reboot_then_run(world: World, qemu: Threads) -> None:
        await world.runs[0].unshare(0, _last_page(world))
        await world.disable(vm)
        await qemu.survive()
        await world.touches_what_may_be_gone(vm, vm.guest_pages - 1)

    return [*_qemu(world, reboot_then_run), ("main task", vm.remove_slot(vm.guest_pages - 1, vm.guest_pages))]


@_scenario("A protected guest that has rebooted touches memory that was taken away.", Shape(pages=2, limit=1))
def touched_after_it_was_taken_away(world: World) -> Actors:
    vm = world.vms[0]

    async def reboot_then_run(world: World, qemu: Threads) -> None:
        await world.runs[0].unshare(0, _last_page(world))
        await world.disable(vm)
        await world.bring_up(vm)
        await vm.remove_slot(vm.guest_pages - 1, vm.guest_pages)
        await qemu.survive()
        await world.touches_what_may_be_gone(vm, vm.guest_pages - 1)

    return _qemu(world, reboot_then_run)


# --- more than one guest -----------------------------------------------------------------------------------------


@_scenario("Two guests of one process: the process ends.", Shape(pages=2, limit=1), guests=(2,))
def two_guests_in_one_process(world: World) -> Actors:
    return [("qemu", world.processes[0].exit())]


@_scenario("Two guests of one process: one reboots while the other runs.", Shape(pages=2, limit=1), guests=(2,))
def one_of_two_guests_reboots(world: World) -> Actors:
    qemu = Threads(world, threads=2)

    async def other() -> None:
        await qemu.survive()
        await world.keeps(world.vms[1], [0, 1])

    return [("qemu", qemu.run(_reboot_into_protected(world, qemu))), ("other guest", qemu.run(other()))]


@_scenario("A process ends while another guest of the host asks for memory.", Shape(pages=2, limit=1))
def memory_for_a_neighbour(world: World) -> Actors:
    world.processes.append(world.host.create_process(private=0, shared_file=0, special=0))
    neighbour = world.host.create_vm(world.processes[1], [range(world.shape.pages)], 1)
    world.vms.append(neighbour)
    return [("qemu", world.processes[0].exit()), ("neighbour", world.reads_zero(neighbour, [0, 1]))]


def _last_page(world: World) -> NDArray[np.int64]:
    """The guest page that is shared when a run begins."""
    return np.array([world.shape.pages - 1])
