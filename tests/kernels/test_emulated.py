"""Kernels run on an emulated aarch64 do what their twins do: claims, streaming stores, vectors, exclusive loads."""

from __future__ import annotations

import numpy as np
import pytest
import twins

from lazypv_kernels.layout import MARK_SECURE, NS, SEC

from .emulated import ASSEMBLER, EMULATOR, LINKER, build, run
from .worlds import codes_and_counts, random_pte, random_world

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not EMULATOR, reason="no qemu-aarch64 (Debian: qemu-user or qemu-user-static)"),
    pytest.mark.skipif(
        not (ASSEMBLER and LINKER), reason="no aarch64-linux-gnu-ld (Debian: binutils-aarch64-linux-gnu)"
    ),
]
FRAMES = 200


def calls():
    """Each kernel's room, and arguments with every state, neighbours by eight, held frames, repeated ones."""
    rng = np.random.default_rng(5)
    world = random_world(rng, FRAMES, held=0.05)
    world.state[64:128], world.owner[64:128] = SEC, 1
    world.directory[:] = 0
    host = rng.choice(
        np.array([0, 1, MARK_SECURE | 1, 2, 62, 63], np.uint8), FRAMES, p=[0.01, 0.4, 0.5, 0.07, 0.01, 0.01]
    )
    pte = (np.arange(300) % FRAMES + 1).astype(np.uint32)
    pte[rng.random(300) < 0.03] = 0
    frames = np.concatenate([np.arange(FRAMES), rng.integers(0, FRAMES, 30)])
    donated = np.full(5, 4, np.uint8)
    scanned = (world.state & 7, world.owner, host)
    return {
        "give_back": (
            "sweep",
            [np.full((5, 4096), 0xAA, np.uint8), donated, np.full(5, 7, np.uint16), np.array([4, 0, 2])],
        ),
        "destroy_pages": (
            "sweep",
            [world.contents, world.state, world.owner, world.directory, 0xF01, frames, 3, 228, *codes_and_counts(230)],
        ),
        "claim": ("claims", [np.array([NS, SEC], np.uint8), 1]),
        "gather": ("references", [pte, 3, 300, host, 280, np.full(280, -9)]),
        "unmap": ("references", [pte, 3, 290, 250, np.full(250, -9)]),
        "map_pages": (
            "references",
            [random_pte(rng, FRAMES, 60), rng.integers(0, 60, 40), np.arange(40), 0, 40, np.zeros(40, np.uint8)],
        ),
        "settle": ("references", [host, np.arange(FRAMES), 0, 150, codes_and_counts(FRAMES)[0], True, True]),
        "count_frames": ("scan", [*scanned, SEC, 1, MARK_SECURE, 3, FRAMES]),
        "find_frames": ("scan", [*scanned, SEC, 1, MARK_SECURE, 3, FRAMES, np.full(90, -9)]),
        "census": ("scan", [*scanned[:2], 3, FRAMES, np.zeros((4, 8), np.int64)]),
        "find_free_run": ("scan", [np.where(rng.random(FRAMES) < 0.1, host, 0).astype(np.uint8), 5, 4, 17]),
    }


CALLS = calls()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with all of them."""
    folder = tmp_path_factory.mktemp("aarch64")
    build(folder, CALLS)
    return folder


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_does_on_aarch64_what_its_twin_does(programs, name):
    """Same answer, same arrays afterwards, to the byte."""
    _, arguments = CALLS[name]
    result, arrays = run(programs / name, arguments)
    theirs = [value.copy() if isinstance(value, np.ndarray) else value for value in arguments]
    answer = getattr(twins, name)(*theirs)
    expected = [value for value in theirs if isinstance(value, np.ndarray)]
    for mine, other in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(mine, other)
    if name == "claim":
        assert result[0] == answer
    elif answer is not None:
        values = answer if isinstance(answer, tuple) else (answer,)
        got = [int(each) for each in np.frombuffer(result, np.int64, len(values) - isinstance(values[-1], bool))]
        if isinstance(values[-1], bool):
            got.append(bool(result[8 * len(got)]))
        assert got == [each if isinstance(each, bool) else int(each) for each in values]
    changed = [
        not np.array_equal(mine, value)
        for mine, value in zip(arrays, (v for v in arguments if isinstance(v, np.ndarray)), strict=True)
    ]
    assert any(changed) or name.startswith(("count", "find_free"))
