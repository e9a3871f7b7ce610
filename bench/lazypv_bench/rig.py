"""What subject, limit and rivals of one benchmark stand on: one machine, one image, threads; and its end.

Benchmarks may do what the host must not: look at frames' bytes and set their states, to measure one operation without
everything that leads up to it. Who does so says why destroy, or whatever is measured, cannot tell the difference.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import ModelError
from lazypv.hardware import Machine
from lazypv.image import GuestImage
from lazypv.image.synthetic import DEFAULT_SIZE, synthetic
from lazypv.machine import AbsoluteStorage
from lazypv.scenario.compare import machine_size
from lazypv.sizes import PAGE_SIZE
from lazypv.ultravisor import vault
from lazypv_kernels.arrays import I64, U64
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import MARK_SECURE, NS, SEC
from lazypv_kernels.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.scenario import VM

    Frames = NDArray[np.int64]


ONE_PIECE: Final = 0.99
"""Share of a guest's frames that are neighbours, at least, for a limit that goes over these to be fair."""


class Memory:
    """What the machines of all rigs lie in, one after the other.

    Memory is touched for the first time at 0.3 to 3 GB/s: with a machine of its own for each benchmark, a short run of
    all of them did little else. No figure depends on it, since whatever is measured has run once before.

    Parameters
    ----------
    least : int
        Pages that are touched at once when the first machine is made.
    """

    def __init__(self, least: int = 0) -> None:
        self._least = least
        self._kept: AbsoluteStorage | None = None

    def take(self, pages: int, workers: Workers) -> AbsoluteStorage:
        """Storage of `pages`, with whatever an earlier machine has left in it."""
        if self._kept is None or self._kept.pages < pages:
            self.release()  # first, or there would have to be room for both
            self._kept = AbsoluteStorage.own(max(pages, self._least), workers)
        return self._kept.first(pages)

    def release(self) -> None:
        """Give it back to the operating system, once the last machine has gone."""
        self._kept = None
        gc.collect()


class Rig:
    """One benchmark's machine and whatever else has to be given back at its end.

    Parameters
    ----------
    size : int
        Bytes of the benchmark's guest.
    memory : Memory
        What its machine lies in.

    Attributes
    ----------
    closing : ExitStack
        What is closed with the rig, last first.
    """

    def __init__(self, size: int, memory: Memory | None = None) -> None:
        self.size = size
        self.memory = memory or Memory()
        self.closing = ExitStack()
        self._machine: Machine | None = None

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.close()
        self._machine = None

    def make_machine(self, *guests: int, vcpus: int = 1, threads: int = 1) -> Machine:
        """The rig's machine, with room for guests of these sizes; its storage is touched once, here."""
        if self._machine is not None:
            raise ModelError("a rig has one machine")
        pages = sum(machine_size(guest, vcpus) for guest in guests) // PAGE_SIZE
        workers = Workers(threads)
        self._machine = Machine.on(self.memory.take(pages, workers), workers)
        self.closing.callback(self._machine.close)
        return self._machine

    @property
    def machine(self) -> Machine:
        """The machine that the subject has made."""
        if self._machine is None:
            raise ModelError("the subject of this benchmark has not made a machine")
        return self._machine

    def image(self, memory: int) -> GuestImage:
        """An opened image for a guest of `memory` bytes: synthetic, and repeated where the guest is larger."""
        return _image(min(memory, DEFAULT_SIZE))

    def workers(self, threads: int) -> Workers:
        """Threads for a limit or rival."""
        workers = Workers(threads)
        self.closing.callback(workers.close)
        return workers


@cache
def _image(size: int) -> GuestImage:
    """The same for all rigs, since making one takes longer than many a benchmark."""
    return synthetic(size=size)


def contents_of(machine: Machine, frames: Frames) -> NDArray[np.uint8]:
    """The bytes of `frames`, in ascending order, from the last gap on: uint8[k, 4096], a view.

    The guest's top table lies between its first frames and all others; a limit goes over those others, in one piece.
    """
    gaps = np.flatnonzero(np.diff(frames) != 1)
    first = int(gaps[-1]) + 1 if gaps.size else 0
    if frames.size - first < frames.size * ONE_PIECE:
        raise ModelError(
            f"{frames.size} frames of a benchmark lie in pieces: the last has {frames.size - first} of them"
        )
    return vault.firmware_of(machine.ultravisor).storage.contents[int(frames[first]) : int(frames[-1]) + 1]


def free_contents(machine: Machine, pages: int) -> NDArray[np.uint8]:
    """Bytes of `pages` neighbouring frames that are nobody's while no guest lives: uint8[pages, 4096], a view."""
    busy = np.flatnonzero(machine.frames.byte)
    first = int(busy[np.argmax(np.diff(busy))]) + 1
    free = contents_of(machine, np.arange(first, first + pages))
    if np.any(machine.frames.byte[first : first + pages]):
        raise ModelError(f"the machine of a benchmark has no {pages} free frames in one piece")
    return free


def frames_of(vm: VM) -> Frames:
    """Host frames of the guest, in order of its pages, all of which are mapped."""
    return vm.kernel_vm.gmap.pte.frames()


def make_secure_again(machine: Machine, frames: Frames) -> None:
    """Let `frames` look as the pages of a dead configuration do: secure, owned by it, marked by the host.

    Destroy reads a frame's state, its owner and how many CPUs the owner has, and nothing else; the walk reads mappings,
    which stay, and counts references, which it has put. So the last slot of the directory, which no configuration has,
    does for one that has lost its CPUs, and neither boot nor import has to be repeated between two runs.
    """
    firmware = vault.firmware_of(machine.ultravisor)
    firmware.owner[frames] = firmware.slots
    machine.frames.byte[frames] |= MARK_SECURE
    firmware.state[frames] = SEC


_MARK = np.uint64(0xA5A5A5A5A5A5A5A5)
"""What is written where everything has to be zero afterwards."""


def soil(contents: NDArray[np.uint8]) -> None:
    """Write something into the first, the middle and the last line of each page, so that what is not cleared shows."""
    words = contents.view(np.uint64)
    for word in (0, words.shape[1] // 2, words.shape[1] - 1):
        words[:, word] = _MARK


def expect_zero(machine: Machine, frames: Frames) -> None:
    """Every byte of `frames` is zero.

    Raises
    ------
    ModelError
        One is not: what was measured has not written what it says.
    """
    words = vault.firmware_of(machine.ultravisor).storage.words
    left = int(_not_zero(words, np.ascontiguousarray(frames)))
    if left:
        raise ModelError(f"{left} of {frames.size} pages are not zero after what was measured")


@kernel
def _not_zero(words: U64, frames: I64) -> int:
    """How many of the rows `frames` of words : uint64[n, 512] have a word that is not zero."""
    left = 0
    for i in range(frames.size):
        every = np.uint64(0)
        for k in range(words.shape[1]):
            every |= words[frames[i], k]
        left += every != np.uint64(0)
    return left


def expect_destroyed(machine: Machine, frames: Frames) -> None:
    """Every one of `frames` is non-secure, unmarked and has its mapping's reference only.

    Raises
    ------
    ModelError
        The walk has left something undone.
    """
    firmware = vault.firmware_of(machine.ultravisor)
    left = int(np.count_nonzero((firmware.state[frames] != NS) | (machine.frames.byte[frames] != 1)))
    if left:
        raise ModelError(f"{left} of {frames.size} pages were not destroyed by the walk that was measured")
