"""A page below the limit that cannot be destroyed: found by exploring with one fault, named by no source."""

from __future__ import annotations

from lazypv.invariants.accounts import owned_below

from .worlds import LIMIT_PAGES, World


def test_below_the_limit_a_page_that_cannot_be_destroyed_is_exported():
    """Invariant 22: when a lazy reset returns, the old run owns nothing below the limit, prefix pages least of all."""
    world = World()
    old = world.protect()
    world.write(world.all_pages(), 7)
    world.hold()
    exported = world.machine.ultravisor.issued["CONV_FROM_SEC_STOR"]
    world.machine.ultravisor.refuse = 0x0F10
    assert world.disable().rrc == 42
    assert owned_below(world.machine, old, LIMIT_PAGES) == 0
    assert world.machine.ultravisor.issued["CONV_FROM_SEC_STOR"] > exported
    world.drain()
