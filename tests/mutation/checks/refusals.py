"""Bad use is refused by name, and an image that is not whole by its code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from mmap import mmap
from typing import Any

import numpy as np

from lazypv.errors import CipherError, LazyPVError, LifetimeError, MemoryShortageError, SlowCipherWarning, UsageError
from lazypv.explore.faults import UNKNOWN_RC
from lazypv.hardware import Machine
from lazypv.host.host import Host
from lazypv.host.kvm import StorageSizes
from lazypv.host.throttle import Throttle
from lazypv.machine import AbsoluteStorage
from lazypv.sizes import PAGE_SIZE
from lazypv.ultravisor import Answer, ImageHeader, Ultravisor, sealing, vault
from lazypv.ultravisor.firmware import Firmware
from lazypv.ultravisor.interface import (
    INIT_UV_RC_DONE_ALREADY,
    INIT_UV_RC_STORAGE,
    RC_INTEGRITY,
    RC_NO_SLOT,
    RC_NOT_COMPLETE,
    RC_NOT_UNPACKABLE,
    UVC_CC_BUSY,
    UVC_RC_INV_GHANDLE,
    UVC_RC_INV_STATE,
)
from lazypv_kernels import ciphers
from lazypv_kernels.layout import NS, RC_BUSY, RC_DONE, SHR, TAG_SIZE
from lazypv_kernels.workers import Workers

from .check import Check, NoticedError

FRAMES = 64
LARGE_IMAGE = 300


def checks() -> Iterator[Check]:
    """What a person asks for, and what a host asks the Ultravisor for."""
    yield Check("bad use is refused", _bad_use)
    yield Check("the Ultravisor is initialised once, with storage that is there", _initialisation)
    yield Check("an image is unpacked, or refused", _image)
    yield Check("what is executed says so", _executed)
    yield Check("calls that find nothing to do are counted", _useless)
    yield Check("a table that is freed twice", _freed_twice)
    yield Check("calls that work on one configuration at once", _at_once)
    yield Check("a fault that is injected strikes once", _injected)
    yield Check("the Ultravisor has as many places as it says", _places)
    yield Check("a cipher that the computer has not is refused", _no_cipher)
    yield Check("who makes a machine with a slow cipher is warned", _slow_cipher)
    yield Check("a large image is unpacked", _large_image)
    yield Check("a configuration takes as many bytes as it has to", _bytes)


def _host(**settings: object) -> Host:
    sizes = StorageSizes(base=1, variable=1, variable_per_mib=0, cpu=1)
    return Host(Machine(FRAMES * PAGE_SIZE, uv_base_pages=1), sync_below=0, storage_sizes=sizes, **settings)  # type: ignore[arg-type]


def _bad_use() -> None:
    def vm(*slots: range) -> Callable[[], object]:
        host = _host()
        process = host.create_process(private=0, shared_file=0, special=0)
        return lambda: host.create_vm(process, list(slots), 1)

    for bad in (0, -1):
        _raises(UsageError, lambda bad=bad: _host(batch=bad))  # type: ignore[misc]
        _raises(UsageError, lambda bad=bad: Throttle(bad))  # type: ignore[misc]
    _host(batch=1)
    _expect("a host that destroys at once", [_host().sync_only, _host(lazy_destroy=False).sync_only], [False, True])
    Throttle(0.5)
    _raises(UsageError, vm())
    _raises(UsageError, vm(range(4), range(3, 6)))
    _raises(UsageError, vm(range(4, 6), range(2)))
    vm(range(4), range(4, 6))()
    _raises(MemoryShortageError, lambda: _host().create_process(private=FRAMES * PAGE_SIZE))


def _raises(kind: type[LazyPVError], use: Callable[[], object]) -> None:
    try:
        use()
    except kind:
        return
    raise NoticedError(f"{kind.__name__} should have been raised")


class _Guest:
    """A configuration of four pages in frames 10 to 13, by calls alone."""

    def __init__(self, ultravisor: Ultravisor, first: int = 10, table: int = 20, donated: int = 30) -> None:
        self.ultravisor = ultravisor
        tables = np.arange(table, table + 4)
        answer = self.ultravisor.create_sec_conf(
            np.array([donated]), 4, table * PAGE_SIZE, tables, np.arange(first + 1, first + 5, dtype=np.uint32)
        )
        self.rc = answer.rc
        self.handle = answer.handle

    def unpack(self, *pages: int) -> list[int]:
        return [int(code) for code in self.ultravisor.unpack_pages(self.handle, np.array(pages)).rc]


def _initialisation() -> None:
    workers = Workers()
    firmware = Firmware(AbsoluteStorage.own(16, workers), 2, frozenset())
    ultravisor = Ultravisor(firmware, workers)
    table, translation = np.array([4, 5, 6, 7]), np.zeros(4, np.uint32)

    def create() -> int:
        return ultravisor.create_sec_conf(np.array([8]), 4, 4 * PAGE_SIZE, table, translation).rc

    _expect("a configuration before INIT_UV", create(), UVC_RC_INV_STATE)
    _expect("storage that is given twice", ultravisor.init_uv(np.array([3, 3])).rc, INIT_UV_RC_STORAGE)
    firmware.state[2] = SHR
    _expect("storage that is in use", ultravisor.init_uv(np.array([2, 3])).rc, INIT_UV_RC_STORAGE)
    firmware.state[2] = NS
    _expect("a configuration after that", create(), UVC_RC_INV_STATE)
    _expect("INIT_UV", ultravisor.init_uv(np.array([3])).rc, 1)
    _expect("a configuration then", create(), 1)
    _expect("INIT_UV again", ultravisor.init_uv(np.array([2])).rc, INIT_UV_RC_DONE_ALREADY)


def _image() -> None:
    machine = Machine(FRAMES * PAGE_SIZE, uv_base_pages=1)
    guest, ultravisor = _Guest(machine.ultravisor), machine.ultravisor
    image = np.random.default_rng(1).integers(0, 256, (2, PAGE_SIZE)).astype(np.uint8)
    header = ImageHeader.seal(image, 1)
    _expect("unpacking without parameters", guest.unpack(1), [UVC_RC_INV_STATE])
    _expect("verifying without parameters", ultravisor.verify_img(guest.handle).rc, RC_NOT_COMPLETE)
    _expect("parameters", ultravisor.set_sec_conf_params(guest.handle, header).rc, 1)
    machine.store(11 * PAGE_SIZE, image[::-1].tobytes())
    _expect("altered pages", guest.unpack(1, 2), [RC_INTEGRITY] * 2)
    machine.store(11 * PAGE_SIZE, image.tobytes())
    _expect("pages beside the image", guest.unpack(0, 3), [RC_NOT_UNPACKABLE] * 2)
    _expect("a page of the image", guest.unpack(1), [RC_DONE])
    _expect("verifying a half", ultravisor.verify_img(guest.handle).rc, RC_NOT_COMPLETE)
    _expect("the other page", guest.unpack(2), [RC_DONE])
    _expect("verifying all", ultravisor.verify_img(guest.handle).rc, 1)
    without_pages = ImageHeader.seal(image[:0], 0)
    _expect("other parameters", ultravisor.set_sec_conf_params(guest.handle, without_pages).rc, 1)
    _expect("unpacking an image without pages", guest.unpack(0, 3), [RC_NOT_UNPACKABLE] * 2)


def _executed() -> None:
    """Condition code 0, rc 1, rrc 0; a handle where one is made; pages where some are cleaned."""
    ultravisor = Machine(FRAMES * PAGE_SIZE, uv_base_pages=1).ultravisor
    table = np.arange(20, 24)
    conf = ultravisor.create_sec_conf(np.array([30]), 4, 20 * PAGE_SIZE, table, np.arange(11, 15, dtype=np.uint32))
    cpu = ultravisor.create_sec_cpu(conf.handle, 0, np.array([31]))
    header = ImageHeader.seal(np.zeros((0, PAGE_SIZE), np.uint8), 0)
    ultravisor.import_pages(conf.handle, np.array([0, 1]))
    ultravisor.share_pages(conf.handle, np.array([1]), True)
    answers = [
        conf._replace(handle=0),
        cpu._replace(handle=0),
        ultravisor.set_sec_conf_params(conf.handle, header),
        ultravisor.verify_img(conf.handle),
        ultravisor.cpu_set_state(cpu.handle, True),
        ultravisor.cpu_set_state(cpu.handle, False),
        ultravisor.set_unshare_all(conf.handle),
        ultravisor.destroy_sec_cpu(cpu.handle),
        ultravisor.destroy_sec_conf(conf.handle),
    ]
    pages = [0, 0, 0, 0, 0, 0, 1, 0, 2]
    _expect("answers", answers, [Answer(0, 1, 0, 0, count) for count in pages])
    _expect("handles of two things", len({0, conf.handle, cpu.handle}), 3)


def _useless() -> None:
    ultravisor = Machine(FRAMES * PAGE_SIZE, uv_base_pages=1).ultravisor
    guest = _Guest(ultravisor)
    ultravisor.import_pages(guest.handle, np.array([0, 1]))
    for _ in range(2):
        ultravisor.export_pages(np.array([10, 11, 12]))
    counts = (ultravisor.issued["CONV_FROM_SEC_STOR"], ultravisor.useless["CONV_FROM_SEC_STOR"])
    _expect("exports, and those in vain", counts, (6, 4))
    _expect("kinds of calls in vain", list(ultravisor.useless), ["CONV_FROM_SEC_STOR"])


def _freed_twice() -> None:
    """Use after free is an error of the text, and found as that."""
    host = _host()
    process = host.create_process(private=0, shared_file=0, special=0)
    gmap = host.create_vm(process, [range(4)], 1).gmap
    gmap.free_table(gmap.table)
    try:
        gmap.free_table(gmap.table)
    except LifetimeError as error:
        _expect("the invariant that a table freed twice breaks", error.invariant, 17)
    else:
        raise NoticedError("a table was freed twice")


def _injected() -> None:
    """As whoever explores with faults injects them: the next call, of the named kind, and no other."""
    ultravisor = Machine(FRAMES * PAGE_SIZE, uv_base_pages=1).ultravisor
    frames = np.array([5])
    for refuse, stall, code in ((UNKNOWN_RC, False, UNKNOWN_RC), (0, True, RC_BUSY)):
        for named in ((), ("CONV_FROM_SEC_STOR",)):
            ultravisor.refuse, ultravisor.stall, ultravisor.fault_at = refuse, stall, named
            if named:
                _expect("a call that is not meant", ultravisor.destroy_pages(frames).rc.tolist(), [RC_DONE])
            answer = ultravisor.export_pages(frames)
            _expect("the call that is meant", (answer.rc.tolist(), answer.done, answer.noop), ([code], 0, 0))
            _expect("its counts", (answer.busy, answer.refused), (int(stall), int(not stall)))
            _expect("the next call", ultravisor.export_pages(frames).rc.tolist(), [RC_DONE])


class _Interrupted(Workers):
    """Workers in the middle of whose next piece of work something else happens."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], None] | None = None

    def add_up(self, *arguments: Any, **settings: Any) -> Any:
        """Something else first, once."""
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().add_up(*arguments, **settings)


def _at_once() -> None:
    workers = _Interrupted()
    firmware = Firmware(AbsoluteStorage.own(FRAMES, workers), 2, frozenset())
    ultravisor = Ultravisor(firmware, workers)
    ultravisor.init_uv(np.array([FRAMES - 1]))
    guest = _Guest(ultravisor)

    def destroyed_meanwhile() -> None:
        busy = ultravisor.destroy_sec_conf(guest.handle)
        _expect("destroying while another call works", busy, Answer(UVC_CC_BUSY, 0, 0, 0, 0))
        imported = ultravisor.import_pages(guest.handle, np.array([1])).rc.tolist()
        _expect("importing into what dies", imported, [UVC_RC_INV_GHANDLE])

    workers.meanwhile = destroyed_meanwhile
    _expect("importing a page", ultravisor.import_pages(guest.handle, np.array([0])).done, 1)
    workers.meanwhile = destroyed_meanwhile
    answer = ultravisor.destroy_sec_conf(guest.handle)
    _expect("destroying", (answer.cc, answer.rc, answer.pages), (0, 1, 1))
    _expect("destroying again", ultravisor.destroy_sec_conf(guest.handle).rc, UVC_RC_INV_GHANDLE)


def _places() -> None:
    machine = Machine(FRAMES * PAGE_SIZE, uv_base_pages=1, slots=2)
    guests = [_Guest(machine.ultravisor, first=8 + 4 * n, table=20 + 4 * n, donated=40 + n) for n in range(3)]
    _expect("three configurations in two places", [guest.rc for guest in guests], [1, 1, RC_NO_SLOT])
    if len({guest.handle for guest in guests}) != len(guests):
        raise NoticedError("two configurations have the same handle")
    _expect("destroying one", machine.ultravisor.destroy_sec_conf(guests[0].handle).rc, 1)
    again = _Guest(machine.ultravisor, first=8, table=20, donated=40)
    _expect("the place of one that is gone", again.rc, 1)
    if again.handle in {guest.handle for guest in guests}:
        raise NoticedError("a handle came back")


def _no_cipher() -> None:
    """As on a computer with AES instructions, and on one without."""
    has_gcm = sealing.HAS_AES256GCM
    try:
        for sealing.HAS_AES256GCM in (True, False):
            sealing.cipher_number("aegis256", False)
            _raises(CipherError, lambda: sealing.cipher_number("rot13", False))
            if sealing.HAS_AES256GCM:
                sealing.cipher_number("aes256gcm", False)
            else:
                _raises(CipherError, lambda: sealing.cipher_number("aes256gcm", False))
    finally:
        sealing.HAS_AES256GCM = has_gcm


def _large_image() -> None:
    """Of more pages than small numbers have."""
    machine, pages = Machine(4 * LARGE_IMAGE * PAGE_SIZE, uv_base_pages=1), np.arange(LARGE_IMAGE)
    image = np.zeros((LARGE_IMAGE, PAGE_SIZE), np.uint8)
    header, ultravisor = ImageHeader.seal(image, 0), machine.ultravisor
    machine.store(2 * LARGE_IMAGE * PAGE_SIZE, image.tobytes())
    made = ultravisor.create_sec_conf(
        np.array([8]), LARGE_IMAGE, 4 * PAGE_SIZE, np.arange(4, 8), (pages + 2 * LARGE_IMAGE + 1).astype(np.uint32)
    )
    _expect("parameters", ultravisor.set_sec_conf_params(made.handle, header).rc, 1)
    for half in np.array_split(pages, 2):
        _expect("verifying too early", ultravisor.verify_img(made.handle).rc, RC_NOT_COMPLETE)
        _expect("unpacking", ultravisor.unpack_pages(made.handle, half).done, half.size)
    _expect("verifying", ultravisor.verify_img(made.handle).rc, 1)
    machine.close()


def _slow_cipher() -> None:
    """A warning names the line that makes the machine, which is where something can be done about it."""
    warned = ("Machine(size, uv_base_pages=1)", "Machine.attach(mmap(-1, size), uv_base_pages=1)")
    known = {"Machine": Machine, "mmap": mmap, "size": FRAMES * PAGE_SIZE}
    has_aes, ciphers.HAS_AES = ciphers.HAS_AES, False
    try:
        for line in (*warned, "Machine(size, uv_base_pages=1, contents=False)"):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                eval(compile(line, line, "eval"), dict(known)).close()
            blamed = [each.filename for each in said if each.category is SlowCipherWarning]
            _expect(f"lines to blame for {line}", blamed, [line] if line in warned else [])
    finally:
        ciphers.HAS_AES = has_aes


def _bytes() -> None:
    """Eight and a tag for each page, and its two generations; without contents one, and nothing else (design, data)."""
    for contents, each in ((True, 8 + TAG_SIZE + 8), (False, 1)):
        machine = Machine(FRAMES * PAGE_SIZE, uv_base_pages=1, contents=contents)
        made = vault.firmware_of(machine.ultravisor).configurations[_Guest(machine.ultravisor).handle]
        _expect("bytes of 4 pages", made.records.nbytes + made.tags.nbytes + made.track.nbytes, 4 * each)


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise NoticedError(f"{what}: {found}, not {wanted}")
