"""Four real threads on the same frames: no order of events shows a secret, loses a page, or adds a refusal.

Loops are bounded and seeded; kernels run without the interpreter lock, so they meet each other on the frames.
"""

from __future__ import annotations

import threading
from collections import Counter

import numba
import numpy as np
import pytest

from lazypv.hardware import Machine
from lazypv.ultravisor import interface as uv
from lazypv_kernels import access, claims
from lazypv_kernels.layout import CLAIMED, DON_CPU, NS, RC_BUSY, RC_DONE, SEC, SHR, STATE_MASK, TOUCH_MASK
from lazypv_kernels.native import exchange, load_acquire, relax

from .guests import PAGE_SIZE, Guest, firmware_of

SECRET, NEW_SECRET = 0x5EC2E7_0FF1C1A1, 0xBADC0DE5_0DDBA115
FIRST = 64

pytestmark = pytest.mark.usefixtures("quick_switches")


def in_threads(*works):
    """Run all at once, from a common start; the first exception of any of them is raised here."""
    problems, barrier = [], threading.Barrier(len(works))

    def guarded(work):
        barrier.wait()
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def assert_readable_pages_hold_none_of(machine, frames, words, buffer):
    """The host copies whole pages out; where it may, the words must not be there."""
    code = machine.copy_pages(frames, buffer, write=False)
    assert set(code.tolist()) <= {RC_DONE, uv.PGM_SECURE_STORAGE_ACCESS}
    seen = buffer[code == RC_DONE].view(np.uint64)
    for word in words:
        assert not (seen == np.uint64(word)).any()


def assert_nothing_is_held(machine):
    """No claim and no touch outlives the calls, on frames or records."""
    firmware = firmware_of(machine)
    assert not (firmware.state & (CLAIMED | TOUCH_MASK)).any()
    for configuration in firmware.configurations.values():
        assert not (configuration.records & np.uint64(4)).any()
        assert configuration.in_flight == 0


def assert_every_page_is_in_one_frame(machine, guest):
    """Invariant 4: and in the frame that the record means."""
    firmware = firmware_of(machine)
    owned = np.flatnonzero((firmware.owner == guest.slot) & np.isin(firmware.state, (SEC, SHR)))
    pages = firmware.guest_page[owned]
    assert np.unique(pages).size == pages.size
    inside = np.flatnonzero(firmware.configurations[guest.handle].records & np.uint64(3) == 1)
    assert sorted(pages.tolist()) == inside.tolist()


def until_answered(call, column):
    """Issue `call`, the busy ones again, as a host does; the codes met, busy left out."""
    met = set()
    while column.size:
        answer = call(column)
        met |= set(answer.rc.tolist()) - {RC_BUSY}
        column = column[answer.rc == RC_BUSY]
    return met


@pytest.mark.parametrize("seed", range(2))
def test_no_plain_text_is_readable_while_a_guest_writes_and_the_host_exports_and_imports(seed):
    """Invariants 30, 31; design: plain text never lands in a frame that the host got back meanwhile."""
    pages, rounds = 48, 400
    machine = Machine((pages + 2 * FIRST) * PAGE_SIZE, uv_base_pages=1)
    guest = Guest(machine, np.arange(FIRST, FIRST + pages))
    guest.fill(guest.all_pages, SECRET)
    ultravisor = machine.ultravisor
    met = {name: set() for name in ("write", "export", "import", "destroy")}

    def shuffled(number):
        rng = np.random.default_rng([seed, number])
        return (rng.integers(0, pages, 4 * pages) for _ in range(rounds))

    def write():
        for some in shuffled(0):
            met["write"] |= set(guest.write(some, SECRET).tolist())

    def export_or_destroy():
        for some in shuffled(1):
            met["export"] |= until_answered(ultravisor.export_pages, guest.frames[some])
            met["destroy"] |= until_answered(ultravisor.destroy_pages, guest.frames[some])

    def bring_in():
        for some in shuffled(2):
            met["import"] |= until_answered(lambda column: ultravisor.import_pages(guest.handle, column), some)

    def read():
        buffer = np.empty((pages, PAGE_SIZE), np.uint8)
        for _ in range(4 * rounds):
            assert_readable_pages_hold_none_of(machine, guest.frames, [SECRET], buffer)

    in_threads(write, export_or_destroy, bring_in, read)
    assert met["write"] <= {RC_DONE, RC_BUSY, uv.PGM_NON_SECURE_STORAGE_ACCESS}
    assert met["export"] == {RC_DONE}
    assert met["import"] == {RC_DONE}
    assert met["destroy"] <= {RC_DONE, uv.RC_CPUS_ALIVE}
    assert_nothing_is_held(machine)
    until_answered(lambda column: ultravisor.import_pages(guest.handle, column), guest.all_pages)
    assert_every_page_is_in_one_frame(machine, guest)
    assert (firmware_of(machine).storage.words[guest.frames] == np.uint64(SECRET)).all()


@pytest.mark.parametrize("seed", range(2))
def test_a_new_guest_moves_in_while_the_old_one_is_destroyed(seed):
    """Patches 03, 05: 0x3f destroys, 0x3e imports, the sweep destroys the rest; each old page becomes clean once."""
    pages, rounds = 1500, 20
    machine = Machine((pages + 2 * FIRST) * PAGE_SIZE, uv_base_pages=1)
    frames = np.arange(FIRST, FIRST + pages)
    ultravisor, firmware = machine.ultravisor, firmware_of(machine)
    for turn in range(rounds):
        old = Guest(machine, frames)
        old.fill(old.all_pages, SECRET)
        old.stop()
        new = Guest(machine, frames)
        done = Counter()

        def destroy(column, who, done=done):
            while column.size:
                answer = ultravisor.destroy_pages(column)
                done[who] += answer.done
                assert set(answer.rc.tolist()) <= {RC_DONE, RC_BUSY, uv.RC_CPUS_ALIVE}
                column = column[answer.rc == RC_BUSY]

        def sweep(old=old, new=new, destroy=destroy):
            for part in np.array_split(frames, 11):
                destroy(part, "sweep")

        def move_in(new=new, destroy=destroy, turn=turn):
            todo = np.random.default_rng([seed, turn]).permutation(pages)[: pages // 2]
            while todo.size:
                code = new.write(todo, NEW_SECRET)
                assert set(code.tolist()) <= {RC_DONE, RC_BUSY, 0x3E, 0x3F}
                destroy(new.frames[todo[code == 0x3F]], "fault")
                imported = ultravisor.import_pages(new.handle, todo[code == 0x3E])
                assert set(imported.rc.tolist()) <= {RC_DONE, RC_BUSY, uv.RC_FOREIGN}
                todo = todo[code != RC_DONE]

        def export(turn=turn):
            some = np.random.default_rng([seed, turn, 1]).integers(FIRST, FIRST + pages, 200)
            assert until_answered(ultravisor.export_pages, some) == {RC_DONE}

        def read():
            buffer = np.empty((pages, PAGE_SIZE), np.uint8)
            for _ in range(4):
                assert_readable_pages_hold_none_of(machine, frames, [SECRET, NEW_SECRET], buffer)

        in_threads(sweep, move_in, export, read)
        destroy(frames, "sweep")
        assert_nothing_is_held(machine)
        assert_every_page_is_in_one_frame(machine, new)
        exported = firmware.exported(firmware.configurations[old.handle])
        # The new guest has a CPU, so nothing of its own was destroyed: all that was, and what left the old one, is all.
        assert done["sweep"] + done["fault"] + exported == pages
        assert not (firmware.owner[frames] == old.slot).any()
        assert not (firmware.storage.words[frames] == np.uint64(SECRET)).any()
        for guest in (old, new):
            guest.stop()
            assert ultravisor.destroy_sec_conf(guest.handle).ok
            machine.frames.put(np.concatenate([guest.table, guest.donated]))


def test_no_destroyed_page_is_readable_before_it_is_clear():
    """Invariant 30: the state is published after clearing; readers wait for the very frames that are being cleared."""
    rounds, size = 400, 64
    machine = Machine(3 * FIRST * PAGE_SIZE, uv_base_pages=1)
    frames = np.arange(FIRST, FIRST + size)
    guest = Guest(machine, frames)
    guest.stop()
    firmware, slot, done = firmware_of(machine), guest.slot, threading.Event()

    def make_secret_again():
        held = [frame for frame in frames if claims.claim(firmware.state, frame) != claims.BUSY]
        firmware.storage.words[held] = np.uint64(SECRET)
        firmware.owner[held] = slot
        for frame in held:
            claims.publish(firmware.state, frame, SEC)

    def destroy():
        try:
            for _ in range(rounds):
                make_secret_again()
                assert until_answered(machine.ultravisor.destroy_pages, frames) == {RC_DONE}
        finally:
            done.set()

    def read(order):
        buffer = np.empty((order.size, PAGE_SIZE), np.uint8)
        while not done.is_set():
            assert_readable_pages_hold_none_of(machine, order, [SECRET], buffer)

    in_threads(
        destroy, *(lambda order=order: read(np.tile(order, 20)) for order in (frames, frames[::-1], frames[32:]))
    )
    assert_nothing_is_held(machine)
    assert not firmware.state[frames].any()


def test_a_guest_page_has_one_frame_however_its_mapping_changes_under_the_import():
    """Design: the record of (configuration, guest page) has its own claim; the mapping is read again under it."""
    rounds = 1500
    machine = Machine(3 * FIRST * PAGE_SIZE, uv_base_pages=1)
    guest = Guest(machine, np.arange(FIRST, FIRST + 8))
    firmware, page = firmware_of(machine), np.arange(8)
    alternatives = [(guest.frames + 1).astype(np.uint32), (guest.frames + 17).astype(np.uint32)]

    def bring_in():
        for _ in range(rounds):
            answer = machine.ultravisor.import_pages(guest.handle, page)
            assert set(answer.rc.tolist()) <= {RC_DONE, RC_BUSY, uv.RC_ALREADY_IN}

    def change_the_mapping():
        for turn in range(4 * rounds):
            guest.translation[:] = alternatives[turn % 2]

    def export():
        for _ in range(rounds):
            answer = machine.ultravisor.export_pages(np.arange(FIRST, FIRST + 32))
            assert set(answer.rc.tolist()) <= {RC_DONE, RC_BUSY}

    def importing():
        for turn in range(rounds):
            answer = machine.ultravisor.import_pages(guest.handle, page[:: 1 if turn % 2 else -1].copy())
            # A page that went out from one frame is not in the other.
            assert set(answer.rc.tolist()) <= {RC_DONE, RC_BUSY, uv.RC_ALREADY_IN, uv.RC_INTEGRITY}

    in_threads(bring_in, importing, change_the_mapping)
    assert_nothing_is_held(machine)
    assert_every_page_is_in_one_frame(machine, guest)
    assert np.count_nonzero(firmware.state[FIRST : FIRST + 32]) == 8
    in_threads(importing, importing, change_the_mapping, export)
    assert_nothing_is_held(machine)
    assert_every_page_is_in_one_frame(machine, guest)


@numba.njit(nogil=True)
def unmap_and_look(state, owner, directory, slot, pte, frame, rounds):
    """Unmap page 0, look at its frame twice, make the page new, map it; how often the second look saw an import."""
    imported_unmapped = 0
    for turn in range(rounds):
        exchange(pte, 0, np.uint32(0))
        seen = load_acquire(state, frame)
        while seen & CLAIMED:
            seen = load_acquire(state, frame)
        if seen == NS:
            for _ in range(20):
                relax()
            imported_unmapped += load_acquire(state, frame) & STATE_MASK != NS
        while claims.claim_record(directory, slot, 0, False) == np.uint64(claims.RECORD_BUSY):
            relax()
        while claims.claim(state, frame) == claims.BUSY:
            relax()
        owner[frame] = 0
        claims.publish(state, frame, NS)
        claims.publish_record(directory, slot, 0, False, np.uint64(0))
        exchange(pte, 0, np.uint32(frame + 1))
        for _ in range(turn % 128):
            load_acquire(pte, 0)
    return imported_unmapped


def test_an_unmapped_frame_is_the_hosts_however_many_imports_are_under_way():
    """Design: unmap clears the mapping first; an import that read it before reads it again under its claim."""
    machine = Machine(3 * FIRST * PAGE_SIZE, uv_base_pages=1, contents=False)
    guest = Guest(machine, np.arange(FIRST, FIRST + 1), cpus=0)
    firmware, done, seen = firmware_of(machine), threading.Event(), []

    def bring_in():
        column = np.zeros(5000, np.int64)
        while not done.is_set():
            code = machine.ultravisor.import_pages(guest.handle, column).rc
            assert set(code.tolist()) <= {RC_DONE, RC_BUSY, uv.CONV_TO_RC_NOT_MAPPED}

    def unmap():
        try:
            arguments = (firmware.state, firmware.owner, firmware.directory, guest.slot, guest.translation, FIRST)
            seen.extend(unmap_and_look(*arguments, 20_000) for _ in range(40))
        finally:
            done.set()

    in_threads(unmap, bring_in)
    assert seen == [0] * 40
    assert not (firmware.state & (CLAIMED | TOUCH_MASK)).any()


def test_cpu_storage_is_given_and_returned_while_others_look_at_it():
    """Design: configuration calls respect claims too; a look that is let go afterwards must not meet a new state."""
    rounds = 100
    machine = Machine(3 * FIRST * PAGE_SIZE, uv_base_pages=1)
    guest = Guest(machine, np.arange(FIRST, FIRST + 4), cpus=0)
    done = threading.Event()
    storage = np.arange(2 * FIRST, 2 * FIRST + 6)
    firmware = firmware_of(machine)
    made = Counter()

    def create_and_destroy():
        try:
            while made[uv.UVC_RC_EXECUTED] < rounds:
                answer = machine.ultravisor.create_sec_cpu(guest.handle, 0, storage)
                assert answer.rc in (uv.UVC_RC_EXECUTED, uv.CREATE_SEC_CPU_RC_STORAGE)
                made[answer.rc] += 1
                if answer.ok:
                    assert (firmware.state[storage] & 7 == DON_CPU).all()
                    assert machine.ultravisor.destroy_sec_cpu(answer.handle).ok
        finally:
            done.set()

    def look(call, codes):
        column = np.tile(storage, 5000)
        while not done.is_set():
            assert set(call(column).rc.tolist()) <= codes

    def copy_out():
        column = np.tile(storage, 50)
        buffer = np.empty((column.size, PAGE_SIZE), np.uint8)
        while not done.is_set():
            code = machine.copy_pages(column, buffer, write=False)
            assert set(code.tolist()) <= {RC_DONE, uv.PGM_SECURE_STORAGE_ACCESS}

    in_threads(
        create_and_destroy,
        copy_out,
        lambda: look(machine.ultravisor.export_pages, {RC_DONE, RC_BUSY, uv.RC_DONATED}),
        lambda: look(machine.ultravisor.destroy_pages, {RC_DONE, RC_BUSY, uv.RC_CPUS_ALIVE}),
    )
    assert_nothing_is_held(machine)
    assert not firmware.state[storage].any()
    assert not firmware.owner[storage].any()


def test_a_mark_is_taken_back_while_others_read_the_table():
    """A configuration that is refused its storage leaves the table as it was, whoever reads it meanwhile."""
    rounds = 1000
    machine = Machine(3 * FIRST * PAGE_SIZE, uv_base_pages=1)
    guest = Guest(machine, np.arange(FIRST, FIRST + 4))
    done = threading.Event()
    table = np.arange(2 * FIRST, 2 * FIRST + 4)

    def refused():
        try:
            for _ in range(rounds):
                answer = machine.ultravisor.create_sec_conf(guest.donated, 4, 1, table, guest.translation)
                assert answer.rc in (uv.CREATE_SEC_CONF_RC_STORAGE, uv.CREATE_SEC_CONF_RC_ASCE)
        finally:
            done.set()

    def read():
        column = np.tile(table, 3000)
        while not done.is_set():
            assert set(machine.clear_pages(column).rc.tolist()) <= {RC_DONE, RC_BUSY}

    in_threads(refused, read, read, read)
    assert_nothing_is_held(machine)
    assert not firmware_of(machine).state[table].any()


def test_a_configuration_is_destroyed_once_and_its_successor_not_at_all():
    """DESTROY_SEC_CONF from two threads: one of them ends it; what then takes the slot keeps its pages."""
    rounds, pages = 40, 600
    machine = Machine((2 * pages + 2 * FIRST) * PAGE_SIZE, uv_base_pages=1)
    ultravisor, firmware = machine.ultravisor, firmware_of(machine)
    new_frames = np.arange(FIRST + pages, FIRST + 2 * pages)
    spare = Guest(machine, np.arange(FIRST, FIRST + pages), cpus=0)
    assert ultravisor.destroy_sec_conf(spare.handle).ok
    for _ in range(rounds):
        old = ultravisor.create_sec_conf(spare.donated, pages, spare.asce, spare.table, spare.translation).handle
        assert ultravisor.import_pages(old, spare.all_pages).done == pages
        translation = (new_frames + 1).astype(np.uint32)
        ended, taken = [], []

        def destroy(old=old, ended=ended):
            while (answer := ultravisor.destroy_sec_conf(old)).cc > 1:
                pass
            ended.append(answer.rc)

        def succeed(taken=taken, translation=translation):
            while not (
                made := ultravisor.create_sec_conf(spare.donated, pages, spare.asce, spare.table, translation)
            ).ok:
                assert made.rc in (uv.CREATE_SEC_CONF_RC_ASCE, uv.CREATE_SEC_CONF_RC_STORAGE)
            taken.append(made.handle)
            assert ultravisor.import_pages(made.handle, np.arange(pages)).done == pages

        in_threads(destroy, destroy, succeed)
        assert sorted(ended) == [uv.UVC_RC_EXECUTED, uv.UVC_RC_INV_GHANDLE]
        assert (firmware.state[new_frames] == SEC).all()
        assert not firmware.state[spare.frames].any()
        assert ultravisor.destroy_sec_conf(taken[0]).pages == pages


def test_sharing_pinning_and_exporting_one_page_leaves_it_in_one_of_its_states():
    """Semantics 2.2: every transition starts from a state of the diagram, whatever the others do."""
    rounds = 1500
    machine = Machine(3 * FIRST * PAGE_SIZE, uv_base_pages=1)
    guest = Guest(machine, np.arange(FIRST, FIRST + 8))
    guest.fill(guest.all_pages, 1)
    ultravisor, pages = machine.ultravisor, guest.all_pages

    def share():
        for turn in range(rounds):
            code = ultravisor.share_pages(guest.handle, pages, turn % 2 == 0).rc
            assert set(code.tolist()) <= {RC_DONE, RC_BUSY, uv.ICPT_PV_NOTIFICATION, uv.PGM_NON_SECURE_STORAGE_ACCESS}

    def pin():
        for _ in range(rounds):
            assert set(ultravisor.pin_pages(guest.frames).rc.tolist()) <= {RC_DONE, RC_BUSY, uv.RC_NOT_SHARED}
            code = ultravisor.unpin_pages(guest.handle, pages).rc
            assert set(code.tolist()) <= {RC_DONE, RC_BUSY, uv.RC_NOT_SHARED}

    def move():
        for _ in range(rounds):
            assert set(ultravisor.export_pages(guest.frames).rc.tolist()) <= {RC_DONE, RC_BUSY}
            # A shared page that is still there is nobody's to import: not even the owner's, who has it already.
            code = ultravisor.import_pages(guest.handle, pages).rc
            assert set(code.tolist()) <= {RC_DONE, RC_BUSY, uv.RC_FOREIGN}

    def touch():
        values = np.zeros(pages.size, np.uint64)
        for _ in range(rounds):
            code = machine.guest_access(guest.cpu(), pages, access.LOAD, values).rc
            assert set(code.tolist()) <= {RC_DONE, RC_BUSY, uv.PGM_NON_SECURE_STORAGE_ACCESS}

    in_threads(share, pin, move, touch)
    assert_nothing_is_held(machine)
    assert set(firmware_of(machine).state[guest.frames].tolist()) <= {NS, SEC, SHR, 3}
    until_answered(ultravisor.export_pages, guest.frames)
    until_answered(lambda column: ultravisor.import_pages(guest.handle, column), pages)
    assert (firmware_of(machine).storage.words[guest.frames] == 1).all()
