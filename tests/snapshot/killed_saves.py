"""A process that saves and merges snapshots until it is killed: run by test_kills.py.

Its folder has a key and `prev.arrow`; it says "ready" before it begins.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import lazypv
from lazypv.snapshot import SnapshotKey
from lazypv.snapshot.rewrite import merge


def main(folder):
    key = SnapshotKey.load(folder / "key")
    host = lazypv.Host(lazypv.Machine("80MiB", threads=2))
    vm = host.restore(folder / "prev.arrow", key=key, allow_rollback=True)
    rng = np.random.default_rng()
    print("ready", flush=True)
    while True:
        pages = np.flatnonzero(rng.random(vm.pages) < 0.5)
        vm.write_pages(pages, rng.integers(0, 256, (pages.size, 4096)).astype(np.uint8))
        vm.snapshot(folder / "new.arrow", key=key, parent=folder / "prev.arrow", allow_fork=True)
        merge([folder / "new.arrow"], folder / "merged.arrow", key)
        print("round", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
