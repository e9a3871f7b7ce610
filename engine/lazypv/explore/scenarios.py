"""Scenarios: small and readable, none of which names a defect. One set serves all searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lazypv.errors import UsageError
from lazypv.explore.world import Scene, Shape, World
from lazypv.host import exit as host_exit
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

    def build(self, series: Series, pages: int | None = None) -> World:
        """Its world, with every guest up, ready to be run any number of times."""
        shape = self.shape if pages is None else replace(self.shape, pages=pages)
        world = World(shape, series, self.guests)
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


async def _reboot_into_protected(world: World) -> None:
    vm = world.vms[0]
    await world.disable(vm)
    await world.bring_up(vm)
    await world.reads_zero(vm, list(range(1, vm.guest_pages)))


async def _reboot_into_normal(world: World) -> None:
    vm = world.vms[0]
    await world.disable(vm)
    await world.touches(vm, list(range(vm.guest_pages)))


async def _shutdown(world: World, number: int = 0) -> None:
    await world.processes[number].exit()


@_scenario("The guest reboots and becomes protected again while its old memory is being cleaned.")
def reboot_into_protected(world: World) -> Actors:
    return [("qemu", _reboot_into_protected(world))]


@_scenario("The guest reboots and runs unprotected over its old memory.")
def reboot_into_normal(world: World) -> Actors:
    return [("qemu", _reboot_into_normal(world))]


@_scenario("The guest reboots twice before the first cleaning has ended.")
def reboot_twice(world: World) -> Actors:
    async def twice() -> None:
        await world.disable(world.vms[0])
        await world.bring_up(world.vms[0])
        await world.disable(world.vms[0])

    return [("qemu", twice())]


@_scenario("The guest's process ends.")
def shutdown(world: World) -> Actors:
    return [("qemu", _shutdown(world))]


@_scenario("The guest reboots, and its process ends while the old memory is being cleaned.")
def shutdown_during_cleanup(world: World) -> Actors:
    async def both() -> None:
        await world.disable(world.vms[0])
        await world.processes[0].exit()

    return [("qemu", both())]


@_scenario("The guest reboots into a protected run, and its process ends while the old memory is being cleaned.")
def shutdown_of_the_next_run(world: World) -> Actors:
    async def both() -> None:
        await world.disable(world.vms[0])
        await world.bring_up(world.vms[0])
        await world.processes[0].exit()

    return [("qemu", both())]


@_scenario("Two guests of one process: the process ends.", Shape(pages=2, limit=1), guests=(2,))
def two_guests_in_one_process(world: World) -> Actors:
    return [("qemu", _shutdown(world))]


@_scenario("While old memory is being cleaned, some of it is unmapped.")
def unmap_during_cleanup(world: World) -> Actors:
    vm = world.vms[0]

    async def swap() -> None:
        await host_exit.unmap_range(world.host, vm.mm, vm.slots[0], vm.guest_pages // 2, vm.guest_pages)

    return [("qemu", world.disable(vm)), ("kswapd", swap())]


@_scenario("A guest that is not above the limit reboots.", Shape(pages=2, limit=2))
def small_guest(world: World) -> Actors:
    return [("qemu", _reboot_into_protected(world))]


@_scenario("The parameter forbids lazy destroy: reboot.", Shape(lazy_destroy=False))
def reboot_with_the_parameter_off(world: World) -> Actors:
    return [("qemu", _reboot_into_protected(world))]


@_scenario("The parameter forbids lazy destroy: shutdown.", Shape(lazy_destroy=False))
def shutdown_with_the_parameter_off(world: World) -> Actors:
    return [("qemu", _shutdown(world))]


@_scenario("The machine has feature bit 0: an import takes a shared page over.", Shape(misc=True))
def reboot_with_feature_bit_0(world: World) -> Actors:
    return [("qemu", _reboot_into_protected(world))]


@_scenario("A configuration may outlive its guest; afterwards another guest of the host wants to be protected.")
def another_guest_afterwards(world: World) -> Actors:
    async def one_then_another() -> None:
        await world.disable(world.vms[0])
        await world.processes[0].exit()
        await world.drained()
        process = world.host.create_process(private=0, shared_file=0, special=0)
        vm = world.host.create_vm(process, [range(world.shape.pages)], 1)
        world.vms.append(vm)
        await world.bring_up(vm)
        await process.exit()

    return [("qemu", one_then_another())]


@_scenario("The old memory of a rebooted guest is cleaned, and part of the new run's memory is given back.")
def give_back_after_reboot(world: World) -> Actors:
    vm = world.vms[0]

    async def reboot_then_balloon() -> None:
        await _reboot_into_protected(world)
        await world.drained()
        await host_exit.unmap_range(world.host, vm.mm, vm.slots[0], 0, vm.guest_pages)

    return [("qemu", reboot_then_balloon())]


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
