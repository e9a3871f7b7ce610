"""What a throttle holds back, and how much of the time it leaves to cleaning."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lazypv.errors import UsageError
from lazypv.host.throttle import AT_ONCE_PAGES, AT_ONCE_SECONDS, Throttle

from .worlds import GUEST_PAGES, World


class Clock:
    def __init__(self, throttle):
        self.time = 0.0
        throttle.now = lambda: self.time


@pytest.mark.parametrize("bad", [{"share": 0}, {"share": 1}, {"share": -0.5}, {"share": float("nan")}])
def test_a_share_is_above_0_and_below_1(bad):
    with pytest.raises(UsageError, match="share"):
        Throttle(**bad)


def test_pages_a_second_and_a_share_exclude_each_other():
    with pytest.raises(UsageError, match=r"5 pages a second and of a share of 0\.5"):
        Throttle(5, share=0.5)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.75])
@pytest.mark.parametrize("seconds", [0.0003, 0.002, 0.5])
def test_a_share_of_the_time_is_for_cleaning_and_the_rest_for_guests(share, seconds):
    """Batches of any length; none is charged that is not done."""
    throttle = Throttle(share=share)
    clock = Clock(throttle)
    worked = 0.0
    for _ in range(2000):
        if throttle.may_pass():
            throttle.begin()
            clock.time += seconds
            worked += seconds
            throttle.passed(512)
        else:
            clock.time += 0.0001
    assert worked / clock.time == pytest.approx(share, rel=0.1, abs=(AT_ONCE_SECONDS + seconds) / share / clock.time)


def test_what_may_go_at_once_is_a_few_milliseconds_of_work():
    """So that batches can be done as one, and a guest is not kept waiting for longer."""
    assert Throttle().room() == AT_ONCE_PAGES
    throttle = Throttle(share=0.5)
    clock = Clock(throttle)
    throttle.begin()
    clock.time += 0.001
    throttle.passed(1000)
    assert throttle.room() == pytest.approx(3000, rel=0.01)
    throttle.passed(0)
    assert throttle.room() == pytest.approx(3000, rel=0.01)
    rate = Throttle(1_000_000)
    Clock(rate)
    assert rate.room() == pytest.approx(4000, rel=0.01)
    rate.begin()
    rate.passed(1000)
    assert rate.room() == pytest.approx(3000, rel=0.01)
    rate.passed(4000)
    assert rate.room() == 0
    assert not rate.may_pass()


@pytest.mark.parametrize("list_without_lock", [False, True])
def test_a_closed_throttle_holds_the_pages_that_were_set_aside(list_without_lock):
    """Patch 09's list is background work like the walk; it goes on where it stood."""
    from .worlds import posted

    world = World(posted("D19") if list_without_lock else None)
    world.full_guest()
    world.hold()
    world.exit()
    aside = world.machine.ultravisor.issued["DESTR_SEC_STOR"]
    deadline = time.monotonic() + 10
    while not any(parked.waiting is not None for parked in world.clock._parked):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert world.machine.ultravisor.issued["DESTR_SEC_STOR"] == aside == 0
    world.drain()
    assert world.machine.ultravisor.issued["DESTR_SEC_STOR"] > GUEST_PAGES / 2
    world.check_all_gone()


def test_set_aside_pages_are_charged():
    """A node is a batch."""
    world = World()
    throttle = world.host.throttle = Throttle(1e6)
    charged = []
    throttle.now = lambda: 0.0
    passed = throttle.passed
    throttle.passed = lambda pages: (charged.append(pages), passed(pages))[0]
    throttle.may_pass = lambda: True
    world.full_guest()
    world.exit()
    world.drain()
    assert sum(charged) == world.machine.ultravisor.issued["DESTR_SEC_STOR"]
    assert np.max(charged) == world.host.node_capacity
