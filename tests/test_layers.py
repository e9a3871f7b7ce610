"""Imports point downwards, and there is a wall between the host and the firmware's storage.

Source: design, "The picture".

A room may import rooms below it and itself. That holds for imports for types only as well: no room needs a type of a
room above, so an upward type would be the beginning of an upward dependency. Errors and sizes are for all. Beside the
tower stand clocks (steps and errors), image, explain and files (errors and sizes), snapshot and invariants (may read
everything below the scenario); the tower below the scenario knows none of them.
"""

from __future__ import annotations

import ast
import functools
import types
from collections import deque
from pathlib import Path

import numpy as np
import pytest

import lazypv
import lazypv_kernels
from lazypv.clocks.live import LiveClock
from lazypv.hardware import Machine
from lazypv.host import kvm
from lazypv.host.faults import import_pages
from lazypv.host.host import Host
from lazypv.host.run import access
from lazypv.steps import Wait
from lazypv.ultravisor import vault
from lazypv_kernels.access import STORE_WORD

FOR_ALL = {"lazypv.errors", "lazypv.sizes", "lazypv._version"}
TOWER = [
    {"lazypv_kernels"},
    {"lazypv.machine"},
    {"lazypv.ultravisor"},
    {"lazypv.hardware"},
    {"lazypv.steps", "lazypv.series"},
    {"lazypv.host"},
    {"lazypv.guest", "lazypv.policy"},
    {"lazypv.scenario"},
    {"lazypv.explore"},
    {"lazypv.trace"},
    {"lazypv.report"},
    {"lazypv.upkeep"},
    {"lazypv.cli"},
    {"lazypv", "lazypv.__main__"},
]
BELOW_THE_SCENARIO = set().union(*TOWER[:7])
BESIDE = {
    "lazypv.clocks": {"lazypv.steps"},
    "lazypv.image": set(),
    "lazypv.explain": set(),
    "lazypv.files": set(),
    "lazypv.snapshot": BELOW_THE_SCENARIO,
    "lazypv.invariants": BELOW_THE_SCENARIO,
}
MAY_IMPORT_BESIDE = {
    "lazypv.clocks": {"lazypv.scenario", "lazypv.explore", "lazypv.trace", "lazypv.report", "lazypv.cli"},
    "lazypv.image": {
        "lazypv.scenario",
        "lazypv.report",
        "lazypv.upkeep",
        "lazypv.cli",
        "lazypv",
        "lazypv.snapshot",
    },
    "lazypv.explain": {"lazypv.cli", "lazypv"},
    "lazypv.files": {
        "lazypv.scenario",
        "lazypv.explore",
        "lazypv.trace",
        "lazypv.report",
        "lazypv.upkeep",
        "lazypv.cli",
        "lazypv.snapshot",
    },
    "lazypv.snapshot": {"lazypv.scenario", "lazypv.report", "lazypv.upkeep", "lazypv.cli", "lazypv"},
    "lazypv.invariants": {"lazypv.scenario", "lazypv.explore", "lazypv.report", "lazypv.cli"},
}
BEHIND_THE_WALL = {"lazypv.ultravisor.vault", "lazypv.ultravisor.firmware"}
SOURCES = [(Path(package.__file__).parent, package.__name__) for package in (lazypv, lazypv_kernels)]


def _all_modules():
    for folder, package in SOURCES:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            yield pytest.param(name, path, id=name)


MODULES = list(_all_modules())


def _imported(name, path):
    """Modules that a module imports anywhere in its source, for types only too; submodules are told from names."""
    known = {parameter.values[0] for parameter in MODULES}
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in known else base


def _room(module):
    parts = module.split(".")
    return parts[0] if parts[0] != "lazypv" else ".".join(parts[:2])


def _may_import(room, other):
    if other == room or other in FOR_ALL:
        return True
    if other in BESIDE:
        return room in MAY_IMPORT_BESIDE[other]
    if room in BESIDE:
        return other in BESIDE[room]
    if room in FOR_ALL:
        return False
    height = {member: number for number, floor in enumerate(TOWER) for member in floor}
    return height[other] < height[room]


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_imports_point_downwards(name, path):
    """Design: an import may only point downwards; what stands beside is not known to the tower."""
    ours = {module for module in _imported(name, path) if module.split(".")[0] in ("lazypv", "lazypv_kernels")}
    upward = sorted(module for module in ours if not _may_import(_room(name), _room(module)))
    assert upward == []


def test_every_room_has_its_place():
    """A new room is put into this test, deliberately."""
    places = set().union(*TOWER) | set(BESIDE) | FOR_ALL
    assert {_room(parameter.values[0]) for parameter in MODULES} <= places


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_nobody_beyond_the_wall_imports_the_vault(name, path):
    """Design, the wall: only firmware itself, the machine's hardware, and who checks invariants open it."""
    behind = _room(name) in ("lazypv.ultravisor", "lazypv.hardware", "lazypv.invariants", "lazypv.snapshot")
    if not behind:
        assert not BEHIND_THE_WALL & set(_imported(name, path))


# --- the wall, in living objects ---------------------------------------------------------------------------------


def _neighbours(thing):
    """What one can get at from an object without importing anything: attributes, items, closures, frames."""
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield from thing
    elif isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or () if not _is_empty(cell))
        yield from thing.__defaults__ or ()
        yield from (thing.__kwdefaults__ or {}).values()
    elif isinstance(thing, types.MethodType):
        yield thing.__self__
        yield thing.__func__
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, types.CoroutineType):
        yield thing.cr_await
        if thing.cr_frame is not None:
            yield thing.cr_frame.f_locals
    elif isinstance(thing, types.GeneratorType):
        yield thing.gi_yieldfrom
        if thing.gi_frame is not None:
            yield thing.gi_frame.f_locals
    elif isinstance(thing, np.ndarray):
        yield thing.base
    elif isinstance(thing, memoryview):
        yield thing.obj
    if hasattr(thing, "__dict__") and not isinstance(thing, types.FunctionType):
        yield vars(thing)
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            yield getattr(thing, slot, None)


def _is_empty(cell):
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def _reachable(*starts):
    """Every object within reach, types and modules excepted: those are a matter of imports."""
    seen, todo = {}, list(starts)
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType | str | bytes | int | float | None):
            continue
        seen[id(thing)] = thing
        todo.extend(_neighbours(thing))
    return list(seen.values())


def _secrets(machine):
    firmware = vault.firmware_of(machine.ultravisor)
    arrays = [firmware.state, firmware.owner, firmware.guest_page, firmware.directory, firmware.keys]
    arrays += [firmware.storage.contents, firmware.storage.words]
    for configuration in firmware.configurations.values():
        arrays += [configuration.records, configuration.tags]
    return [firmware, firmware.storage, *firmware.configurations.values()], arrays


def _trespasses(machine, things):
    objects, arrays = _secrets(machine)
    forbidden = {id(each) for each in objects}
    return [
        thing
        for thing in things
        if id(thing) in forbidden
        or (isinstance(thing, np.ndarray) and any(np.may_share_memory(thing, array) for array in arrays if array.size))
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_no_way_leads_from_the_host_to_the_storage_of_the_firmware(threads):
    """Design, the wall: not through attributes, slots, closures or the frames of texts that stand still."""
    machine = Machine(1024 * 4096, uv_base_pages=16, threads=threads)
    host = Host(machine, sync_below=16 * 4096, batch=8)
    clock = LiveClock()
    process = host.create_process(private=8 * 4096, shared_file=4 * 4096, special=2 * 4096)
    vm = host.create_vm(process, [range(256)], 2)
    pages, stamps = np.arange(256), np.ones(256, np.uint64)

    async def old_run():
        assert (await kvm.enable(vm)).errno == 0
        handle = vm.gmap.guest_handle
        await import_pages(vm, pages, lambda part: machine.ultravisor.import_pages(handle, part), 0x3E)

    async def new_run():
        host.throttle.open = False
        assert (await kvm.disable(vm)).errno == 0
        await access(vm, 0, pages[:32], STORE_WORD, stamps[:32])
        assert (await kvm.enable(vm)).errno == 0
        await Wait(lambda: bool(clock._parked), "the walk to stand still", outside=True)

    clock.run(old_run())
    clock.run(new_run())
    try:
        things = _reachable(host, vm, process, clock, machine, machine.ultravisor)
        assert any(isinstance(thing, types.CoroutineType) for thing in things), "the walk's text is among them"
        assert any(thing is machine.frames.byte for thing in things)
        assert _trespasses(machine, things) == []
        firmware = vault.firmware_of(machine.ultravisor)
        assert _trespasses(machine, _reachable(lambda: firmware)), "a closure over it would have been found"
    finally:
        host.throttle.open = True
        clock.stop()
        machine.close()
