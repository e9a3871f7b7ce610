"""The list of kernels and the list of twins are the same."""

import twins

from lazypv_kernels import (
    access,
    batches,
    claims,
    reading,
    references,
    rows,
    scan,
    seal,
    snapshots,
    sweep,
    tables,
    tracking,
)
from lazypv_kernels.compiled import KERNELS

ROOMS = (access, batches, claims, reading, references, rows, scan, seal, snapshots, sweep, tables, tracking)
ADDRESSES = {"record_address", "copy_words"}


def test_every_kernel_has_a_twin():
    """Design, style: a naive twin for every kernel that other rooms can call."""
    names = {kernel.__name__ for kernel in KERNELS if not kernel.__name__.startswith("_")}
    assert len(names) > 40
    assert {name for name in names - ADDRESSES if not hasattr(twins, name)} == set()


def test_every_kernel_releases_the_interpreter_lock():
    """Design: nogil kernels on our own threads; one that holds the lock stops all others."""
    assert all(kernel.targetoptions.get("nogil") for kernel in KERNELS)
