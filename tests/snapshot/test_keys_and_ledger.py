"""Key files, and the ledger that refuses what is older."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from lazypv.errors import IntegrityError, UsageError
from lazypv.snapshot import Ledger, SnapshotKey
from lazypv.snapshot.errors import KeyFileError, RollBackError
from lazypv.snapshot.keys import FileKeys
from lazypv.snapshot.store import open_source
from lazypv.snapshot.verify import verify

from .conftest import change, end


def test_a_key_file_is_its_owners_alone(tmp_path):
    SnapshotKey.create(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    for mode in (0o640, 0o604, 0o660, 0o700 | 0o001):
        os.chmod(tmp_path / "key", mode)
        with pytest.raises(KeyFileError, match="0600"):
            SnapshotKey.load(tmp_path / "key")
    os.chmod(tmp_path / "key", 0o400)
    SnapshotKey.load(tmp_path / "key")


def test_a_key_is_never_written_over_a_file(tmp_path):
    (tmp_path / "key").write_text("something")
    with pytest.raises(KeyFileError, match="already"):
        SnapshotKey.create(tmp_path / "key")
    assert (tmp_path / "key").read_text() == "something"


@pytest.mark.parametrize("text", ["", "lazypv-key-1 ", "lazypv-key-1 abcd", "hello", "lazypv-key-1 " + "g" * 64])
def test_what_is_no_key_file_is_refused_without_being_shown(tmp_path, text):
    (tmp_path / "key").write_text(text)
    os.chmod(tmp_path / "key", 0o600)
    with pytest.raises(KeyFileError) as found:
        SnapshotKey.load(tmp_path / "key")
    assert found.value.exit_status == 2
    assert "gggg" not in str(found.value)


def test_a_key_shows_itself_nowhere(tmp_path, vm):
    key = SnapshotKey.create(tmp_path / "key")
    secret = (tmp_path / "key").read_text().split()[1]
    file_keys = FileKeys(key, bytes(32))
    shown = repr(key) + str(key) + repr(file_keys) + repr(Ledger.beside(key))
    assert secret not in shown
    assert file_keys.root.hex() not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)
    vm.snapshot(tmp_path / "a.arrow", key=key)
    written = (tmp_path / "a.arrow").read_bytes() + (tmp_path / "key.ledger").read_bytes()
    assert bytes.fromhex(secret) not in written
    assert secret.encode() not in written


def test_no_plain_page_of_a_secure_guest_is_in_its_snapshot(host, vm, key, tmp_path):
    vm.write_pages(np.array([9]), np.full((1, 4096), 0xA7, np.uint8))
    vm.snapshot(tmp_path / "a.arrow", key=key)
    assert b"\xa7" * 16 not in (tmp_path / "a.arrow").read_bytes()


def test_every_file_has_keys_of_its_own(key):
    one, other = FileKeys(key, bytes(32)), FileKeys(key, bytes(31) + b"\1")
    everything = [one.rows.tobytes(), one.batches.tobytes(), one.root, one.state]
    everything += [other.rows.tobytes(), other.batches.tobytes(), other.root, other.state]
    assert len(set(everything)) == 8


# --- roll-back ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two(host, vm, key, tmp_path):
    """A snapshot, and one that builds on it."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    change(vm, [1, 2])
    vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    return tmp_path / "a.arrow", tmp_path / "b.arrow"


def test_an_older_snapshot_is_refused_unless_that_is_asked_for(host, vm, key, two):
    with pytest.raises(RollBackError, match=r"number 2 .* this is number 1; --allow-rollback") as found:
        host.restore(two[0], key=key)
    assert found.value.exit_status == 4
    assert host.check() == []
    other = host.restore(two[0], key=key, allow_rollback=True)
    newest = host.restore(two[1], key=key)
    end(host, vm, other, newest)


def test_an_override_leaves_the_ledger_as_it_is(host, key, two):
    before = key.path.with_name("guest.key.ledger").read_bytes()
    host.restore(two[0], key=key, allow_rollback=True)
    assert key.path.with_name("guest.key.ledger").read_bytes() == before


def test_a_second_child_of_the_same_parent_is_refused_unless_that_is_asked_for(host, vm, key, tmp_path, two):
    other = host.restore(two[0], key=key, allow_rollback=True)
    change(other, [5])
    with pytest.raises(RollBackError, match="second child"):
        other.snapshot(tmp_path / "c.arrow", key=key, parent=two[0])
    assert not (tmp_path / "c.arrow").exists()
    saved = other.snapshot(tmp_path / "c.arrow", key=key, parent=two[0], allow_fork=True)
    assert "number 2" in saved.overridden
    assert saved.sequence == 3
    with pytest.raises(RollBackError):
        host.restore(two[1], key=key)
    end(host, vm, other)


def test_a_full_save_of_a_guest_that_was_rolled_back_is_a_second_child_too(host, key, tmp_path, two):
    other = host.restore(two[0], key=key, allow_rollback=True)
    with pytest.raises(RollBackError):
        other.snapshot(tmp_path / "c.arrow", key=key)
    assert other.snapshot(tmp_path / "c.arrow", key=key, allow_fork=True).sequence == 3


def test_a_snapshot_that_is_newer_than_the_ledger_is_accepted_and_entered(host, vm, key, tmp_path):
    """The ledger is written after the file: a crash between the two leaves just that."""
    vm.snapshot(tmp_path / "a.arrow", key=key)
    before = (tmp_path / "guest.key.ledger").read_bytes()
    change(vm, [1])
    vm.snapshot(tmp_path / "b.arrow", key=key, parent=tmp_path / "a.arrow")
    (tmp_path / "guest.key.ledger").write_bytes(before)
    assert verify(tmp_path / "b.arrow", key).ledger == "newer"
    end(host, vm, host.restore(tmp_path / "b.arrow", key=key))
    assert verify(tmp_path / "b.arrow", key).ledger == "newest"
    with pytest.raises(RollBackError):
        host.restore(tmp_path / "a.arrow", key=key)


def test_another_snapshot_of_the_same_age_is_refused(host, vm, key, tmp_path):
    vm.snapshot(tmp_path / "a.arrow", key=key)
    before = (tmp_path / "guest.key.ledger").read_bytes()
    vm.snapshot(tmp_path / "b.arrow", key=key)
    (tmp_path / "guest.key.ledger").write_bytes(before)
    change(vm, [1])
    vm.lineage.sequence = 1
    vm.snapshot(tmp_path / "c.arrow", key=key)
    assert verify(tmp_path / "b.arrow", key).ledger == "second child"
    with pytest.raises(RollBackError, match="not the snapshot of that age"):
        host.restore(tmp_path / "b.arrow", key=key)


def test_an_older_snapshot_verifies_and_is_reported_as_older(key, two):
    assert verify(two[0], key).ledger == "older"
    assert verify(two[1], key).ledger == "newest"


def test_an_altered_ledger_is_refused(host, key, two):
    path = key.path.with_name("guest.key.ledger")
    text = path.read_text()
    for altered in (text.replace('"sequence": 2', '"sequence": 1'), text[:-9], "[]", text.replace("1", "2")):
        path.write_text(altered)
        with pytest.raises(IntegrityError, match="ledger"):
            host.restore(two[1], key=key)


def test_the_ledger_of_another_key_is_refused(key, two, tmp_path):
    other = SnapshotKey.create(tmp_path / "other")
    with pytest.raises(IntegrityError, match="another key"):
        Ledger(other, key.path.with_name("guest.key.ledger")).known()


def test_a_key_that_is_in_no_file_has_no_ledger(host, vm, tmp_path):
    key = SnapshotKey.random()
    vm.snapshot(tmp_path / "a.arrow", key=key)
    vm.snapshot(tmp_path / "b.arrow", key=key)
    end(host, vm, host.restore(tmp_path / "a.arrow", key=key))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.arrow", "b.arrow"]


def test_a_pipe_is_neither_waited_for_nor_read(tmp_path, key):
    """Opening one that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KeyFileError, match="not a regular file"):
        SnapshotKey.load(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        open_source(tmp_path / "pipe")
