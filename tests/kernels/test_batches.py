"""Batches of a walk in one piece against single calls one after the other, and what ends them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import twins

from lazypv_kernels import batches
from lazypv_kernels.layout import DIR_WORDS, MARK_SECURE, NS, SEC

from .worlds import agree, codes_and_counts, random_pte, random_world, seeds, with_and_without_contents


def flags():
    return np.zeros(1, np.uint8), np.zeros(1, np.uint8)


@with_and_without_contents
@pytest.mark.parametrize("refused_stay", [True, False])
@pytest.mark.parametrize("batch", [1, 7, 32])
@seeds(6)
def test_batches_in_one_piece_are_their_twin(seed, batch, refused_stay, contents):
    """Every state, held frames, owners with CPUs, absent entries, frames of the side table; stale entries."""
    rng = np.random.default_rng(seed)
    size = 200
    world = random_world(rng, size, contents, held=0.0 if seed % 2 else 0.02)
    alike = rng.random(size) < 0.9
    world.state[alike], world.owner[alike] = SEC, 1
    host = np.full(size, MARK_SECURE | 1, np.uint8)
    odd = rng.random(size) < 0.01
    host[odd] = rng.choice(np.array([0, 62, 63], np.uint8), np.count_nonzero(odd))
    pte = random_pte(rng, size, 150) if seed % 3 else (np.arange(150) + 1 + seed).astype(np.uint32)
    for limit in (0, 40, 1000):
        agree(
            batches.destroy_batches, twins.destroy_batches, world.contents, world.state, world.owner, world.directory,
            0xF01, host, pte, seed, 150, limit, seed % 2 == 0, refused_stay, *flags(), np.full(batch, -9),
            *codes_and_counts(batch), np.zeros(3, np.int64),
        )  # fmt: skip


@pytest.mark.parametrize("which", [0, 1])
def test_no_batch_begins_behind_a_flag(which):
    rng = np.random.default_rng(1)
    world = random_world(rng, 40)
    both = flags()
    both[which][0] = 1
    agree(
        batches.destroy_batches, twins.destroy_batches, world.contents, world.state, world.owner, world.directory,
        0xF01, np.full(40, 1, np.uint8), np.arange(1, 41, dtype=np.uint32), 0, 40, 99, True, True, *both,
        np.full(8, -9), *codes_and_counts(8), np.zeros(3, np.int64),
    )  # fmt: skip


@pytest.mark.parametrize("which", [0, 1])
def test_a_flag_that_is_raised_in_the_middle_ends_the_run_behind_a_whole_batch(which):
    """Design, coalescing: what is begun is finished, references and marks included; nothing further is touched."""
    pages, batch, stuck = 4096, 32, 1000
    state, owner = np.full(pages, SEC, np.uint8), np.ones(pages, np.uint16)
    host = np.full(pages, MARK_SECURE | 1, np.uint8)
    host[stuck] = MARK_SECURE  # frozen: whoever gathers it waits
    both = flags()
    answer = []
    tally = np.zeros(3, np.int64)

    def run():
        answer.append(
            batches.destroy_batches(
                np.zeros((0, 4096), np.uint8), state, owner, np.zeros(2 * DIR_WORDS, np.uint64), 0xF01, host,
                np.arange(1, pages + 1, dtype=np.uint32), 0, pages, pages, True, True, *both, np.zeros(batch, np.int64),
                *codes_and_counts(batch), tally,
            )
        )  # fmt: skip

    running = threading.Thread(target=run)
    running.start()
    begun = stuck // batch * batch
    while np.count_nonzero(state == NS) < begun:
        time.sleep(0.001)
    both[which][0] = 1
    host[stuck] = MARK_SECURE | 1
    running.join()
    done = begun + batch
    assert answer == [(batches.WHOLE, done, 0, 0)]
    assert tally.tolist() == [done // batch, done, batch]
    assert (state[:done] == NS).all()
    assert (state[done:] == SEC).all()
    assert (host[:done] == 1).all()
    assert (host[done:] == MARK_SECURE | 1).all()
