"""Whenever a save or a merge is killed, the previous snapshot opens, and the new one is whole or absent.

`LAZYPV_KILLS` sets how many runs are killed (200 for the whole run).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lazypv.snapshot import Ledger, SnapshotKey
from lazypv.snapshot.errors import DamagedSnapshotError
from lazypv.snapshot.rewrite import recover, unfinished_beside
from lazypv.snapshot.verify import verify

from .conftest import running_guest

KILLS = int(os.environ.get("LAZYPV_KILLS", "4"))
SCRIPT = Path(__file__).parent / "killed_saves.py"


@pytest.fixture
def folder(host, tmp_path):
    """A key, and a snapshot of a guest of 8 MiB."""
    key = SnapshotKey.create(tmp_path / "key")
    running_guest(host, 2048).snapshot(tmp_path / "prev.arrow", key=key)
    return tmp_path


def run_and_kill(folder, seconds):
    """Let it save and merge for so long after it is ready; then SIGKILL."""
    process = subprocess.Popen([sys.executable, SCRIPT, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        assert process.poll() is None, "it ended by itself"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def check_after_a_kill(folder, key, before):
    """What must hold; how many unfinished files there were, and how many complete batches in them."""
    assert verify(folder / "prev.arrow", key).root == before.root
    entry = Ledger.beside(key).known()[before.guest_id]
    roots = {before.root}
    for name in ("new.arrow", "merged.arrow"):
        if (folder / name).exists():
            told = verify(folder / name, key)
            assert not told.incomplete
            assert told.ledger in ("newest", "newer", "second child" if name == "merged.arrow" else "newest", "older")
            roots.add(told.root)
    if (folder / "new.arrow").exists():
        # The ledger is written after the file: it knows this one, or an older one of this guest.
        newest = verify(folder / "new.arrow", key)
        assert newest.ledger in ("newest", "newer")
    else:
        assert entry.root == before.root
    batches = 0
    left = [*unfinished_beside(folder / "new.arrow"), *unfinished_beside(folder / "merged.arrow")]
    for path in left:
        try:
            found = recover(path, folder / "recovered.arrow", key)
        except DamagedSnapshotError:
            pass  # it was killed before its first batch was there
        else:
            assert verify(folder / "recovered.arrow", key, alone=True).incomplete
            batches += found.batches
        path.unlink()
    for stray in folder.glob(".key.ledger.*"):
        stray.unlink()
    return len(left), batches


def test_a_killed_save_or_merge_harms_nothing_that_was_there(folder):
    """And complete batches of what it leaves are recoverable."""
    key = SnapshotKey.load(folder / "key")
    before = verify(folder / "prev.arrow", key)
    unfinished = complete = 0
    for _ in range(KILLS):
        run_and_kill(folder, random.uniform(0.0, 0.4))
        left, batches = check_after_a_kill(folder, key, before)
        unfinished, complete = unfinished + left, complete + batches
        for name in ("new.arrow", "merged.arrow"):
            if random.random() < 0.5:
                (folder / name).unlink(missing_ok=True)
        if not (folder / "new.arrow").exists():
            # The snapshot that the ledger knows is gone: begin again from the one before.
            (folder / "key.ledger").unlink()
            Ledger.beside(key).enter(before.guest_id, before.sequence, before.root)
    if KILLS >= 50:
        assert unfinished > 0
        assert complete > 0
