"""What is done in one piece leaves what it leaves one by one: nodes of the list, batches of a walk."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lazypv.clocks.actors import Fault
from lazypv.host.throttle import Throttle
from lazypv.host.walk import destroy_range
from lazypv.series import Series
from lazypv.steps import Touch, Wait
from lazypv_kernels import claims
from lazypv_kernels.layout import DIR_CPUS, DIR_WORDS, MARK_SECURE, NS, SEC

from .worlds import BATCH, GUEST_PAGES, LIMIT_PAGES, World


def left_by(nodes_at_once, *, no_memory=False):
    """Exported pages, pages on each node, and what is left of the machine after the cleaning."""
    world = World()
    world.host.nodes_at_once = nodes_at_once
    world.protect()
    world.write(world.all_pages(), 7)
    if no_memory:
        world.clock.faults = lambda step: Fault(None) if step.label == "list node" else None
    world.hold()
    on_list = []
    spawned = world.host.teardown.closed

    async def look(vm):
        on_list.extend(sorted(node.frames.size for node in vm.mm.set_aside.nodes))
        return await spawned(vm)

    world.host.teardown.closed = look
    world.exit()
    exported = world.machine.ultravisor.issued["CONV_FROM_SEC_STOR"]
    world.drain()
    return exported, sum(on_list), len(on_list), world.machine.frames.free(), set(world.firmware.state.tolist())


@pytest.mark.parametrize("nodes_at_once", [2, 3, 16])
def test_several_nodes_at_once_export_and_set_aside_as_many_pages_as_one_by_one(nodes_at_once):
    """Patch 09: one page in capacity + 1 is exported, the rest is on the list, and everything comes back."""
    one_by_one, coalesced = left_by(1), left_by(nodes_at_once)
    assert coalesced[3:] == one_by_one[3:]
    assert coalesced[0] + coalesced[1] == one_by_one[0] + one_by_one[1]
    assert abs(coalesced[0] - one_by_one[0]) <= 4


def test_without_memory_for_nodes_everything_is_exported():
    """Invariant 37."""
    assert left_by(4, no_memory=True)[1:3] == (0, 0)
    assert left_by(4, no_memory=True)[0] == left_by(1, no_memory=True)[0]


# --- batches of a walk as one --------------------------------------------------------------------------------------


class Walked(World):
    """A world in which a walk goes over the old run's pages; the host's own cleaner is held back."""

    def __init__(self, *, one_by_one=False, series=None):
        super().__init__(series)
        self.reboot_with_old_pages()
        self.fresh_clock()
        self.runs = []
        begin = self.clock._runs.begin

        def note(step):
            self.runs.append(step)
            return begin(step)

        self.clock._runs.begin = note
        self.clock.timeline = [] if one_by_one else None

    def walk(self, users=1, *, batch=BATCH, or_export=False, throttle=None):
        base = self.vm.base
        return destroy_range(
            self.host.pages, self.vm.mm, users, base, base + GUEST_PAGES, batch, "destroyed_background", throttle,
            or_export=or_export,
        )  # fmt: skip

    def left(self):
        """All that a walk can leave different."""
        hold = self.clock.holds[("mmap_lock", "main")]
        uv = self.machine.ultravisor
        return (
            self.firmware.state.tolist(),
            self.firmware.owner.tolist(),
            self.firmware.storage.contents.tobytes(),
            self.machine.frames.byte.tolist(),
            dict(self.machine.frames._many),
            dict(self.host.ledger.pages),
            dict(uv.issued),
            dict(uv.useless),
            (hold.pages, hold.calls),
            (self.vm.mm.users, self.vm.mm.count),
        )

    def destroyed_pages(self):
        return int(np.count_nonzero(self.firmware.state[self.frames(self.all_pages())] == NS))


def walked(disturb=lambda world: None, **how):
    one_by_one, as_one = Walked(one_by_one=True, **how), Walked(**how)
    for world in (one_by_one, as_one):
        disturb(world)
        world.run(world.walk(or_export=getattr(world, "or_export", False), batch=getattr(world, "batch", BATCH)))
    assert not one_by_one.runs
    assert as_one.runs, "else nothing was compared"
    return one_by_one, as_one


def nothing(_world):
    """An ordinary walk."""


def holes(world):
    """Every third page is unmapped, and every fifth is clean already."""
    frames = world.frames(world.all_pages()[::3])
    world.vm.gmap.pte.arrays[::3] = 0
    world.machine.ultravisor.destroy_pages(frames)
    world.machine.ultravisor.destroy_pages(world.frames(np.arange(1, GUEST_PAGES, 15)))


def many_references(world):
    """Frames of the side table, at both ends of a batch and in its middle."""
    for page in (70, 79, 80, 111, 255):
        for _ in range(70):
            world.machine.frames.get(world.frames(page))


def odd_batches(world):
    """A batch that is no power of two, nor a part of the range."""
    world.batch = 7


@pytest.mark.parametrize("disturb", [nothing, holes, many_references, odd_batches])
def test_batches_as_one_leave_what_batches_one_by_one_leave(disturb):
    """Design, coalescing: states, owners, contents, references, marks, books, calls, and the longest hold."""
    one_by_one, as_one = walked(disturb)
    for mine, other in zip(as_one.left(), one_by_one.left(), strict=True):
        assert mine == other


def test_refused_pages_are_exported_alike_and_in_no_more_calls():
    """A page that cannot be destroyed is exported where nothing may be left; its cipher text is random."""

    def a_cpu(world):
        world.or_export = True
        row = int(world.firmware.owner[world.frames(100)[0]]) * DIR_WORDS
        world.firmware.directory[row + DIR_CPUS] = 1

    one_by_one, as_one = walked(a_cpu)
    mine, other = as_one.left(), one_by_one.left()
    assert mine[:2] + mine[3:] == other[:2] + other[3:]
    assert as_one.issued("CONV_FROM_SEC_STOR") == GUEST_PAGES - LIMIT_PAGES


@pytest.mark.parametrize("clear_marks", [True, False])
def test_marks_go_as_patch_02_has_it(clear_marks):
    one_by_one, as_one = walked(series=Series() if clear_marks else Series().without("02"))
    frames = as_one.frames(np.arange(LIMIT_PAGES, GUEST_PAGES))
    assert as_one.machine.frames.marked(frames).any() == (not clear_marks)
    assert as_one.left() == one_by_one.left()


def stuck_in_the_middle(world, users=1):
    """A walk in one piece that waits in the middle of a batch for a frame that somebody has frozen; how to unfreeze."""
    frame = world.frames(100)[0]
    byte = int(world.machine.frames.byte[frame])
    world.machine.frames.byte[frame] = MARK_SECURE
    actor = world.clock.spawn(world.walk(users), "walk")
    while not (world.runs and world.destroyed_pages() == 96):
        time.sleep(0.001)

    def go_on():
        world.machine.frames.byte[frame] = byte

    return actor, go_on


def wait_until(condition):
    while not condition():
        time.sleep(0.001)


def test_who_wants_the_lock_in_the_middle_waits_for_the_batch_in_hand_only():
    """Design, coalescing: in pages; what was gathered is destroyed, and nothing more is gathered."""
    world = Walked()
    walk, go_on = stuck_in_the_middle(world)
    seen = []

    async def writer():
        async with world.vm.mm.mmap_lock.exclusive():
            seen.append(world.destroyed_pages())

    waiting = world.clock.spawn(writer(), "writer")
    wait_until(lambda: world.clock._parked)
    go_on()
    world.clock.join([waiting, walk])
    assert seen == [112]
    assert world.destroyed_pages() == GUEST_PAGES


def test_who_waits_for_a_page_of_the_walk_waits_for_the_batch_in_hand_only():
    """As a vCPU does whose import found an unexpected reference; who waits for the end of threads hinders nobody."""
    world = Walked()
    walk, go_on = stuck_in_the_middle(world)
    seen = []

    async def patient():
        await Wait(lambda: bool(seen), "the other", patient=True)

    def destroyed_a_page():
        """Asked under the clock's mutex, so that the first time it holds does not depend on who is awake when."""
        pages = world.destroyed_pages()
        if pages > 96:
            seen.append(pages)
        return pages > 96

    async def vcpu():
        await Wait(destroyed_a_page, "a page")

    first = world.clock.spawn(patient(), "patient")
    wait_until(lambda: world.clock._parked)
    run = world.clock._runs._runs[0]
    assert not run.stop[0]
    second = world.clock.spawn(vcpu(), "vcpu")
    wait_until(lambda: len(world.clock._parked) == 2)
    assert run.stop[0]
    go_on()
    world.clock.join([first, second, walk])
    assert 112 <= seen[0] <= 112 + BATCH, "the batch in hand"


def test_a_walk_in_one_piece_ends_when_the_users_have_left():
    """Semantics 4.5, invariant 33: only the batch in hand is still done."""
    world = Walked()
    users = world.vm.mm.users
    walk, go_on = stuck_in_the_middle(world, users - 1)

    async def leave():
        await Touch(world.vm.mm, "mm_users", write=True)
        world.vm.mm.users -= 1

    world.run(leave())
    go_on()
    world.clock.join([walk])
    assert world.destroyed_pages() == 112


def test_a_write_of_something_else_does_not_end_it():
    world = Walked()
    walk, go_on = stuck_in_the_middle(world)

    async def grab():
        await Touch(world.vm.mm, "mm_count", write=True)
        await Touch(object(), "mm_users", write=True)

    world.run(grab())
    assert not world.clock._runs._runs[0].stop[0]
    go_on()
    world.clock.join([walk])


def test_a_throttle_that_is_closed_in_the_middle_holds_the_next_batch_back():
    world = Walked()
    throttle = Throttle()
    frame = world.frames(100)[0]
    byte = int(world.machine.frames.byte[frame])
    world.machine.frames.byte[frame] = MARK_SECURE
    walk = world.clock.spawn(world.walk(throttle=throttle), "walk")
    wait_until(lambda: world.runs and world.destroyed_pages() == 96)
    throttle.open = False
    world.machine.frames.byte[frame] = byte
    wait_until(lambda: world.clock._parked)
    assert world.destroyed_pages() == 112
    throttle.open = True
    world.clock.join([walk])
    assert world.destroyed_pages() == GUEST_PAGES


def test_a_clock_that_is_stopped_in_the_middle_ends_behind_the_batch():
    world = Walked()
    _, go_on = stuck_in_the_middle(world)
    stopper = threading.Thread(target=world.clock.stop)
    stopper.start()
    wait_until(lambda: world.clock._ending)
    go_on()
    stopper.join()
    assert world.destroyed_pages() == 112
    assert not world.vm.mm.mmap_lock.readers


def test_a_page_that_is_busy_in_the_middle_is_tried_again_by_the_text():
    """Invariant 36; and the walk then goes on in one piece."""
    world = Walked()
    frame = int(world.frames(100)[0])
    held = claims.touch(world.firmware.state, frame)
    assert held == SEC
    walk = world.clock.spawn(world.walk(), "walk")
    wait_until(lambda: world.destroyed_pages() >= 111 and len(world.runs) == 1 and not world.clock._runs._runs)
    claims.let_go(world.firmware.state, frame)
    world.clock.join([walk])
    assert world.destroyed_pages() == GUEST_PAGES
    assert len(world.runs) > 1


def test_an_injected_fault_meets_the_call_that_it_would_meet_one_by_one():
    """Nothing is done in one piece while a fault is due."""
    world = Walked()
    world.machine.ultravisor.refuse = 0x0101
    world.machine.ultravisor.fault_at = ("CONV_FROM_SEC_STOR",)
    world.run(world.walk())
    assert world.destroyed_pages() == GUEST_PAGES
    assert not world.runs
