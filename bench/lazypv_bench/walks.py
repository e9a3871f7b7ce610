"""The background walk over the memory of a guest that is gone: the host's own text, the live clock, one core.

Sizes of a batch: 32 as posted, 512 as the live clock has it, 4096. Beside a running guest the walk shares interpreter
lock, clock and memory with a vCPU that goes on reading pages of its own.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Final

from lazypv.guest import Workload
from lazypv.host.teardown import DESTROY_THREAD
from lazypv.host.walk import DESTROY_LOOP_THRESHOLD, LIVE_BATCH, destroy_range
from lazypv.scenario import VM, Host
from lazypv.sizes import PAGE_SIZE
from lazypv_bench.harness import Work, benchmark
from lazypv_bench.limits import streaming_fill
from lazypv_bench.rig import Rig, contents_of, expect_destroyed, expect_zero, frames_of, make_secure_again, soil
from lazypv_bench.rivals import numpy_fancy_index, python_loop

if TYPE_CHECKING:
    from lazypv.clocks.actors import Actor

LARGE_BATCH: Final = 4096
NEIGHBOUR_SHARE: Final = 64
"""The neighbour's memory is one part in so many of the memory that is walked over."""
ALONE_SECONDS: Final = 0.1
"""How long the neighbour is watched while nothing else happens, before each walk."""
POLL_SECONDS: Final = 0.001
NEIGHBOUR_UNIT: Final = "of the guest's speed alone"
FOR_EVER: Final = 1 << 60


@benchmark("destroy.walk32", limit=streaming_fill, rivals=[numpy_fancy_index, python_loop], bar=0.6)
def destroy_walk32(rig: Rig) -> Work:
    """The background walk in batches of 32 pages, as posted; no guest is running."""
    return walk(rig, DESTROY_LOOP_THRESHOLD)


@benchmark("destroy.walk512", limit=streaming_fill, rivals=[numpy_fancy_index, python_loop], bar=0.75)
def destroy_walk512(rig: Rig) -> Work:
    """The background walk in batches of 512 pages, as the live clock does it; no guest is running."""
    return walk(rig, LIVE_BATCH)


@benchmark("destroy.walk4096", limit=streaming_fill, rivals=[numpy_fancy_index, python_loop], bar=0.8)
def destroy_walk4096(rig: Rig) -> Work:
    """The background walk in batches of 4096 pages; no guest is running."""
    return walk(rig, LARGE_BATCH)


@benchmark("destroy.walk32.beside", limit=streaming_fill, unit=NEIGHBOUR_UNIT)
def destroy_walk32_beside(rig: Rig) -> Work:
    """The same, batches of 32, while another guest's CPU reads its own pages."""
    return beside_a_guest(rig, DESTROY_LOOP_THRESHOLD)


@benchmark("destroy.walk512.beside", limit=streaming_fill, unit=NEIGHBOUR_UNIT)
def destroy_walk512_beside(rig: Rig) -> Work:
    """The same, batches of 512, while another guest's CPU reads its own pages."""
    return beside_a_guest(rig, LIVE_BATCH)


@benchmark("destroy.beside_guest", limit=streaming_fill, unit=NEIGHBOUR_UNIT, bar=0.5)
def destroy_beside_guest(rig: Rig) -> Work:
    """The same, batches of 4096, while another guest's CPU reads its own pages."""
    return beside_a_guest(rig, LARGE_BATCH)


def walk(rig: Rig, batch: int) -> Work:
    """The walk over all pages of a guest, as the thread that cleans up after a reboot does it."""
    rig.make_machine(rig.size)
    return _walk_over(_mapped_guest(rig, _new_host(rig, batch)))


def beside_a_guest(rig: Rig, batch: int) -> Work:
    """The same, while a neighbour reads; its limit is the fill without a neighbour."""
    neighbour_size = max(1, rig.size // PAGE_SIZE // NEIGHBOUR_SHARE) * PAGE_SIZE
    rig.make_machine(rig.size, neighbour_size)
    host = _new_host(rig, batch)
    alone = _walk_over(_mapped_guest(rig, host))
    neighbour = Neighbour(host.create_vm(neighbour_size, vcpus=1, image=rig.image(neighbour_size)))

    def prepare() -> None:
        alone.prepare()
        neighbour.start()

    def run() -> None:
        neighbour.walk_begins()
        alone.run()
        neighbour.walk_ends()

    def finish() -> None:
        neighbour.stop()
        alone.finish()

    return replace(alone, prepare=prepare, run=run, finish=finish, value=neighbour.speed_beside)


def _new_host(rig: Rig, batch: int) -> Host:
    host = Host(rig.machine, batch=batch)
    rig.closing.callback(host.close)
    return host


def _mapped_guest(rig: Rig, host: Host) -> VM:
    """A guest that has touched all of its memory, with one CPU, in order: its frames are one piece, nearly."""
    vm = host.create_vm(rig.size, vcpus=1, image=rig.image(rig.size))
    vm.run(Workload("sequential"))
    return vm


def _walk_over(vm: VM) -> Work:
    kernel, mm, base = vm.host.kernel, vm.kernel_vm.mm, vm.kernel_vm.base
    frames = frames_of(vm)
    contents = contents_of(vm.host.machine, frames)

    def prepare() -> None:
        soil(contents)
        make_secure_again(vm.host.machine, frames)

    def finish() -> None:
        expect_destroyed(vm.host.machine, frames)
        expect_zero(vm.host.machine, frames)

    def run() -> None:
        text = destroy_range(
            kernel.pages, mm, 1, base, base + vm.pages, kernel.batch, "destroyed_background", kernel.throttle
        )
        vm.host.clock.run(text, DESTROY_THREAD)

    return Work(
        run=run,
        bytes=vm.pages * PAGE_SIZE,
        prepare=prepare,
        finish=finish,
        contents=contents,
    )


class Neighbour:
    """A protected guest whose CPU reads its own pages, round and round, and how fast it does."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._actors: list[Actor] = []
        self._alone = 0.0
        self._at = 0.0
        self._accesses = 0
        self._ratios: list[float] = []
        vm.protect()
        vm.populate()

    def start(self) -> None:
        """Let it run, and watch it for a while before anything else happens."""
        self._actors = self._vm.start(Workload("sequential", touches=FOR_EVER, writes=False))
        self._watch(0.0)
        self._watch(ALONE_SECONDS)
        self._alone = self._speed_since()

    def walk_begins(self) -> None:
        """From now on the walk is beside it."""
        self._look()

    def walk_ends(self) -> None:
        """Until now."""
        self._ratios.append(self._speed_since() / self._alone)

    def stop(self) -> None:
        """Let it stand still."""
        self._vm.stop(self._actors)

    def speed_beside(self) -> float:
        """Its speed beside the walk over its speed alone: the median of all walks but the first, which warms up."""
        return median(self._ratios[1:])

    def _watch(self, seconds: float) -> None:
        """Look on for so long, and until it has done something."""
        self._look()
        while time.perf_counter() - self._at < seconds or self._vm.guest.accesses == self._accesses:
            if self._actors[0].done:
                self.stop()  # raises what it broke down with
            time.sleep(POLL_SECONDS)

    def _look(self) -> None:
        self._at, self._accesses = time.perf_counter(), self._vm.guest.accesses

    def _speed_since(self) -> float:
        return (self._vm.guest.accesses - self._accesses) / (time.perf_counter() - self._at)
