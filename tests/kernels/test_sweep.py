"""Sweeps against their twins: destroy, clean, donate, give back, unshare."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import twins
from twins import on_lines

from lazypv_kernels import claims, sweep
from lazypv_kernels.layout import ASCE, DIR_CPUS, DIR_WORDS, DON_CONF, DON_CPU, NS, PAGE_SIZE, RC_DONE, SEC

from .worlds import (
    agree,
    codes_and_counts,
    every_size,
    no_tracking,
    random_frames,
    random_owner,
    random_state,
    random_world,
    seeds,
    with_and_without_contents,
)


@with_and_without_contents
@every_size
@seeds(5)
def test_destroying_is_its_twin(seed, size, contents):
    """Semantics 2.3, invariant 7; every state, held and donated frames, frames twice, owners with and without CPUs."""
    rng = np.random.default_rng(seed)
    world = random_world(rng, size, contents)
    frames = random_frames(rng, size, 2 * size)
    agree(
        sweep.destroy_pages, twins.destroy_pages, world.contents, world.state, world.owner, world.directory, 0xF01,
        frames, 0, frames.size, *codes_and_counts(frames.size),
    )  # fmt: skip


@with_and_without_contents
@pytest.mark.parametrize("size", [8, 9, 300, 1100])
@seeds(4)
def test_destroying_runs_of_neighbours_is_its_twin(seed, size, contents):
    """Eight at once; strangers of every state among them, other owners, owners with CPUs, a last part of a run."""
    rng = np.random.default_rng(seed)
    world = random_world(rng, size, contents)
    alike = rng.random(size) < 0.97
    world.state[alike], world.owner[alike] = SEC, 1 + seed % 3
    frames = (np.arange(size) + seed) % size
    agree(
        sweep.destroy_pages, twins.destroy_pages, world.contents, world.state, world.owner, world.directory, 0xF01,
        frames, 0, frames.size, *codes_and_counts(frames.size),
    )  # fmt: skip


@pytest.mark.parametrize("pages", [1, sweep.CHUNK - 1, sweep.CHUNK, sweep.CHUNK + 1, 3 * sweep.CHUNK + 7])
def test_every_byte_of_every_destroyed_page_is_zero(pages):
    """Invariant 30: `SEC -> NS` clears; all of the page, around every border of a chunk."""
    contents = on_lines(np.full((pages, PAGE_SIZE), 0xAA, np.uint8))
    state, owner = np.full(pages, SEC, np.uint8), np.ones(pages, np.uint16)
    rc, counts = codes_and_counts(pages)
    directory = np.zeros(2 * DIR_WORDS, np.uint64)
    sweep.destroy_pages(contents, state, owner, directory, 0xF01, np.arange(pages)[::-1].copy(), 0, pages, rc, counts)
    assert not contents.any()
    assert not state.any()
    assert not owner.any()
    assert (rc == RC_DONE).all()
    assert counts.tolist() == [pages, 0, 0, 0]


def test_a_page_whose_owner_has_a_cpu_stays_as_it_is():
    """Invariant 7: refused, page unchanged."""
    contents, state, owner = np.full((1, PAGE_SIZE), 0xAA, np.uint8), np.full(1, SEC, np.uint8), np.ones(1, np.uint16)
    rc, counts = codes_and_counts(1)
    directory = np.zeros(2 * DIR_WORDS, np.uint64)
    directory[DIR_WORDS + DIR_CPUS] = 1
    sweep.destroy_pages(contents, state, owner, directory, 0xF01, np.zeros(1, np.int64), 0, 1, rc, counts)
    assert (rc[0], state[0], owner[0]) == (0xF01, SEC, 1)
    assert (contents == 0xAA).all()


@with_and_without_contents
@every_size
@seeds(4)
def test_cleaning_a_configuration_is_its_twin(seed, size, contents):
    """Semantics 2.2, DESTROY_SEC_CONF: guest pages and donated storage cleared, the mark gone, held frames left."""
    rng = np.random.default_rng(seed)
    world = random_world(rng, size, contents)
    first = int(rng.integers(0, size + 1))
    agree(
        sweep.clean_configuration, twins.clean_configuration, world.contents, world.state, world.owner, 2, first, size,
        np.zeros(4, np.int64),
    )  # fmt: skip


@every_size
@seeds(8)
def test_donated_storage_is_taken_whole_or_not_at_all(seed, size):
    """Semantics 2.3: all of it non-secure, unmarked, and nothing twice; else nothing changes hands."""
    rng = np.random.default_rng(seed)
    state = random_state(rng, size)
    state[rng.random(size) < 0.8] = NS
    owner = random_owner(rng, state)
    frames = random_frames(rng, size, min(size, 1 + seed))
    agree(sweep.donate, twins.donate, state, owner, frames, DON_CONF, 3)
    free = np.flatnonzero(state == NS)
    assert agree(sweep.donate, twins.donate, state, owner, free, ASCE, 3)[0] == -1


@with_and_without_contents
@seeds(3)
def test_donated_storage_comes_back_cleared(seed, contents):
    """Semantics 2.3, DESTROY_SEC_CPU: CPU storage cleared and returned."""
    rng = np.random.default_rng(seed)
    world = random_world(rng, 30, contents)
    frames = rng.permutation(30)[:7]
    world.state[frames], world.owner[frames] = DON_CPU, 2
    agree(sweep.give_back, twins.give_back, world.contents, world.state, world.owner, frames)


@seeds(3)
def test_a_table_loses_its_mark_and_nothing_else(seed):
    """Semantics 2.1: the table is the host's own page."""
    rng = np.random.default_rng(seed)
    state = random_state(rng, 30)
    frames = rng.permutation(30)[:4]
    state[frames] = ASCE
    agree(sweep.unmark, twins.unmark, state, random_owner(rng, state), frames)


@pytest.mark.parametrize("hold", ["touched", "claimed"])
@pytest.mark.parametrize("page_state", [DON_CPU, ASCE])
def test_a_frame_that_somebody_looks_at_is_returned_when_he_has_let_go(page_state, hold):
    """Design: configuration calls respect claims too; else the one who lets go writes into a state that is not his."""
    contents, frames = on_lines(np.ones((2, PAGE_SIZE), np.uint8)), np.arange(2)
    state, owner = np.full(2, page_state, np.uint8), np.ones(2, np.uint16)
    seen = claims.touch(state, 1) if hold == "touched" else claims.claim(state, 1)
    give_back = page_state == DON_CPU
    returning = threading.Thread(
        target=sweep.give_back if give_back else sweep.unmark,
        args=(contents, state, owner, frames) if give_back else (state, owner, frames),
    )
    returning.start()
    returning.join(0.1)
    assert returning.is_alive()
    assert owner[1] == 1
    if hold == "touched":
        claims.let_go(state, 1)
    else:
        claims.publish(state, 1, seen)
    returning.join()
    assert not state.any()
    assert not owner.any()
    assert contents.any() == (not give_back)


@every_size
@seeds(4)
def test_unsharing_all_is_its_twin(seed, size):
    """Semantics 2.3, SET_UNSHARE_ALL: every shared page of the configuration, nobody else's."""
    rng = np.random.default_rng(seed)
    state = random_state(rng, size)
    agree(
        sweep.unshare_all, twins.unshare_all, state, random_owner(rng, state), np.zeros(size, np.uint32), no_tracking(),
        2, 0, size, np.zeros(4, np.int64),
    )  # fmt: skip
