"""Compile every kernel before anybody waits for one.

Which kinds of arguments a kernel meets is not written down anywhere, since it would go stale. Instead small guests go
through everything the program does: reboots and shutdowns, exploring, snapshots and what becomes of them. What is left
then, for the rare cases, is compiled for what its source says.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import lazypv_kernels
from lazypv.explore.report import explore_all
from lazypv.explore.search import Bounds
from lazypv.explore.switches import Switches
from lazypv.files import replaced_atomically
from lazypv.guest import Workload
from lazypv.hardware import Machine
from lazypv.image.synthetic import synthetic
from lazypv.scenario import VM, Host
from lazypv.scenario.compare import machine_size
from lazypv.scenario.compare import warm as reboot_and_shut_down
from lazypv.scenario.snapshot_jobs import boot
from lazypv.sizes import parse_size
from lazypv.snapshot.keys import SnapshotKey
from lazypv_kernels import compiled
from lazypv_kernels.compiled import KERNELS, cache_directory, compilations
from lazypv_kernels.signatures import entries, signature_of

if TYPE_CHECKING:
    from lazypv.scenario.compare import ProgressReport
    from lazypv_kernels.compiled import Kernel

MARK: Final = "warm"
"""File in the folder of compiled kernels that says that all of them are there."""
MACHINE: Final = "96MiB"
GUEST: Final = "2MiB"
IMAGE: Final = "1MiB"
BELOW: Final = "1MiB"
SCENE: Final = "reboot-into-protected"


@dataclass(frozen=True)
class Warmed:
    """What was done.

    Attributes
    ----------
    kernels, signatures : int
        How many there are; for how many kinds of arguments this process has them now, those apart that others contain.
    compiled, loaded : int
        How many of these signatures were compiled, and how many had been kept by an earlier process.
    left_out : list of str
        Kernels that can be called now neither by Python nor by other kernels.
    seconds : float
    folder : Path
        Where they are kept.
    """

    kernels: int
    signatures: int
    compiled: int
    loaded: int
    left_out: list[str]
    seconds: float
    folder: Path


def warm(progress: ProgressReport) -> Warmed:
    """Compile all kernels, or load those that were kept."""
    began = time.perf_counter()
    for module in pkgutil.iter_modules(lazypv_kernels.__path__):
        importlib.import_module(f"{lazypv_kernels.__name__}.{module.name}")
    progress.expect(len(KERNELS))
    ready: set[str] = set()

    def tell(kernel: Kernel) -> None:
        name = f"{kernel.py_func.__module__}.{kernel.py_func.__name__}"
        if name not in ready:
            ready.add(name)
            progress(name)

    compiled.LISTENERS.append(tell)
    try:
        _live_through_everything()
        for kernel in entries():
            if not kernel.signatures:
                kernel.compile(signature_of(kernel))
    finally:
        compiled.LISTENERS.remove(tell)
    _say_that_all_are_there()
    return Warmed(
        kernels=len(KERNELS),
        signatures=sum(len(kernel.signatures) for kernel in KERNELS),
        compiled=compilations(),
        loaded=sum(sum(kernel.stats.cache_hits.values()) for kernel in KERNELS),
        left_out=[kernel.py_func.__name__ for kernel in entries() if not kernel.signatures],
        seconds=time.perf_counter() - began,
        folder=cache_directory(),
    )


def _say_that_all_are_there() -> None:
    """Leave a mark beside what is kept, for whoever asks whether all of it is."""
    with contextlib.suppress(OSError), replaced_atomically(cache_directory() / MARK) as file:
        file.write(b"all kernels are compiled\n")


# --- guests that go through everything -------------------------------------------------------------------------------


def _live_through_everything() -> None:
    image = synthetic(size=parse_size(IMAGE))
    machine = Machine(machine_size(parse_size(MACHINE), 2), threads=2)
    try:
        reboot_and_shut_down(machine, image)
        _snapshots(machine, image)
    finally:
        machine.close()
    # Its page tables are of the other kind.
    states_only = Machine(machine_size(parse_size(MACHINE), 2), contents=False)
    try:
        reboot_and_shut_down(states_only, image)
    finally:
        states_only.close()
    explore_all(
        SCENE, Switches(), Bounds(0, 0), pages=2, strategy="exhaustive", runs=1, seed=0, progress=_Nobody()
    )  # fmt: skip


def _snapshots(machine: Machine, image: Any) -> None:
    """Saved, saved again as a child, restored, and restored lazily."""
    host = Host(machine, sync_below=BELOW)
    try:
        with tempfile.TemporaryDirectory(prefix="lazypv-warm-") as name:
            folder = Path(name)
            key = SnapshotKey.create(folder / "key")
            whole, child = folder / "whole.arrow", folder / "child.arrow"
            vm = boot(host, image, parse_size(GUEST), 2)
            vm.share(np.arange(8, 12))
            vm.snapshot(whole, key=key)
            vm.write_pages(np.arange(20), np.ones((20, 4096), np.uint8))
            vm.snapshot(child, key=key, parent=whole)
            _end(vm)
            for lazy in (False, True):
                vm = host.restore(child, key=key, lazy=lazy, prefetch=False)
                vm.run(Workload("uniform", touches=64))
                vm.complete_restore()
                vm.reboot()
                _end(vm)
        host.check()
    finally:
        host.close()


def _end(vm: VM) -> None:
    vm.kill()
    vm.host.drain()


class _Nobody:
    def expect(self, phases: int) -> None:
        pass

    def __call__(self, phase: str) -> None:
        pass
