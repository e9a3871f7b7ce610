"""Every declared benchmark once, very small: figures that are finite, and work that was really done. No timing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lazypv.errors import MemoryShortageError, ModelError
from lazypv.ultravisor import vault
from lazypv_bench.harness import Settings
from lazypv_bench.limits import _copier, _encrypt, _memset, _stream
from lazypv_bench.rig import Rig
from lazypv_bench.suite import REGISTRY, measure_alone, run
from lazypv_bench.walks import destroy_beside_guest, destroy_walk512
from lazypv_kernels.layout import KEY_SIZE, MARK_SECURE, NS, PAGE_SIZE, SEC

from .fakes import silent

SMALL = Settings(32 << 20, pairs=1)


@pytest.fixture
def rig():
    with Rig(SMALL.size) as rig:
        yield rig


@pytest.mark.parametrize("name", REGISTRY)
def test_a_small_run_of_every_benchmark_gives_finite_figures(name):
    """Each checks itself that its work was done: `finish` raises otherwise."""
    result = measure_alone(REGISTRY[name], SMALL, silent)
    figures = [result.ratio, result.low, result.high, *result.rivals.values()]
    assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    assert math.isfinite(result.value)
    assert result.value >= 0
    assert result.rivals.keys() == {rival.__name__.replace("_", " ") for rival in REGISTRY[name].rivals}


def test_the_suite_is_the_one_that_was_agreed():
    """Names, directions and bars: what a later change is compared with."""
    bars = {name: (declared.better, declared.bar) for name, declared in REGISTRY.items()}
    assert bars == {
        "destroy.full": ("higher", 0.85),
        "destroy.half": ("higher", 0.75),
        "destroy.checkerboard": ("higher", 0.75),
        "destroy.tenth": ("higher", 0.75),
        "destroy.give_back": ("higher", None),
        "destroy.walk32": ("higher", 0.6),
        "destroy.walk512": ("higher", 0.75),
        "destroy.walk4096": ("higher", 0.8),
        "destroy.walk32.beside": ("higher", None),
        "destroy.walk512.beside": ("higher", None),
        "destroy.beside_guest": ("higher", 0.5),
        "export": ("higher", 0.9),
        "import": ("higher", 0.85),
        "scaling.destroy": ("higher", 0.9),
        "scaling.export": ("higher", 0.9),
        "scan.1tib": ("higher", 0.6),
        "guest.throttled": ("higher", 0.8),
        "metadata": ("lower", 12),
        "downtime.growth": ("lower", 1.15),
        "downtime.growth.eager": ("lower", None),
        "shutdown.lazy": ("higher", 20),
        "boot.image": ("higher", 0.5),
        "snapshot.save": ("higher", 0.8),
        "snapshot.save.in-memory": ("higher", 0.8),
        "snapshot.restore": ("higher", 0.8),
        "snapshot.restore.in-memory": ("higher", 0.8),
        "snapshot.dirty": ("lower", 0.05),
        "snapshot.first-page": ("lower", None),
        "startup.help": ("lower", 5),
        "explore.steps": ("higher", None),
        "explore.pruning": ("lower", None),
        "explore.sleeping": ("lower", None),
    }
    assert all(declared.summary for declared in REGISTRY.values())
    assert [name for name, declared in REGISTRY.items() if declared.bar_of == "value"] == ["metadata"]


def test_nothing_is_measured_if_one_benchmark_needs_more_memory_than_there_is():
    """It says which, and what to do."""
    with pytest.raises(MemoryShortageError, match=r"downtime\.growth .*--size"):
        run([REGISTRY["startup.help"], REGISTRY["downtime.growth"]], Settings(1 << 50), None)


# --- walks -------------------------------------------------------------------------------------------------------


def state_and_mark(rig):
    """Page state, and what the host has marked, of every frame."""
    firmware = vault.firmware_of(rig.machine.ultravisor)
    return firmware.state, rig.machine.frames.byte & MARK_SECURE


def test_a_walk_finds_secure_pages_and_leaves_none(rig):
    """The pages are those of the whole guest, and their bytes are zero afterwards."""
    work = destroy_walk512(rig)
    pages = SMALL.size // PAGE_SIZE
    work.prepare()
    state, mark = state_and_mark(rig)
    assert np.count_nonzero(state == SEC) == np.count_nonzero(mark) == pages
    work.contents[:] = 0xAB
    work.run()
    state, mark = state_and_mark(rig)
    assert np.count_nonzero(state == SEC) == np.count_nonzero(mark) == 0
    assert not work.contents.any()
    assert work.bytes == pages * PAGE_SIZE
    assert 0 <= work.bytes - work.contents.nbytes <= 8 * PAGE_SIZE
    work.finish()


def test_a_walk_that_leaves_a_page_is_no_result(rig):
    """Here nobody has walked at all, and then over all pages but one."""
    work = destroy_walk512(rig)
    work.prepare()
    state, _ = state_and_mark(rig)
    own = np.flatnonzero(state == SEC)
    with pytest.raises(ModelError, match="8192 of 8192"):
        work.finish()
    work.run()
    work.finish()
    state[own[5]] = SEC
    with pytest.raises(ModelError, match="1 of 8192"):
        work.finish()


def test_beside_a_guest_the_guest_reads_and_keeps_its_pages(rig):
    """The neighbour is protected, makes progress in every run, and the walk touches nothing of it."""
    work = destroy_beside_guest(rig)
    state, _ = state_and_mark(rig)
    own = np.flatnonzero(state == SEC)
    assert own.size
    for _ in range(2):
        work.prepare()
        work.run()
        work.finish()
    assert np.array_equal(np.flatnonzero(state == SEC), own)
    assert np.count_nonzero(state == NS) > SMALL.size // PAGE_SIZE
    assert work.value() >= 0


# --- destroy, the cipher, scans ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["destroy.full", "destroy.half", "destroy.checkerboard", "destroy.tenth"])
def test_what_is_destroyed_is_as_much_as_is_said_and_really_zero(name, rig):
    """Fragments as named; one byte that stays is no result, nor is a page that stays somebody's."""
    work = REGISTRY[name].subject(rig)
    pages = SMALL.size // PAGE_SIZE
    share = {"full": 1.0, "half": 0.5, "checkerboard": 0.5, "tenth": 0.1}[name.split(".")[1]]
    assert work.bytes == work.contents.nbytes
    assert work.bytes / SMALL.size == pytest.approx(share, abs=0.02)
    firmware = vault.firmware_of(rig.machine.ultravisor)
    work.prepare()
    own = np.flatnonzero(firmware.state == SEC)
    assert own.size == work.bytes // PAGE_SIZE <= pages
    assert firmware.storage.contents[own].any(axis=1).all()
    work.run()
    firmware.storage.contents[own[-1], 4095] = 1
    with pytest.raises(ModelError, match=r"1 of .* not zero"):
        work.finish()
    work.prepare()
    work.run()
    firmware.state[own[3]] = SEC
    with pytest.raises(ModelError, match=r"1 of .* still somebody's"):
        work.finish()
    firmware.state[own[3]] = NS
    work.finish()


@pytest.mark.parametrize("name", ["export", "import"])
def test_what_is_sealed_or_opened_is_looked_at(name, rig):
    """All pages of the guest; one that comes back changed is no result."""
    work = REGISTRY[name].subject(rig)
    assert work.bytes == work.contents.nbytes == SMALL.size
    for _ in range(2):
        work.prepare()
        work.run()
        work.finish()
    work.prepare()
    work.run()
    firmware = vault.firmware_of(rig.machine.ultravisor)
    pages = np.flatnonzero((firmware.state == SEC) if name == "import" else (firmware.guest_page != 0))
    firmware.storage.contents[pages[7], 100] ^= 1
    with pytest.raises(ModelError):
        work.finish()


def test_a_scan_that_misses_a_frame_is_no_result(rig):
    work = REGISTRY["scan.1tib"].subject(rig)
    work.run()
    work.finish()
    state = work.columns[0]
    work.columns[2][np.flatnonzero(work.columns[2] & MARK_SECURE)[0]] = 0
    work.run()
    with pytest.raises(ModelError, match="has not found"):
        work.finish()
    assert (state == SEC).all()


# --- ends and beginnings of guests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "deferred"), [("downtime.growth", True), ("downtime.growth.eager", False), ("shutdown.lazy", True)]
)
def test_an_end_is_the_reports_downtime_and_leaves_the_machine_free(name, deferred):
    """Lazy ends put work off, eager ones do not; then all of it is done."""
    declared = REGISTRY[name]
    with Rig(declared.guest_size(SMALL.size)) as rig:
        work = declared.subject(rig)
        free = rig.machine.frames.free()
        work.prepare()
        guests = work.run.__self__
        seconds = work.run()
        assert seconds == guests._report.downtime_s > 0
        assert guests._report.deferred is deferred
        assert guests._report.owned_pages >= work.bytes // PAGE_SIZE
        assert guests._report.left_below_limit == 0
        work.finish()
        assert rig.machine.frames.free() == free


def test_a_boot_fills_the_guest_with_the_image():
    """Its pages are secure while it lives, and free before the limit's turn."""
    declared = REGISTRY["boot.image"]
    with Rig(declared.guest_size(SMALL.size)) as rig:
        work = declared.subject(rig)
        free = rig.machine.frames.free()
        work.prepare()
        work.run()
        state, _ = state_and_mark(rig)
        assert np.count_nonzero(state == SEC) == work.bytes // PAGE_SIZE
        work.finish()
        assert np.count_nonzero(state == SEC) == 0
        assert rig.machine.frames.free() == free


# --- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clear", [_memset, _stream])
def test_both_fills_clear_their_rows_and_no_others(rig, clear):
    """A limit that did less would be too fast, one that did more would break its neighbour."""
    contents = destroy_walk512(rig).contents[:16]
    contents[:] = 7
    clear(contents, 3, 11)
    assert not contents[3:11].any()
    assert (contents[:3] == 7).all()
    assert (contents[11:] == 7).all()


def test_a_copy_repeats_its_source():
    """As a guest does that is larger than its image; also from the middle on."""
    source = np.arange(3, dtype=np.uint8)[:, None].repeat(PAGE_SIZE, axis=1)
    target = np.full((8, PAGE_SIZE), 9, np.uint8)
    _copier(source)(target, 1, 8)
    assert target[:, 0].tolist() == [9, 1, 2, 0, 1, 2, 0, 1]


def test_the_cipher_is_the_real_one_and_leaves_pages_alone():
    """What is left in the scratch page is the last page, sealed as PyNaCl seals it."""
    from nacl import bindings

    pages = np.arange(2 * PAGE_SIZE, dtype=np.uint8).reshape(2, PAGE_SIZE)
    before = pages.copy()
    key, nonce, scratch = np.arange(KEY_SIZE, dtype=np.uint8), np.zeros(4, np.uint64), np.empty(4128, np.uint8)
    _encrypt(pages, 0, 2, key, nonce, scratch)
    assert np.array_equal(pages, before)
    sealed = bindings.crypto_aead_aegis256_encrypt(before[1].tobytes(), None, nonce.tobytes(), key.tobytes())
    assert scratch.tobytes() == sealed
