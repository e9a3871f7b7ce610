"""Batches of a walk in one piece: they leave what the same batches leave one by one, and what a slow count says.

Some of what a batch may meet only comes of races; there the kernel's part is played by hand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from tests.host.test_coalesced import Walked, walked

from lazypv.hardware import Machine
from lazypv.series import Series
from lazypv_kernels import batches
from lazypv_kernels.layout import COUNT_DONE, COUNT_NOOP, COUNTS, DIR_CPUS, DIR_WORDS, RC_BUSY, RC_DONE, SEC

from .check import Check, NoticedError

SEEDS = 6
ANSWERS = 100
LARGEST_BATCH = 24
CROWD = 70
"""References that the host's byte of a frame has no room for."""
LEFT = (
    "states", "owners", "contents", "host's bytes", "side table", "accounts", "calls", "calls in vain", "longest hold",
    "users",
)  # fmt: skip
"""All that a walk can leave different, as :meth:`Walked.left` has it."""


def checks() -> Iterator[Check]:
    """Address spaces and answers drawn at random; of half of them refused pages are exported."""
    yield Check("what is left of a batch is as the kernel says", _as_the_kernel_says)
    for seed in range(SEEDS):
        yield Check("batches in one piece, or one by one", partial(_in_one_piece, seed))
        yield Check("a batch with busy pages is left over", partial(_left_over, seed))


def _in_one_piece(seed: int) -> None:
    refused = bool(seed % 2)
    series = Series() if seed % 4 < 2 else Series().without("02")
    expected: list[int] = []
    try:
        one_by_one, as_one = walked(lambda world: expected.append(_disturb(world, seed, refused)), series=series)
    except AssertionError as error:
        raise NoticedError(f"a walk that nobody waits for was not done in one piece: {error}") from error
    for name, mine, other in zip(LEFT, as_one.left(), one_by_one.left(), strict=True):
        if mine != other and not (refused and name == "contents"):  # no ciphertext comes twice
            raise NoticedError(f"{name}: {str(mine)[:100]} in one piece, {str(other)[:100]} one by one")
    destroyed = as_one.host.ledger.pages["destroyed_background"]
    if destroyed != expected[0]:
        raise NoticedError(f"{destroyed} pages were destroyed, {expected[0]} were to be")


def _disturb(world: Any, seed: int, refused: bool) -> int:
    """Unmap pages, clean some, crowd others; how many the walk has to destroy."""
    draw = random.Random(seed)
    pages = range(world.vm.guest_pages)
    world.batch = draw.randint(1, LARGEST_BATCH)
    world.machine.ultravisor.destroy_pages(world.frames(draw.sample(pages, draw.randrange(len(pages) // 4))))
    # Also where a batch begins, and where the last one ends.
    for page in {*draw.sample(pages, 6), world.batch, len(pages) - 1}:
        world.machine.frames.get(np.repeat(world.frames(page), CROWD))
    entries = world.vm.gmap.pte.arrays
    entries[draw.sample(pages, draw.randrange(len(pages) // 4))] = 0
    if refused:
        world.or_export = True
        world.firmware.directory[int(world.firmware.owner.max()) * DIR_WORDS + DIR_CPUS] = 1
        return 0
    return int(np.count_nonzero(world.firmware.state[entries[entries > 0].astype(np.int64) - 1] == SEC))


def _left_over(seed: int) -> None:
    """The batch in hand is ended, and none behind it begun; its busy pages are left, with the walk's reference."""
    draw, world = random.Random(seed), Walked()
    frames, pages, batch = world.frames(world.all_pages()), world.vm.guest_pages, draw.randint(2, LARGEST_BATCH)
    secure = world.firmware.state[frames] == SEC
    busy = sorted(draw.sample(np.flatnonzero(secure[:-batch]).tolist(), 4))
    held = [world.machine.ultravisor.begin(int(frames[page])) for page in busy]
    before = [world.machine.frames.reference_count(int(frame)) for frame in frames]
    vma, open_ = world.vm.slots[0], np.zeros(1, np.uint8)
    found = world.host.pages.destroy_batches(
        vma.pte, 0, pages, batch, pages, "destroyed_background", open_, open_, base=vma.start, or_export=bool(seed % 2)
    )
    behind = (busy[0] // batch + 1) * batch
    stuck = [page for page in busy if page < behind]
    (left, at, gone), done, largest = found
    destroyed = world.host.ledger.pages["destroyed_background"]
    _expect("left over", left.tolist(), frames[stuck].tolist())
    _expect("where it goes on, and how many are gone", (at, gone), (vma.start + behind, behind))
    _expect("batches, and their largest", (done, largest), (behind // batch, batch))
    _expect("pages destroyed", destroyed, int(np.count_nonzero(secure[:behind])) - len(stuck))
    now = [world.machine.frames.reference_count(int(frame)) for frame in frames]
    _expect("references", now, [count + (page in stuck) for page, count in enumerate(before)])
    for let_go in held:
        if let_go is not None:
            let_go()


class _Kernel:
    """Plays the kernel's part: draws what it says of a run of batches."""

    def __init__(self, draw: random.Random, frames: Any) -> None:
        self.frames = frames
        self.how = draw.choice([batches.WHOLE, batches.GATHERED, batches.DESTROYED])
        self.left = 0 if self.how == batches.WHOLE else draw.randint(self.how == batches.DESTROYED, 4)
        self.more = 0 if self.how == batches.WHOLE else draw.randint(0, self.left or 3)
        self.rc = [draw.choice([RC_BUSY, RC_DONE, RC_DONE + 1]) for _ in frames]
        self.counts = [draw.randint(0, 3) for _ in range(COUNTS)]
        self.tally = [draw.randint(0, 3) for _ in range(batches.TALLY)]

    def __call__(self, *arguments: Any) -> tuple[int, int, int, int]:
        """As :func:`lazypv_kernels.batches.destroy_batches`."""
        for array, values in zip(arguments[-4:], (self.frames, self.rc, self.counts, self.tally), strict=True):
            array[:] = values
        return self.how, 5, self.left, self.more


def _as_the_kernel_says() -> None:
    """Frames behind a gathered batch have a reference too many; of a destroyed one some are settled, some busy."""
    real, draw = batches.destroy_batches, random.Random(1)
    machine = Machine("2MiB", uv_base_pages=1, contents=False)
    frames = machine.frames.allocate(8)
    assert frames is not None
    machine.frames.get(np.repeat(frames, CROWD + ANSWERS))
    try:
        for _ in range(ANSWERS):
            batches.destroy_batches = kernel = _Kernel(draw, frames)
            _as_it_says(machine, kernel)
    finally:
        batches.destroy_batches = real
        machine.close()


def _as_it_says(machine: Machine, kernel: _Kernel) -> None:
    def books() -> list[int]:
        calls = [count["DESTR_SEC_STOR"] for count in (uv.issued, uv.useless, uv.done)]
        return calls + [machine.frames.reference_count(int(frame)) for frame in kernel.frames]

    uv, open_, size = machine.ultravisor, np.zeros(1, np.uint8), kernel.frames.size
    before = books()
    run = machine.destroy_batches(
        machine.frames.page_table(size), 0, size, size, size, clear_mark=True, refused_stay=True, stop=open_, gate=open_
    )
    is_destroyed, left = kernel.how == batches.DESTROYED, kernel.left
    count, pages, largest = kernel.tally
    calls = [pages, kernel.counts[COUNT_NOOP], kernel.counts[COUNT_DONE]]
    behind = range(left, left + kernel.more) if kernel.how == batches.GATHERED else ()
    changes = calls + [-(place in behind) for place in range(size)]
    _expect("calls and references", books(), [number + more for number, more in zip(before, changes, strict=True)])
    _expect("the run", (run.at, run.batches, run.pages, run.largest, run.done), (5, count, pages, largest, calls[-1]))
    _expect("the last batch", run.frames.tolist(), kernel.frames[:left].tolist())
    _expect("settled", run.settled, kernel.more if is_destroyed else 0)
    _expect("whether there is an answer", run.answer is not None, is_destroyed)
    if run.answer is not None:
        codes = kernel.rc[:left]
        _expect("codes", run.answer.rc.tolist(), codes)
        found = (run.answer.done, run.answer.noop, run.answer.busy, run.answer.refused)
        _expect("what they add up to", found, (0, 0, codes.count(RC_BUSY), codes.count(RC_DONE + 1)))


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise NoticedError(f"{what}: {found}, not {wanted}")
