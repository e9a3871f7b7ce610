"""Several nodes with one hold of the list leave what one after the other leaves."""

from __future__ import annotations

import pytest

from lazypv.clocks.actors import Fault

from .worlds import World


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
