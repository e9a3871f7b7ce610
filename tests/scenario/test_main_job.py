"""The main job, small: what each policy does, what the next run meets, and that every page is accounted for."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from lazypv.guest import Workload
from lazypv.hardware import Machine
from lazypv.image import open_image, synthetic
from lazypv.scenario.compare import machine_size
from lazypv.scenario.measure import EARLY_PAGES, SHARED_LEAST, Job, Measured, measure
from lazypv.sizes import PAGE_SIZE

MEMORY = 64 << 20
LIMIT = 16 << 20
PAGES = MEMORY // PAGE_SIZE
BELOW = LIMIT // PAGE_SIZE
IMAGE = "tests/data/s390x-256m-part.elf.zst"


@pytest.fixture(scope="module")
def machine():
    built = Machine(machine_size(MEMORY, 2), threads=2)
    yield built
    built.close()


@pytest.fixture(scope="module")
def image(request):
    return open_image(request.config.rootpath / IMAGE)


def job(kind, **changes):
    settings = Job(kind, MEMORY, 2, 64, LIMIT, None, Workload("zipf", touches=2000), seed=1, hold_back=True)
    return replace(settings, **changes)


def run(machine, image, kind, policy, **changes) -> Measured:
    return measure(machine, image, job(kind, **changes), policy, lambda _phase: None)


@pytest.mark.parametrize("kind", ["reboot", "shutdown"])
@pytest.mark.parametrize("policy", ["eager", "lazy"])
def test_no_invariant_is_violated_and_every_page_is_accounted_for(machine, image, kind, policy):
    """Design, "Accounts must balance"; semantics 9."""
    free = machine.frames.free()
    measured = run(machine, image, kind, policy)
    assert measured.violations == []
    assert measured.accounts.owned == PAGES
    assert measured.accounts.check() == []
    assert machine.frames.free() == free


def test_an_eager_reboot_destroys_everything_before_the_guest_comes_back(machine, image):
    """Semantics 4.10: the old way, with the real result of the destroy."""
    measured = run(machine, image, "reboot", "eager")
    assert measured.accounts.destroyed_sync == PAGES
    assert (measured.rc, measured.rrc) == (1, 0)
    assert measured.threads == 0
    assert measured.held_back_bytes == 0


def test_the_next_run_of_an_eager_reboot_meets_only_0x3e(machine, image):
    """Nothing of the old run is left to meet."""
    assert set(run(machine, image, "reboot", "eager").exceptions) == {0x3E}


def test_a_lazy_reboot_destroys_only_what_lies_below_the_limit_before_the_guest_comes_back(machine, image):
    """Patch 08; invariants 22, 40: rc 1, rrc 42, a thread, the rest behind the guest's back."""
    measured = run(machine, image, "reboot", "lazy")
    assert measured.accounts.destroyed_sync == BELOW
    assert (measured.rc, measured.rrc) == (1, 42)
    assert measured.threads == 1
    assert measured.held_back_bytes > (PAGES - BELOW) * PAGE_SIZE


def test_the_next_run_of_a_lazy_reboot_meets_0x3d_then_0x3f_then_0x3e_and_exports(machine, image):
    """Patches 03, 04, 07, with the walk held back: each page that it touches is met once, in each of its roles."""
    measured = run(machine, image, "reboot", "lazy")
    assert measured.exceptions[0x3D] == EARLY_PAGES
    assert measured.exceptions[0x3F] == EARLY_PAGES
    assert measured.exceptions[0x3E] == 2 * EARLY_PAGES + SHARED_LEAST
    assert measured.accounts.destroyed_on_fault == EARLY_PAGES
    assert measured.accounts.exported == EARLY_PAGES + SHARED_LEAST
    assert measured.accounts.destroyed_background == PAGES - BELOW - 2 * EARLY_PAGES - SHARED_LEAST


def test_an_eager_shutdown_exports_every_page(machine, image):
    """Semantics 4.9: secure CPUs live while the address space dies."""
    measured = run(machine, image, "shutdown", "eager")
    assert measured.accounts.exported == PAGES
    assert measured.accounts.set_aside == 0


def test_a_lazy_shutdown_sets_509_of_510_pages_aside(machine, image):
    """Patch 09: one page in 510 is exported, and another allocated to be the node."""
    measured = run(machine, image, "shutdown", "lazy")
    exported = measured.accounts.exported
    assert PAGES // 510 - 1 <= exported <= PAGES // 510 + 2
    assert measured.accounts.set_aside == measured.accounts.destroyed_background == PAGES - exported


def test_a_guest_that_is_not_above_the_limit_is_destroyed_at_once_under_both_policies(machine, image):
    """D10: its top table is a segment table, which must not be replaced."""
    measured = run(machine, image, "reboot", "lazy", sync_below=MEMORY)
    assert measured.violations == []
    assert measured.accounts.destroyed_sync == PAGES
    assert measured.threads == 0


def test_the_timeline_has_a_row_for_each_bulk_step(machine, image):
    """`--save`: pages destroyed by the rows of the walk are the pages that the accounts say it destroyed."""
    measured = run(machine, image, "reboot", "lazy", timeline=True)
    walked = sum(
        e.done for e in measured.timeline if e.actor == "kvm_s390_pv_destroy_vm_thread" and "destroy" in e.step
    )
    assert walked == measured.accounts.destroyed_background
    assert all(event.end >= event.start for event in measured.timeline)


def test_fifty_repetitions_under_load_leave_no_violation_and_no_thread():
    """Both policies, both ends, four threads, the walk beside the next run."""
    memory = 20 << 20
    before = set(threading.enumerate())
    machine = Machine(machine_size(memory, 4), threads=4)
    broken = []
    image = synthetic(0, memory)
    for turn in range(50):
        for policy in ("eager", "lazy"):
            load = {"memory": memory, "sync_below": 2 << 20, "vcpus": 4, "batch": 16, "hold_back": False, "seed": turn}
            kind = "reboot" if turn % 2 else "shutdown"
            broken += run(machine, image, kind, policy, workload=Workload("uniform", touches=500), **load).violations
    machine.close()
    assert broken == []
    assert set(threading.enumerate()) == before
