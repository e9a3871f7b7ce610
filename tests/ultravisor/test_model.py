"""Random sequences of calls on a small machine against the dictionary model: codes, states, owners, contents, counts.

A driver of our own draws the calls: it keeps two or three configurations alive and most of their pages mapped, where a
general-purpose one spent nine calls in ten on handles of the dead and on frames that nobody owned.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from lazypv.errors import ProgramInterruption
from lazypv.hardware import GuestCpu, Machine
from lazypv.ultravisor.interface import (
    RC_ALREADY_IN,
    RC_CPUS_ALIVE,
    RC_DONATED,
    RC_FOREIGN,
    RC_INTEGRITY,
    RC_NOT_SHARED,
    RC_OUTSIDE,
)
from lazypv_kernels import access
from lazypv_kernels.layout import STATE_NAMES

from .guests import PAGE_SIZE, empty_header, firmware_of
from .model import DONE, Model

FRAMES, GUEST_PAGES, SPACES = 40, 5, 3
GUEST_FRAMES = range(1, 9)
STORAGE = range(9, 14)
TABLES = {0: [16, 17, 18, 19], 1: [20, 21, 22, 23], 2: [24, 25, 26, 27]}


class Calls:
    """Every method issues one call, bulk or not, and tells the model one page at a time."""

    def __init__(self, feature_bits):
        self.machine = Machine(FRAMES * PAGE_SIZE, uv_base_pages=1, feature_bits=feature_bits)
        self.ultravisor = self.machine.ultravisor
        self.firmware = firmware_of(self.machine)
        # The spaces map the same frames: a reboot, and a guest that has another one's pages.
        self.translations = [np.arange(2, 2 + GUEST_PAGES, dtype=np.uint32) for _ in range(SPACES)]
        mapped = [[int(entry) - 1 for entry in translation] for translation in self.translations]
        self.model = Model(FRAMES, [FRAMES - 1], mapped, bool(feature_bits))
        self.handles: list[int] = []
        self.cpus: list[tuple[int, int]] = []
        self.met: Counter[tuple[str, int]] = Counter()
        self.issued, self.useless, self.done = Counter(self.ultravisor.issued), Counter(), Counter()

    def content(self, frame):
        return self.firmware.storage.contents[frame].tobytes()

    def agree(self, name, answer, ask, pages):
        """`ask` the model about each page: the same codes; how many of `pages` changed, and how many did not need to.

        To pin or to share what is pinned or shared is not counted as in vain.
        """
        codes, useless = [], 0
        for page in pages:
            before = self.model.states()
            codes.append(ask(page))
            if name in ("import", "export", "destroy"):
                useless += codes[-1] == DONE and self.model.states() == before
        self.met.update((name, code) for code in codes)
        done = codes.count(DONE) - useless
        assert answer.rc.tolist() == codes
        assert (answer.done, answer.noop) == (done, useless)
        assert (answer.busy, answer.refused) == (0, len(codes) - done - useless)
        return done, useless

    def count(self, call, pages=1, done_and_useless=(0, 0)):
        """The books of calls, kept a second time; what has never happened is no entry."""
        done, useless = done_and_useless
        self.issued[call] += pages
        self.done += Counter({call: done})
        self.useless += Counter({call: useless})

    # --- configurations and CPUs ---------------------------------------------------------------------------------

    def create_sec_conf(self, space, size, donated):
        self.count("CREATE_SEC_CONF")
        table = TABLES[space]
        expected = self.model.create_conf(space, size, donated, table)
        answer = self.ultravisor.create_sec_conf(
            np.array(donated), size, table[0] * PAGE_SIZE, np.array(table), self.translations[space]
        )
        assert answer.rc == expected
        if expected == DONE:
            self.model.enter(answer.handle, space, size, donated, table)
            self.handles.append(answer.handle)

    def create_sec_cpu(self, handle, number, frame):
        self.count("CREATE_SEC_CPU")
        expected = self.model.create_cpu(handle, number, [frame])
        answer = self.ultravisor.create_sec_cpu(handle, number, np.array([frame]))
        assert answer.rc == expected
        if expected == DONE:
            self.model.enter_cpu(answer.handle, handle, number, [frame])
            self.cpus.append((answer.handle, handle))

    def start_a_cpu(self, handle, frame):
        """Parameters, verification, a CPU, and off it goes."""
        self.verify_img(handle)
        self.create_sec_cpu(handle, 0, frame)
        if self.cpus:
            self.cpu_set_state(self.cpus[-1], True)

    def destroy_sec_cpu(self, cpu):
        self.count("DESTROY_SEC_CPU")
        assert self.ultravisor.destroy_sec_cpu(cpu[0]).rc == self.model.destroy_cpu(cpu[0])

    def destroy_sec_conf(self, handle):
        self.count("DESTROY_SEC_CONF")
        answer = self.ultravisor.destroy_sec_conf(handle)
        assert (answer.rc, answer.pages) == self.model.destroy_conf(handle)

    def verify_img(self, handle):
        self.count("SET_SEC_CONF_PARAMS")
        self.count("VERIFY_IMG")
        expected = self.model.verify(handle)
        assert self.ultravisor.set_sec_conf_params(handle, empty_header()).rc == expected
        assert self.ultravisor.verify_img(handle).rc == expected

    def cpu_set_state(self, cpu, operating):
        self.count("CPU_SET_STATE")
        assert self.ultravisor.cpu_set_state(cpu[0], operating).rc == self.model.set_state(cpu[0], operating)

    def set_unshare_all(self, handle):
        self.count("SET_UNSHARE_ALL")
        answer = self.ultravisor.set_unshare_all(handle)
        assert (answer.rc, answer.pages) == self.model.unshare_all(handle)

    # --- the host's tables ---------------------------------------------------------------------------------------

    def map_page(self, space, page, frame):
        self.translations[space][page] = 0 if frame is None else frame + 1
        self.model.spaces[space][page] = frame

    # --- pages ---------------------------------------------------------------------------------------------------

    def import_pages(self, handle, pages):
        answer = self.ultravisor.import_pages(handle, np.array(pages))
        counts = self.agree("import", answer, lambda page: self.model.import_page(handle, page), pages)
        self.count("CONV_TO_SEC_STOR", len(pages), counts)

    def export_pages(self, frames):
        answer = self.ultravisor.export_pages(np.array(frames))
        counts = self.agree("export", answer, lambda frame: self.model.export_page(frame, self.content), frames)
        self.count("CONV_FROM_SEC_STOR", len(frames), counts)

    def destroy_pages(self, frames):
        answer = self.ultravisor.destroy_pages(np.array(frames))
        counts = self.agree("destroy", answer, self.model.destroy_page, frames)
        self.count("DESTR_SEC_STOR", len(frames), counts)

    def pin_pages(self, frames):
        answer = self.ultravisor.pin_pages(np.array(frames))
        counts = self.agree("pin", answer, self.model.pin_page, frames)
        self.count("PIN_PAGE_SHARED", len(frames), counts)

    def unpin_pages(self, handle, pages):
        answer = self.ultravisor.unpin_pages(handle, np.array(pages))
        counts = self.agree("unpin", answer, lambda page: self.model.unpin_page(handle, page), pages)
        self.count("UNPIN_PAGE_SHARED", len(pages), counts)

    def share_pages(self, handle, pages, share):
        answer = self.ultravisor.share_pages(handle, np.array(pages), share)
        command = "SET_SHARED_ACCESS" if share else "REMOVE_SHARED_ACCESS"
        counts = self.agree("share", answer, lambda page: self.model.share_page(handle, page, share), pages)
        self.count(command, len(pages), counts)

    # --- accesses ------------------------------------------------------------------------------------------------

    def guest_stores(self, handle, cpu_handle, space, pages, word):
        source = np.full((1, 512), word, np.uint64)
        answer = self.machine.guest_access(
            GuestCpu(handle or 0, cpu_handle, TABLES[space][0] * PAGE_SIZE, self.translations[space]),
            np.array(pages),
            access.COPY_PAGE,
            np.zeros(len(pages), np.uint64),
            source,
            np.zeros(len(pages), np.int64),
        )
        content = source.tobytes()
        self.agree("access", answer, lambda page: self.model.store(handle, cpu_handle, space, page, content), pages)

    def protected_guest_stores(self, cpu, pages, word):
        cpu_handle, handle = cpu
        known = self.model.configurations.get(handle)
        self.guest_stores(handle, cpu_handle, known.space if known else 0, pages, word)

    def sie_is_entered_with_what_may_not_fit(self, cpu, other, space, pages):
        self.guest_stores(cpu[1], other[0], space, pages, 99)

    def normal_guest_stores(self, space, pages, word):
        self.guest_stores(None, 0, space, pages, word)

    def host_loads(self, first, length, offset):
        address = first * PAGE_SIZE + offset
        length = min(length, FRAMES * PAGE_SIZE - address)
        frames = range(first, -(-(address + length) // PAGE_SIZE))
        refused = [frame for frame in frames if not self.model.host_may(frame)]
        if refused:
            with pytest.raises(ProgramInterruption) as caught:
                self.machine.load(address, length)
            assert (caught.value.code, caught.value.address) == (0x3D, refused[0] * PAGE_SIZE)
        else:
            whole = b"".join(self.model.frames[frame].content for frame in frames)
            assert self.machine.load(address, length) == whole[offset : offset + length]

    def host_stores(self, frame, offset, word):
        data, address = word.to_bytes(8, "big"), frame * PAGE_SIZE + offset
        if self.model.host_may(frame):
            self.machine.store(address, data)
            old = self.model.frames[frame].content
            self.model.frames[frame].content = old[:offset] + data + old[offset + 8 :]
        else:
            with pytest.raises(ProgramInterruption, match="0x3d"):
                self.machine.store(address, data)

    # --- what has to agree after every call ----------------------------------------------------------------------

    def states_and_owners_are_the_models(self):
        slots = {handle: found.slot for handle, found in self.firmware.configurations.items()}
        assert sorted(slots) == sorted(self.model.configurations)
        assert [STATE_NAMES[state] for state in self.firmware.state] == [frame.state for frame in self.model.frames]
        assert self.firmware.owner.tolist() == [slots.get(frame.owner, 0) for frame in self.model.frames]
        for number, frame in enumerate(self.model.frames):
            if frame.guest_page:
                assert self.firmware.guest_page[number] == frame.page

    def contents_are_the_models(self):
        whole = b"".join(frame.content for frame in self.model.frames)
        assert self.firmware.storage.contents.tobytes() == whole

    def calls_are_counted(self):
        """What was issued, what of it found nothing to do (semantics 4.2, step 6), and what changed a page."""
        assert self.ultravisor.issued == self.issued
        assert self.ultravisor.useless == self.useless
        assert self.ultravisor.done == self.done

    def nothing_is_held_between_calls(self):
        assert not any(found.in_flight for found in self.firmware.configurations.values())
        assert all(
            not (found.records & found.records.dtype.type(4)).any() for found in self.firmware.configurations.values()
        )


class Driver:
    """Draws calls and their arguments, the same for the same seed or source of chance."""

    def __init__(self, calls, seed):
        self.calls, self.draw = calls, seed if isinstance(seed, random.Random) else random.Random(seed)

    def handle(self):
        live = list(self.calls.model.configurations)
        return self.draw.choice(live if live and self.draw.random() < 0.95 else self.calls.handles or [1 << 16])

    def cpu(self):
        live = [cpu for cpu in self.calls.cpus if cpu[0] in self.calls.model.cpus]
        return self.draw.choice(live if live and self.draw.random() < 0.9 else self.calls.cpus or [(5, 5)])

    def frame(self):
        return self.draw.choice(GUEST_FRAMES)

    def space(self):
        return self.draw.randrange(SPACES)

    def word(self):
        return self.draw.randrange(1, 2**64)

    def storage(self):
        return self.draw.choices([*STORAGE, 16, 1], k=self.draw.randint(1, 2))

    def frames(self):
        odd = [*STORAGE, 16, FRAMES - 1]
        return [
            self.frame() if self.draw.random() < 0.95 else self.draw.choice(odd) for _ in range(self.draw.randint(1, 3))
        ]

    def pages(self):
        usual, all_pages = range(GUEST_PAGES), range(-1, GUEST_PAGES + 2)
        return [
            self.draw.choice(usual if self.draw.random() < 0.95 else all_pages) for _ in range(self.draw.randint(1, 4))
        ]

    def step(self):
        """One call."""
        draw, calls = self.draw, self.calls
        make = {
            calls.create_sec_conf: (
                4, lambda: (self.space(), draw.randint(2, GUEST_PAGES + 1), self.storage())
            ),
            calls.start_a_cpu: (4, lambda: (self.handle(), draw.choice(STORAGE))),
            calls.create_sec_cpu: (2, lambda: (self.handle(), draw.choice([0, 1, 247, 248]), draw.choice(STORAGE))),
            calls.destroy_sec_cpu: (2, lambda: (self.cpu(),)),
            calls.destroy_sec_conf: (1, lambda: (self.handle(),)),
            calls.verify_img: (1, lambda: (self.handle(),)),
            calls.cpu_set_state: (2, lambda: (self.cpu(), draw.random() < 0.7)),
            calls.set_unshare_all: (1, lambda: (self.handle(),)),
            calls.map_page: (
                4, lambda: (self.space(), draw.randrange(GUEST_PAGES), draw.choice([None, *GUEST_FRAMES]))
            ),
            calls.import_pages: (16, lambda: (self.handle(), self.pages())),
            calls.export_pages: (5, lambda: (self.frames(),)),
            calls.destroy_pages: (2, lambda: (self.frames(),)),
            calls.share_pages: (10, lambda: (self.handle(), self.pages(), draw.random() < 0.7)),
            calls.pin_pages: (6, lambda: (self.frames(),)),
            calls.unpin_pages: (3, lambda: (self.handle(), self.pages())),
            calls.protected_guest_stores: (12, lambda: (self.cpu(), self.pages(), self.word())),
            calls.sie_is_entered_with_what_may_not_fit: (
                1, lambda: (self.cpu(), self.cpu(), self.space(), self.pages())
            ),
            calls.normal_guest_stores: (2, lambda: (self.space(), self.pages(), self.word())),
            calls.host_loads: (
                3, lambda: (draw.randrange(FRAMES), draw.randint(1, 2 * PAGE_SIZE), draw.randrange(PAGE_SIZE))
            ),
            calls.host_stores: (2, lambda: (self.frame(), draw.randrange(PAGE_SIZE - 7), self.word())),
        }  # fmt: skip
        (call,) = draw.choices(list(make), [weight for weight, _ in make.values()])
        arguments = make[call][1]()
        call(*arguments)
        return call.__name__, arguments


SEEDS, STEPS = 30, 300
MET_WITHOUT_FEATURE_BIT_0 = {
    ("import", code) for code in (DONE, 0x20, 0x10A, RC_FOREIGN, RC_ALREADY_IN, RC_INTEGRITY, RC_OUTSIDE)
} | {
    *(("export", code) for code in (DONE, RC_DONATED)),
    *(("destroy", code) for code in (DONE, RC_CPUS_ALIVE)),
    *(("pin", code) for code in (DONE, RC_NOT_SHARED)),
    *(("unpin", code) for code in (DONE, RC_NOT_SHARED, 0x10A, 0x20)),
    *(("share", code) for code in (DONE, 0x6C, 0x11, 0x20, 0x3E, 0x3F)),
    *(("access", code) for code in (DONE, 0x11, 0x20, 0x3D, 0x3E, 0x3F)),
}


def run(feature_bits, seed, steps=STEPS):
    """`steps` calls, compared with the model after each; which codes were met."""
    calls = Calls(feature_bits)
    driver = Driver(calls, seed)
    trace = []
    for _ in range(steps):
        trace.append(driver.step())
        try:
            calls.states_and_owners_are_the_models()
            calls.contents_are_the_models()
            calls.calls_are_counted()
            calls.nothing_is_held_between_calls()
        except AssertionError as error:
            error.add_note("\n".join(map(str, trace[-8:])))
            raise
    calls.machine.close()
    return calls.met


@pytest.mark.parametrize("feature_bits", [(), (0,)], ids=["", "feature bit 0"])
def test_any_sequence_of_calls_leaves_what_the_model_leaves(feature_bits):
    """Semantics 2.2, 2.3, 7; with feature bit 0 a shared page of another configuration changes owners (patch 11)."""
    met = sum((run(feature_bits, seed) for seed in range(SEEDS)), Counter())
    assert set(met) >= MET_WITHOUT_FEATURE_BIT_0
