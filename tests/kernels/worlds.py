"""Random arguments for kernels, and the comparison of a kernel with its twin."""

from __future__ import annotations

import numpy as np
import pytest
from twins import World, on_lines

from lazypv_kernels.layout import (
    ASCE,
    CLAIMED,
    DIR_CPUS,
    DIR_WORDS,
    DON_UV,
    NS,
    PAGE_SIZE,
    RECORD_CLAIMED,
    TOUCH_ONE,
)

SLOTS = 3
GUEST_PAGES = 12
SIZES = (0, 1, 2, 7, 65, 200)
CODES = np.array([0x10A, 0xF06, 0xF02, 0xF03, 0xF04, 0xF07], np.uint16)

every_size = pytest.mark.parametrize("size", SIZES)
with_and_without_contents = pytest.mark.parametrize("contents", [True, False], ids=["contents", "states only"])


def seeds(count):
    """The same test on `count` random inputs."""
    return pytest.mark.parametrize("seed", range(count))


def agree(kernel, twin, *arguments):
    """Run both on the same arguments: same answer, same arrays afterwards. Gives the kernel's answer and arguments."""
    ours, theirs = _copies(arguments), _copies(arguments)
    answer, expected = kernel(*ours), twin(*theirs)
    assert plain(answer) == plain(expected)
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, other, err_msg=f"argument {index} of {twin.__name__}")
    return answer, ours


def plain(answer):
    """An answer as Python numbers."""
    if isinstance(answer, tuple):
        return tuple(plain(part) for part in answer)
    return None if answer is None else int(answer)


def _copies(arguments):
    return [_copy(argument) if isinstance(argument, np.ndarray) else argument for argument in arguments]


def _copy(array):
    page = array.ndim == 2 and array.shape[1] * array.itemsize == PAGE_SIZE
    return on_lines(array) if page else array.copy()


def random_state(rng, size, held=0.2):
    """Every page state, plain, claimed or touched by one to fifteen."""
    state = rng.integers(NS, ASCE + 1, size).astype(np.uint8)
    touched, claimed = rng.random(size) < held / 2, rng.random(size) < held / 2
    state[touched] += (rng.integers(1, 16, np.count_nonzero(touched)) * TOUCH_ONE).astype(np.uint8)
    state[claimed & ~touched] |= CLAIMED
    return state


def random_owner(rng, state):
    """Owners that fit: nobody for non-secure frames and the Ultravisor's own, somebody for all others."""
    owner = rng.integers(1, SLOTS + 1, state.size).astype(np.uint16)
    owner[np.isin(state & 7, (NS, DON_UV))] = 0
    return owner


def random_pte(rng, frames, pages=GUEST_PAGES):
    """An address translation in which a third of the entries are absent and frames may stand twice."""
    pte = rng.integers(1, max(frames, 1) + 1, pages).astype(np.uint32)
    pte[(rng.random(pages) < 0.3) | (frames == 0)] = 0
    return pte


def random_words(rng, rows):
    """uint64[rows, 512]"""
    return rng.integers(0, 2**64, (rows, PAGE_SIZE // 8), np.uint64)


def no_tracking():
    """A directory of configurations whose stores nobody notes."""
    return np.zeros((SLOTS + 1) * DIR_WORDS, np.uint64)


def random_frames(rng, size, count):
    """int64[count] frame numbers in any order, most of them several times; none in an empty machine."""
    return rng.integers(0, size, count) if size else np.empty(0, np.int64)


def random_world(rng, size, contents=True, held=0.2):
    """Frames in every state and records in every state, some held by others."""
    state = random_state(rng, size, held)
    kind = np.uint64 if contents else np.uint8
    records = [rng.integers(0, 4, GUEST_PAGES).astype(kind) for _ in range(SLOTS + 1)]
    for record in records:
        if contents:
            record |= rng.integers(0, 50, GUEST_PAGES).astype(kind) << np.uint64(3)
        record[rng.random(GUEST_PAGES) < held / 2] |= kind(RECORD_CLAIMED)
    directory = np.zeros((SLOTS + 1) * DIR_WORDS, np.uint64)
    directory[[slot * DIR_WORDS + DIR_CPUS for slot in range(1, SLOTS + 1)]] = rng.integers(0, 2, SLOTS)
    return World(
        state=state,
        owner=random_owner(rng, state),
        guest_page=rng.integers(0, GUEST_PAGES, size).astype(np.uint32),
        contents=on_lines(rng.integers(0, 256, (size if contents else 0, PAGE_SIZE)).astype(np.uint8)),
        keys=rng.integers(0, 256, (SLOTS + 1, 32)).astype(np.uint8),
        records=records,
        tags=[rng.integers(0, 256, (GUEST_PAGES if contents else 0, 32)).astype(np.uint8) for _ in range(SLOTS + 1)],
        directory=directory,
    ).point()


def assert_same_world(ours, theirs):
    """Everything that a kernel may have changed."""
    for mine, other in zip(ours.seen(), theirs.seen(), strict=True):
        np.testing.assert_array_equal(mine, other)


def codes_and_counts(size):
    """What a bulk kernel writes its answers to; 0xdead where it wrote none."""
    return np.full(size, 0xDEAD, np.uint16), np.zeros(4, np.int64)
