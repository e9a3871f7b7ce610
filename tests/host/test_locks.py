"""Which locks are held at which step; every modelled lock is missed by a test when it is not taken.

Source: semantics 2.5, 4.5, 4.8, 4.9; D7, D11b, D17, D19.
"""

from __future__ import annotations

import numpy as np
import pytest

from lazypv.host import kvm
from lazypv.host.exit import unmap_range
from lazypv.host.run import access
from lazypv_kernels.access import LOAD

from .stepping import Stepper, named

KVM, MMAP, LIST, TABLE = "kvm->lock", "mmap_lock (shared)", "deferred_list", "guest_table_lock"


def _touch(world, page):
    return access(world.vm, 0, np.array([page]), LOAD, np.zeros(1, np.uint64))


@pytest.fixture
def stepper():
    return Stepper()


def test_faults_are_handled_under_the_mmap_lock(world, stepper):
    """Semantics 2.5, 4.3, 4.4, D11b: translating, looking the page up and cleaning it are one section."""
    world.protect()
    world.write(200, 7)
    world.write(201, 7)
    world.hold()
    world.disable()
    stepper.run(_touch(world, 200))
    assert stepper.locks_held_at("make accessible") == [[MMAP]]
    world.protect()
    stepper.run(_touch(world, 201))
    stepper.run(_touch(world, 220))
    assert stepper.locks_held_at("destroy pages") == [[MMAP]]
    assert stepper.locks_held_at("make secure") == [[MMAP]]
    assert stepper.locks_held_at("clear fresh pages") == [[MMAP]]
    assert stepper.locks_held_at("guest access") == [[]]


def test_a_walk_gathers_under_the_mmap_lock_and_destroys_without(world, stepper):
    """Semantics 4.5; the part below the limit runs under kvm->lock, the thread under none (4.8)."""
    world.protect()
    world.write(world.all_pages(), 7)
    stepper.run(kvm.disable(world.vm))
    assert stepper.locks_held_at("gather") == [[KVM, MMAP]]
    assert stepper.locks_held_at("destroy pages") == [[KVM]]
    stepper.history.clear()
    stepper.threads[0].finish()
    assert stepper.locks_held_at("gather") == [[MMAP]]
    assert stepper.locks_held_at("destroy pages") == [[]]
    assert stepper.locks_held_at("DESTROY_SEC_CONF") == [[]]


def test_ioctls_of_a_vm_exclude_each_other(world, stepper):
    """Semantics 3.6, 4.8: enable, disable and closing hold kvm->lock."""
    stepper.run(kvm.enable(world.vm))
    assert stepper.locks_held_at("CREATE_SEC_CONF") == [[KVM]]
    assert stepper.locks_held_at("CREATE_SEC_CPU") == [[KVM]]
    first = stepper.start(kvm.disable(world.vm)).until(named("DESTROY_SEC_CPU"))
    second = stepper.start(kvm.disable(world.vm))
    assert not second.pending.lock.try_take(second, shared=False)
    first.finish()
    assert second.finish() == kvm.Result(kvm.EINVAL, 0, 0)
    stepper.threads[0].finish()
    world.protect()
    stepper.history.clear()
    stepper.run(kvm.close_vm(world.vm))
    assert stepper.locks_held_at("DESTROY_SEC_CPU") == [[KVM]]
    stepper.threads[1].finish()


def test_tables_change_under_the_guest_table_lock(world, stepper):
    """D7: unlisting and publishing are sections of their own; the copy is made before it is listed."""
    world.protect()
    text = stepper.start(kvm.disable(world.vm)).until(named("top table"))
    gmap, old = world.vm.gmap, world.vm.gmap.table
    assert gmap.crst_list == []
    assert not gmap.guest_table_lock.holders()
    text.until(lambda step: step.label == TABLE)
    assert gmap.crst_list == []
    assert gmap.table is old
    text.step()
    assert gmap.guest_table_lock.writer is text
    assert gmap.crst_list == [gmap.table]
    text.finish()
    stepper.threads[0].finish()


def test_the_list_is_written_and_taken_under_its_lock(world, stepper):
    """D19: invariant 26, one context at a time; the long work is done without it."""
    world.protect()
    world.write(world.all_pages(), 7)
    stepper.run(world.process.exit())
    assert stepper.locks_held_at("set aside") == [[LIST]]
    assert stepper.locks_held_at("list node") == [[LIST]]
    thread = stepper.threads[0]
    assert thread.pending.label == LIST
    nodes = len(world.process.mm.set_aside.nodes)
    thread.step()
    assert nodes
    assert len(world.process.mm.set_aside.nodes) == 0
    assert thread.locks == [world.process.mm.set_aside.lock]
    thread.finish()
    assert stepper.locks_held_at("destroy set-aside pages") == [[]]


def test_whether_pages_may_be_set_aside_is_decided_under_the_mmap_lock(make_world, stepper):
    """Semantics 4.10 and D17: pv_sync_destroy is written with the lock held alone."""
    world = make_world(lazy_destroy=False)
    text = stepper.start(kvm.enable(world.vm))
    text.until(lambda step: step.label == "mmap_lock")
    assert not text.pending.shared
    assert not world.process.mm.pv_sync_destroy
    text.step()
    assert world.process.mm.pv_sync_destroy
    text.finish()


def test_partial_unmapping_holds_the_mmap_lock(world, stepper):
    """Semantics 4.9: as the OOM reaper does."""
    world.protect()
    world.write(100, 7)
    stepper.run(unmap_range(world.host, world.vm.mm, world.vm.slots[0], 90, 110))
    assert stepper.locks_held_at("export unmapped pages") == [[MMAP]]
