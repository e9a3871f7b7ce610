"""A segment of a text may have one unprotected access, and no more."""

from __future__ import annotations

import pytest

from lazypv.explore.accesses import AccessRecorder, check_segments
from lazypv.explore.faults import faults_for
from lazypv.explore.run import UnprotectedAccessError
from lazypv.explore.scenarios import SCENARIOS, scenario
from lazypv.series import PRESETS, Series
from lazypv.steps import Touch


@pytest.mark.parametrize("preset", ["repaired", "posted"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_text_of_ours_has_two_unprotected_accesses_in_one_segment(name, preset):
    of = scenario(name)
    world = of.build(PRESETS[preset], max(2, of.shape.sync_below))
    check_segments(world, of.scene, faults_for(world.machine.ultravisor), runs=8)


def _checked(text_of):
    """Check one text as the only one of a scene."""
    world = scenario("shutdown").build(Series(), 2)
    check_segments(
        world, lambda world: [("text", text_of(world.processes[0].mm))], faults_for(world.machine.ultravisor)
    )


def test_two_unprotected_accesses_after_one_touch_are_an_error_of_the_text():
    async def both(mm):
        await Touch(mm, "mm_users")
        if mm.users:
            mm.protected.value += 0

    with pytest.raises(
        UnprotectedAccessError, match=r"text after 'read mm_users of Mm' uses unprotected Mm.users, Pro"
    ):
        _checked(both)


def test_the_same_after_two_touches_or_twice_the_same_thing_is_none():
    async def one_by_one(mm):
        await Touch(mm, "mm_users")
        mm.users += 0
        await Touch(mm, "protected counter", write=True)
        mm.protected.value += 0

    _checked(one_by_one)


def test_what_a_held_lock_protects_does_not_count():
    async def under_the_lock(mm):
        async with mm.mmap_lock.exclusive():
            mm.pv_sync_destroy = mm.users == 0

    async def without(mm):
        await Touch(mm, "mm_users")
        mm.pv_sync_destroy = mm.users == 0

    _checked(under_the_lock)
    with pytest.raises(UnprotectedAccessError, match=r"Mm\.pv_sync_destroy"):
        _checked(without)


def test_another_lock_does_not_protect():
    async def wrong_lock(mm):
        async with mm.set_aside.lock.exclusive():
            mm.pv_sync_destroy = mm.users == 0

    with pytest.raises(UnprotectedAccessError):
        _checked(wrong_lock)


def test_afterwards_the_objects_are_what_they_were():
    world = scenario("shutdown").build(Series(), 2)
    mm = world.processes[0].mm
    kind = type(mm)
    recorder = AccessRecorder(world)
    assert type(mm) is not kind
    recorder.stop()
    assert type(mm) is kind
