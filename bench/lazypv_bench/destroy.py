"""Destroy Secure Storage itself: many frames with one call, however they lie; one core, nobody else about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import ModelError
from lazypv.machine.storage import HUGE_PAGE
from lazypv.sizes import PAGE_SIZE
from lazypv.ultravisor import vault
from lazypv_bench.harness import Work, benchmark
from lazypv_bench.limits import streaming_fill
from lazypv_bench.rig import Rig, expect_zero, make_secure_again, soil
from lazypv_bench.rivals import numpy_fancy_index, python_loop
from lazypv_kernels.layout import NS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.hardware import Machine

    Frames = NDArray[np.int64]

RIVALS: Final = (numpy_fancy_index, python_loop)
FRAGMENTS_SEED: Final = 4


@benchmark("destroy.full", limit=streaming_fill, rivals=RIVALS, bar=0.85)
def destroy_full(rig: Rig) -> Work:
    """Every frame of a range is secure."""
    return destroy(rig, lambda pages: np.arange(pages))


@benchmark("destroy.half", limit=streaming_fill, rivals=RIVALS, bar=0.75)
def destroy_half(rig: Rig) -> Work:
    """Every second frame at random."""
    return destroy(rig, lambda pages: at_random(pages, 0.5))


@benchmark("destroy.checkerboard", limit=streaming_fill, rivals=RIVALS, bar=0.75)
def destroy_checkerboard(rig: Rig) -> Work:
    """Every second frame: what fragmentation costs at its worst."""
    return destroy(rig, lambda pages: np.arange(0, pages, 2))


@benchmark("destroy.tenth", limit=streaming_fill, rivals=RIVALS, bar=0.75)
def destroy_tenth(rig: Rig) -> Work:
    """Every tenth frame at random."""
    return destroy(rig, lambda pages: at_random(pages, 0.1))


@benchmark("destroy.give_back", limit=streaming_fill)
def destroy_give_back(rig: Rig) -> Work:
    """The same, the memory given back to the operating system, and touched again: what it costs that others have it."""
    work = destroy(rig, lambda pages: np.arange(pages))
    machine = rig.machine
    first = int(np.flatnonzero(machine.frames.byte == 0)[0])
    frames = first + np.arange(rig.size // PAGE_SIZE)

    def run() -> None:
        work.run()
        machine.frames.byte[frames] = 0
        given = machine.give_back_free()
        if given < work.bytes - 2 * HUGE_PAGE:
            raise ModelError(f"only {given} of {work.bytes} bytes were given back")
        if machine.clear_pages(frames).done != frames.size:
            raise ModelError("a page that was given back cannot be had again")

    return replace(work, run=run)


def at_random(pages: int, share: float) -> Frames:
    """Frame numbers, ascending: each of `pages` with that probability."""
    return np.flatnonzero(np.random.default_rng(FRAGMENTS_SEED).random(pages) < share)


def destroy(rig: Rig, choose: Callable[[int], Frames], threads: int = 1) -> Work:
    """Destroy those of the guest's frames that are chosen; limit and rivals clear as many in one piece."""
    machine = rig.make_machine(rig.size, threads=threads)
    first = int(np.flatnonzero(machine.frames.byte == 0)[0])
    frames = first + choose(rig.size // PAGE_SIZE).astype(np.int64)
    contents = vault.firmware_of(machine.ultravisor).storage.contents
    around = contents[first : first + rig.size // PAGE_SIZE]

    def prepare() -> None:
        soil(around)
        make_secure_again(machine, frames)

    def finish() -> None:
        expect_zero(machine, frames)
        _expect_freed(machine, frames)

    def run() -> None:
        answer = machine.ultravisor.destroy_pages(frames)
        if answer.done != frames.size:
            raise ModelError(f"{answer} of {frames.size} pages that were all to be destroyed")

    return Work(
        run=run,
        bytes=frames.size * PAGE_SIZE,
        prepare=prepare,
        finish=finish,
        contents=contents[first : first + frames.size],
        threads=threads,
    )


def _expect_freed(machine: Machine, frames: Frames) -> None:
    firmware = vault.firmware_of(machine.ultravisor)
    left = int(np.count_nonzero((firmware.state[frames] != NS) | (firmware.owner[frames] != 0)))
    if left:
        raise ModelError(f"{left} of {frames.size} pages are still somebody's")
    machine.frames.byte[frames] = 0
