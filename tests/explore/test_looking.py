"""What is looked at, and when: after each step, at the end, and when everybody has left."""

from __future__ import annotations

import pytest

from lazypv.clocks.explore import Choice
from lazypv.explore.faults import faults_for
from lazypv.explore.sampling import Manner, sample
from lazypv.explore.scenarios import scenario
from lazypv.explore.search import Bounds, Branch, Explorer
from lazypv.series import Series
from lazypv.steps import Bulk, Touch

BROKEN = [
    ("reboot-into-protected", Series().without("03"), Bounds(1)),
    ("reboot-into-protected", Series().without("06"), Bounds(1)),
    ("reboot-into-protected", Series().without("07"), Bounds(1)),
    ("reboot-into-normal", Series().without("04"), Bounds(1)),
    ("shutdown", Series().with_defects("D3"), Bounds(2)),
    ("reboot-into-protected", Series().with_defects("D9"), Bounds(0)),
    ("shutdown", Series().with_defects("D20"), Bounds(0, 1)),
    ("two-guests-in-one-process", Series().with_defects("D19"), Bounds(1)),
]


ONE = Bounds(1)


def explorer(name, series=None, bounds=ONE, pages=2, **more):
    of = scenario(name)
    world = of.build(series or Series(), max(pages, of.shape.sync_below))
    return Explorer(world, of.scene, bounds, faults_for(world.machine.ultravisor), **more)


@pytest.mark.parametrize(("name", "series", "bounds"), BROKEN)
def test_looking_where_inputs_changed_finds_what_looking_at_all_finds(name, series, bounds):
    """The same violation by the same schedule, after as many schedules."""
    found = [explorer(name, series, bounds, pages=3, throughout=every).exhaust() for every in (False, True)]
    by_inputs, all_of_them = ([(b.violation, b.schedule) for b in outcome.broken] for outcome in found)
    assert by_inputs
    assert by_inputs == all_of_them
    assert found[0].schedules == found[1].schedules


@pytest.mark.parametrize("throughout", [False, True])
@pytest.mark.parametrize(
    ("breaks", "number"),
    [
        (lambda world: setattr(world.processes[0].mm.protected, "value", -1), 9),
        (lambda world: setattr(world.processes[0].mm, "users", -1), 25),
        (lambda world: setattr(world.vms[0].gmap, "asce", 0), 18),
        (lambda world: setattr(world.vms[0].gmap, "guest_handle", 7), 20),
        (lambda world: world.vms[0].gmap.crst_list.append(world.vms[0].gmap.table), 17),
    ],
)
def test_what_a_step_breaks_is_seen_after_that_step(breaks, number, throughout):
    async def text(world):
        await Touch(world, "anything")
        breaks(world)
        await Touch(world, "anything else")

    world = scenario("shutdown").build(Series(), 2)
    searcher = Explorer(world, lambda world: [("text", text(world))], throughout=throughout)
    run = searcher.run()
    assert run.violation is None
    run.step(Choice(0))
    assert run.violation is not None
    assert run.violation.number == number
    run.close()


def test_in_the_end_everybody_leaves_and_what_nobody_gave_up_is_seen():
    """A reference that a text forgets is no violation while its process lives, but when that has left."""

    async def forgets(mm):
        await mm.get_not_zero()

    world = scenario("shutdown").build(Series(), 2)
    searcher = Explorer(world, lambda world: [("text", forgets(world.processes[0].mm))])
    outcome = searcher.exhaust()
    assert outcome.broken
    assert outcome.broken[0].violation.number in (25, 34)


def test_winding_up_is_told_too_and_meets_no_fault():
    found = explorer("reboot-into-protected", bounds=Bounds(0, 1)).replay(())
    assert found.violation is None
    assert any(taken.actor == "in the end" for taken in found.steps)
    assert not any(taken.fault for taken in found.steps)


def test_a_lifetime_that_is_not_kept_is_named_by_its_invariant():
    async def twice(world):
        await Touch(world, "anything")
        table = world.vms[0].gmap.table
        world.vms[0].gmap.free_table(table)
        world.vms[0].gmap.free_table(table)

    world = scenario("shutdown").build(Series(), 2)
    searcher = Explorer(world, lambda world: [("text", twice(world))], Bounds(0))
    assert searcher.exhaust().broken[0].violation.number == 17


def test_finer_steps_let_others_come_between_the_claim_and_the_finish_of_a_call():
    """Whoever needs the frame meanwhile is told that it is busy, and asks again."""
    searcher = explorer("reboot-into-normal", bounds=Bounds(2, 0, finer=True))
    run = searcher.run(tell=True)
    guest = 0
    while run.enabled():
        actors = run.clock.actors
        walk = len(actors) - 1
        claimed = walk and actors[walk].claim is not None
        at_a_page = isinstance(actors[guest].pending, Bulk) and actors[guest].pending.name == "make accessible"
        run.step(Choice(guest if (at_a_page and claimed) or not walk or not run.clock.is_enabled(walk) else walk))
        if any(taken.answer == "rc 0x0000" for taken in run.steps):
            break
    assert any(taken.step.startswith("claim for ") for taken in run.steps)
    run.close()


@pytest.mark.parametrize("name", ["shutdown", "reboot-into-normal", "unmap-during-cleanup", "reboot-into-protected"])
def test_the_repaired_series_survives_finer_steps_too(name):
    outcome = explorer(name, bounds=Bounds(1, 0, finer=True)).exhaust()
    assert outcome.broken == []
    assert outcome.exhausted
    assert outcome.steps > explorer(name, bounds=Bounds(1)).exhaust().steps


def test_a_search_goes_on_where_it_was_stopped():
    """In pieces it meets the same states and comes to the same ends."""
    whole = explorer("shutdown-during-cleanup").exhaust()
    searcher = explorer("shutdown-during-cleanup")
    pieces = searcher.exhaust([Branch()], most_schedules=2)
    left = pieces.left
    while left:
        piece = searcher.exhaust(left, most_schedules=3)
        pieces.add(piece)
        left = piece.left
    assert pieces.met == whole.met
    assert pieces.final_states == whole.final_states
    assert pieces.schedules == whole.schedules


def test_a_swarm_is_drawn_from_its_seed_and_number_alone():
    runs = [sample(explorer("killed-during-reboot", bounds=Bounds(0, 2)), range(40), "7", Manner.SWARM) for _ in "ab"]
    apart = [
        sample(explorer("killed-during-reboot", bounds=Bounds(0, 2)), numbers, "7", Manner.SWARM)
        for numbers in (range(20), range(20, 40))
    ]
    assert runs[0].steps == runs[1].steps
    assert runs[0].final_states == runs[1].final_states == apart[0].final_states | apart[1].final_states


def test_a_page_that_was_done_and_one_that_needed_nothing_are_two_states():
    """The text goes on with the sum of what was done, so the two go on differently."""
    run = explorer("shutdown").run()
    while not any(actor.answers for actor in run.clock.actors):
        run.step(Choice(run.enabled()[0]))
    (answer,) = next(actor.answers for actor in run.clock.actors if actor.answers)
    before = run.digest()
    answer.done, answer.noop = answer.noop, answer.done
    changed = run.digest()
    run.close()
    assert changed != before
