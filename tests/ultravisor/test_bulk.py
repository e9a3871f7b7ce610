"""A bulk call is the same calls issued singly, in array order."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lazypv.hardware import Machine
from lazypv.ultravisor import BulkAnswer
from lazypv_kernels import access

from .guests import PAGE_SIZE, Guest, firmware_of, pages

FRAMES, GUEST_PAGES = 600, 300


class Twins:
    """Two machines with the same past and the same keys, so that even ciphertext is the same."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.machines = [Machine(FRAMES * PAGE_SIZE, uv_base_pages=1) for _ in range(2)]
        self.guests = []
        for machine in self.machines:
            old = Guest(machine, np.arange(20, 20 + GUEST_PAGES))
            new = Guest(machine, np.arange(20 + GUEST_PAGES // 2, 20 + GUEST_PAGES + GUEST_PAGES // 2))
            self.guests.append((old, new))
        firmware_of(self.machines[1]).keys[:] = firmware_of(self.machines[0]).keys
        for number in (0, 1):
            some = np.array(self.draw.sample(range(GUEST_PAGES), 100))
            shared, pinned, out = some[:40], some[:20], some[30:60]
            for pair in self.guests:
                guest = pair[number]
                guest.ultravisor.import_pages(guest.handle, some)
                guest.write(some, 7 + number)
                guest.ultravisor.share_pages(guest.handle, shared, True)
                guest.ultravisor.pin_pages(guest.frames[pinned])
                guest.ultravisor.export_pages(guest.frames[out])
        for old, _ in self.guests:
            old.stop()

    def assert_same(self):
        ours, theirs = map(firmware_of, self.machines)
        np.testing.assert_array_equal(ours.state, theirs.state)
        np.testing.assert_array_equal(ours.owner, theirs.owner)
        np.testing.assert_array_equal(ours.guest_page, theirs.guest_page)
        np.testing.assert_array_equal(ours.storage.contents, theirs.storage.contents)
        for mine, other in zip(ours.configurations.values(), theirs.configurations.values(), strict=True):
            np.testing.assert_array_equal(mine.records, other.records)
            np.testing.assert_array_equal(mine.tags, other.tags)


NEW = 1
CALLS = {
    "import": lambda guests, column: guests[NEW].ultravisor.import_pages(guests[NEW].handle, column),
    "export": lambda guests, column: guests[NEW].ultravisor.export_pages(column),
    "destroy": lambda guests, column: guests[NEW].ultravisor.destroy_pages(column),
    "pin": lambda guests, column: guests[NEW].ultravisor.pin_pages(column),
    "unpin": lambda guests, column: guests[NEW].ultravisor.unpin_pages(guests[NEW].handle, column),
    "share": lambda guests, column: guests[NEW].ultravisor.share_pages(guests[NEW].handle, column, True),
    "unshare": lambda guests, column: guests[NEW].ultravisor.share_pages(guests[NEW].handle, column, False),
    "guest stores": lambda guests, column: guests[NEW].machine.guest_access(
        guests[NEW].cpu(), column, access.STORE_WORD, np.full(column.size, 3, np.uint64)
    ),
    "host clears": lambda guests, column: guests[NEW].machine.clear_pages(column),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seed", range(3))
def test_a_bulk_call_leaves_what_single_calls_in_array_order_leave(name, seed):
    """Design, batch = page by page: same codes, counts, states and contents, with repeated pages in the batch."""
    twins = Twins(seed)
    limit = FRAMES if name in ("export", "destroy", "pin", "host clears") else GUEST_PAGES
    column = np.array([twins.draw.randrange(limit) for _ in range(900)], np.int64)
    column[100:400] = column[0:300]
    bulk = CALLS[name](twins.guests[0], column)
    singly = BulkAnswer.merge([CALLS[name](twins.guests[1], column[i : i + 1]) for i in range(column.size)])
    np.testing.assert_array_equal(bulk.rc, singly.rc)
    assert repr(bulk) == repr(singly)
    assert bulk.busy == 0
    twins.assert_same()
    assert len(set(bulk.rc.tolist())) > 1 or name == "host clears"


@pytest.mark.parametrize("name", CALLS)
def test_a_call_over_no_pages_does_nothing(name):
    """The empty batch: no code, no count, no change."""
    twins = Twins(0)
    answer = CALLS[name](twins.guests[0], pages())
    assert (answer.rc.size, answer.done, answer.noop, answer.busy, answer.refused) == (0, 0, 0, 0, 0)
    assert answer.all_done
    twins.assert_same()


def test_many_cores_leave_what_one_core_leaves():
    """Pieces of one bulk call on several threads; no page is repeated here, so their order does not count."""
    count = 20_000
    size = (count + 300) * PAGE_SIZE
    machines = [Machine(size, uv_base_pages=1, threads=threads, contents=False) for threads in (1, 2)]
    guests = [Guest(machine, np.arange(100, 100 + count)) for machine in machines]
    order = np.random.default_rng(5).permutation(count)
    for guest, machine in zip(guests, machines, strict=True):
        answers = [
            guest.ultravisor.import_pages(guest.handle, order),
            guest.ultravisor.share_pages(guest.handle, order[: count // 2], True),
            guest.ultravisor.export_pages(guest.frames[order[: count // 4]]),
        ]
        guest.stop()
        answers.append(guest.ultravisor.destroy_pages(guest.frames[order]))
        assert [answer.done for answer in answers] == [count, count // 2, count // 4, count - count // 4]
        assert all(answer.all_done for answer in answers)
        machine.close()
    np.testing.assert_array_equal(firmware_of(machines[0]).state, firmware_of(machines[1]).state)
