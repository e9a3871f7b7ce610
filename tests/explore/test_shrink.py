"""The smallest counterexample: what is left out, what is kept, and that it is one."""

from __future__ import annotations

import pytest

from lazypv.clocks.explore import Choice, Taken
from lazypv.explore.faults import faults_for
from lazypv.explore.run import Broken, Replayed
from lazypv.explore.sampling import Manner, sample
from lazypv.explore.scenarios import scenario
from lazypv.explore.search import Bounds, Explorer
from lazypv.explore.shrink import shrink, size_of
from lazypv.explore.story import race_of, story
from lazypv.invariants import Violation
from lazypv.series import Series


def explorer(name, series, preemptions=2, faults=0, pages=2):
    of = scenario(name)
    world = of.build(series, pages)
    return Explorer(world, of.scene, Bounds(preemptions, faults), faults_for(world.machine.ultravisor))


def random_counterexample(searcher):
    return sample(searcher, range(1000), "1", Manner.RANDOM).broken[0]


@pytest.mark.parametrize(
    ("name", "defect"), [("memory-for-a-neighbour", "D3"), ("shutdown-of-the-next-run", "D9"), ("shutdown", "D27")]
)
def test_a_random_counterexample_becomes_smaller_and_breaks_the_same(name, defect):
    """Faults, then context switches, then lines, then steps; and it replays."""
    searcher = explorer(name, Series().with_defects(defect), faults=2)
    broken = random_counterexample(searcher)
    small = shrink(searcher, broken)
    assert small.violation.number == broken.violation.number
    assert size_of(small) <= size_of(broken)
    again = searcher.replay(small.schedule)
    assert (again.violation, again.fingerprint) == (small.violation, small.fingerprint)
    assert shrink(searcher, small).schedule == small.schedule


def test_context_switches_that_decide_nothing_are_merged():
    """D3 breaks in one order of one process; what a neighbour does in between has no part in it."""
    searcher = explorer("memory-for-a-neighbour", Series().with_defects("D3"))
    broken = max((sample(searcher, [number], "2", Manner.RANDOM).broken[0] for number in range(8)), key=size_of)
    small = shrink(searcher, broken)
    assert size_of(broken)[1] > 4
    assert size_of(small)[1] <= 3


def test_a_fault_that_decides_nothing_is_left_out():
    """The counter is wrong with and without it."""
    searcher = explorer("shutdown", Series().with_defects("D3"), faults=1)
    outcome = searcher.exhaust(stop_at_first=False)
    faulty = next(each for each in outcome.broken if any(choice.fault for choice in each.schedule))
    assert size_of(shrink(searcher, faulty))[0] == 0


def test_a_fault_that_decides_is_kept():
    searcher = explorer("shutdown", Series().with_defects("D27"), faults=1, preemptions=0)
    small = shrink(searcher, searcher.exhaust().broken[0])
    assert [line for line in story(small) if "DESTROY_SEC_CONF fails, refused" in line]
    assert size_of(small)[0] == 1


class Judge:
    """Stands for an explorer: a schedule breaks the invariant if it meets a condition."""

    def __init__(self, condition):
        self.condition = condition

    def replay(self, schedule):
        violation = Violation(1, "broken") if self.condition(schedule) else None
        steps = tuple(Taken(f"actor {choice.actor}", "DESTROY_SEC_CPU") for choice in schedule)
        return Replayed(violation, schedule, steps, "")


def shrunk(actors, condition, faulty=()):
    judge = Judge(condition)
    schedule = tuple(Choice(actor, int(at in faulty)) for at, actor in enumerate(actors))
    return shrink(judge, Broken(*judge.replay(schedule)._replace(violation=Violation(1, "broken"))[:4])).schedule


def actors_of(schedule):
    return [choice.actor for choice in schedule]


def test_a_fault_goes_where_no_step_can():
    small = shrunk([0, 1, 0], lambda schedule: actors_of(schedule) == [0, 1, 0], faulty={1})
    assert [choice.fault for choice in small] == [0, 0, 0]


def test_a_stretch_that_is_not_needed_goes():
    def condition(schedule):
        return actors_of(schedule).count(0) >= 3 and schedule[-1].actor == 0

    assert actors_of(shrunk([0, 0, 1, 1, 1, 0], condition)) == [0, 0, 0]


def test_stretches_of_one_actor_are_merged_where_each_step_is_needed():
    assert actors_of(shrunk([0, 1, 0, 1], lambda schedule: sorted(actors_of(schedule)) == [0, 0, 1, 1])) in (
        [0, 0, 1, 1],
        [1, 1, 0, 0],
    )


def test_a_stretch_is_made_shorter():
    assert actors_of(shrunk([0] * 9 + [1], lambda schedule: actors_of(schedule)[-1:] == [1])) == [1]
    assert actors_of(shrunk([0] * 9 + [1], lambda schedule: actors_of(schedule)[:2] == [0, 0])) == [0, 0]


def test_a_schedule_that_breaks_something_else_is_no_smaller_counterexample():
    judge = Judge(lambda schedule: True)
    broken = Broken(*judge.replay((Choice(0), Choice(1)))._replace(violation=Violation(2, "another"))[:4])
    assert shrink(judge, broken) is broken


# --- the story ---------------------------------------------------------------------------------------------------


def told(*steps):
    taken = tuple(Taken(actor, step) for actor, step in steps)
    return Broken(Violation(27, "pages are left"), tuple(Choice(0) for _ in taken), taken, "")


def test_racing_steps_are_named_and_locks_are_left_out():
    lines = story(
        told(
            ("qemu", "DESTROY_SEC_CPU"),
            ("thread", "read mm_users"),
            ("thread", "take mmap_lock"),
            ("qemu", "write mm_users"),
            ("qemu", "take mmap_lock"),
            ("thread", "write mm_users"),
            ("thread", "release mmap_lock"),
        )
    )
    assert lines == [
        "1. qemu: DESTROY_SEC_CPU",
        "2. thread: read mm_users",
        "3. qemu: write mm_users",
        "4. thread: write mm_users",
        "5. invariant 27 is broken, since 'qemu: write mm_users' came between 'thread: read mm_users' and "
        "'write mm_users': pages are left",
    ]


def test_who_had_to_wait_was_not_raced():
    steps = told(("thread", "read mm_users"), ("qemu", "write mm_users"), ("thread", "take mmap_lock")).steps
    assert race_of(steps) is None


def test_equal_steps_are_one_line():
    lines = story(told(*[("thread", "destroy pages")] * 3, ("thread", "DESTROY_SEC_CONF")))
    assert lines[:2] == ["1. thread: destroy pages 3 times", "2. thread: DESTROY_SEC_CONF"]
