"""Snapshots over Arrow Flight: pulled bit for bit, verified on arrival, resumed, and refused when somebody tampers."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import lazypv
from lazypv.__main__ import run
from lazypv.errors import EXIT_BAD_INPUT, EXIT_INTEGRITY, EXIT_INTERRUPTED, UsageError
from lazypv.snapshot import Ledger, SnapshotKey
from lazypv.snapshot import flight as wire
from lazypv.snapshot.errors import DamagedSnapshotError, KeyFileError, RollBackError, WrongKeyError
from lazypv.snapshot.flight import Address, Token, TransferError, extents_of, message_of, read_ticket
from lazypv.snapshot.part import PART
from lazypv.snapshot.pull import OtherSnapshotError, pull
from lazypv.snapshot.reader import SnapshotFile
from lazypv.snapshot.rewrite import import_image
from lazypv.snapshot.serve import Shelf, listen
from lazypv.snapshot.verify import verify

PAGES = 2048 + 5
BATCHES = 9
LARGE_PAGES = 24576
SECRET = "a-token-of-enough-characters"


def a_snapshot(path, key, pages=PAGES, seed=0, stored=0.8, **more):
    """A snapshot of random memory in which some pages are zero."""
    rng = np.random.default_rng(seed)
    where = np.flatnonzero(rng.random(pages) < stored).astype(np.uint32)
    content = rng.integers(0, 256, (where.size, 4096), np.uint8)
    import_image(lazypv.GuestImage("test", content, where, pages * 4096), path, key, **more)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(key, folder) with two snapshots of nine batches, and one of 96."""
    folder = tmp_path_factory.mktemp("store")
    key = SnapshotKey.create(folder / "key")
    a_snapshot(folder / "a.arrow", key)
    a_snapshot(folder / "b.arrow", key, seed=1)
    a_snapshot(folder / "large.arrow", key, LARGE_PAGES, seed=2, stored=1.0)
    return key, folder


@contextlib.contextmanager
def serving(*paths, shelf=Shelf, **options):
    """A server of `paths` in this process, ended afterwards."""
    server = listen(shelf(list(paths)), **options)
    try:
        yield server
    finally:
        assert server.close(20), "a thread of the server did not end"


class Stop(Exception):  # noqa: N818  (not an error)
    """Ends a pull from within."""


class StopAfter:
    """Progress that ends a pull after some phases."""

    def __init__(self, phases, end=None):
        self.left = phases
        self.end = end or self.stop

    @staticmethod
    def stop():
        raise Stop

    def expect(self, phases):
        self.expected = phases

    def __call__(self, phase):
        self.left -= 1
        if self.left == 0:
            self.end()


def interrupted_pull(server, output, key, after):
    """Leaves the first `after` batches in FILE.part."""
    with pytest.raises(Stop):
        pull(server.address.server, output, key, progress=StopAfter(after))
    assert not output.exists()
    assert output.with_name(output.name + PART).exists()


# --- whole and resumed -------------------------------------------------------------------------------------------


def test_a_pulled_file_is_the_served_one_bit_for_bit(store, tmp_path):
    """Holes stay holes, and nothing else is left in the folder."""
    key, folder = store
    with serving(folder / "a.arrow", folder / "b.arrow") as server:
        done = pull(server.address.uri("b.arrow"), tmp_path / "x", key)
    assert (tmp_path / "x").read_bytes() == (folder / "b.arrow").read_bytes()
    assert (done.batches, done.kept, done.root) == (BATCHES, 0, verify(folder / "b.arrow", key).root)
    assert os.listdir(tmp_path) == ["x"]
    pulled = (tmp_path / "x").stat()
    assert pulled.st_blocks * 512 < 0.9 * pulled.st_size
    assert [each.name for each in threading.enumerate() if each.name.startswith("lazypv-")] == []


def test_a_snapshot_without_rows_is_pulled_too(tmp_path):
    key = SnapshotKey.random()
    a_snapshot(tmp_path / "a", key, pages=0)
    with serving(tmp_path / "a") as server:
        assert pull(server.address.server, tmp_path / "x", key).batches == 0
    assert (tmp_path / "x").read_bytes() == (tmp_path / "a").read_bytes()


def test_pages_of_zeroes_are_not_sent(store):
    key, folder = store
    shelf = Shelf([folder / "a.arrow"])
    (served,) = shelf.by_name.values()
    sent = sum(data.size for index in range(BATCHES) for _, data in served.batch(index))
    shelf.close()
    stored = verify(folder / "a.arrow", key).kinds["sealed"]
    assert stored * 4096 < sent < stored * 4096 + BATCHES * 16384


class Noted(Shelf):
    """Notes what was asked for."""

    def stream(self, ticket):
        self.tickets = [*getattr(self, "tickets", []), wire.read_ticket(ticket)[1]]
        return super().stream(ticket)


@pytest.mark.parametrize("after", [1, 5, BATCHES])
def test_an_interrupted_pull_goes_on_behind_the_last_batch_that_verified(store, tmp_path, after):
    key, folder = store
    with serving(folder / "a.arrow", shelf=Noted) as server:
        interrupted_pull(server, tmp_path / "x", key, after)
        done = pull(server.address.server, tmp_path / "x", key)
        assert server.shelf.tickets == [0, after]
    assert done.kept == after
    assert (tmp_path / "x").read_bytes() == (folder / "a.arrow").read_bytes()
    assert os.listdir(tmp_path) == ["x"]


def test_what_was_left_is_verified_again(store, tmp_path):
    key, folder = store
    with serving(folder / "a.arrow", shelf=Noted) as server:
        interrupted_pull(server, tmp_path / "x", key, 6)
        opened = SnapshotFile(folder / "a.arrow", key)
        opened.close()
        with open(tmp_path / "x.part", "r+b") as part:
            part.seek(opened.layout.offset(2) + 1000)
            part.write(b"other")
        assert pull(server.address.server, tmp_path / "x", key).kept == 2
        assert server.shelf.tickets == [0, 2]
    assert (tmp_path / "x").read_bytes() == (folder / "a.arrow").read_bytes()


def test_another_snapshot_is_not_put_behind_what_was_left(store, tmp_path):
    key, folder = store
    with serving(folder / "a.arrow") as server:
        interrupted_pull(server, tmp_path / "x", key, 4)
    left = (tmp_path / "x.part").read_bytes()
    with serving(folder / "b.arrow") as server, pytest.raises(OtherSnapshotError, match=r"x\.part") as refused:
        pull(server.address.server, tmp_path / "x", key)
    assert refused.value.exit_status == EXIT_INTEGRITY
    assert (tmp_path / "x.part").read_bytes() == left
    assert not (tmp_path / "x").exists()


def test_what_no_pull_has_begun_is_left_alone(store, tmp_path):
    key, folder = store
    (tmp_path / "x.part").write_bytes(b"a chapter of a book")
    with serving(folder / "a.arrow") as server, pytest.raises(UsageError, match="no pull has begun it"):
        pull(server.address.server, tmp_path / "x", key)
    assert (tmp_path / "x.part").read_bytes() == b"a chapter of a book"


@pytest.mark.parametrize("left", [bytes(100_000), bytes(50_000) + b"ARROW1"])
def test_a_pull_killed_before_its_header_was_written_begins_anew(store, tmp_path, left):
    key, folder = store
    (tmp_path / "x.part").write_bytes(left)
    with serving(folder / "a.arrow") as server:
        assert pull(server.address.server, tmp_path / "x", key).kept == 0
    assert (tmp_path / "x").read_bytes() == (folder / "a.arrow").read_bytes()


def test_a_pull_is_not_joined_by_another(store, tmp_path):
    key, folder = store
    with serving(folder / "a.arrow") as server:

        def second():
            with pytest.raises(UsageError, match="another pull"):
                pull(server.address.server, tmp_path / "x", key)
            raise Stop

        with pytest.raises(Stop):
            pull(server.address.server, tmp_path / "x", key, progress=StopAfter(2, second))


# --- tampering ---------------------------------------------------------------------------------------------------


def flipped(extents, byte):
    """The message with a bit flipped, counted over all its bytes."""
    flipped_extents = []
    for offset, data in extents:
        data = data.copy()
        if 0 <= byte < data.size:
            data[byte] ^= 4
        byte -= data.size
        flipped_extents.append((offset, data))
    return flipped_extents


def moved(extents, start):
    """The message with other offsets."""
    return [(offset - extents[0][0] + start, data) for offset, data in extents]


def of_other(shelf):
    """All messages of the other snapshot."""
    served = shelf.by_name["b.arrow"]
    return [*served.head(), *(served.batch(index) for index in range(served.batches))]


def without_a_page(messages, at):
    """The message without the first page of its first run of pages."""
    (start, data), *others = messages[at]
    return [(start, data[:768]), (start + 768 + 4096, data[768 + 4096 :]), *others]


# Messages: 0 is the header, 1 the end, 2 + n batch n.
TAMPERED = {
    "header flipped": (lambda m, s: [flipped(m[0], 300), *m[1:]], "header"),
    "header cut": (lambda m, s: [[(0, m[0][0][1][:-8])], *m[1:]], "header"),
    "header with more": (lambda m, s: [[(0, np.append(m[0][0][1], np.uint8(1)))], *m[1:]], "header"),
    "header elsewhere": (lambda m, s: [moved(m[0], 8), *m[1:]], "header"),
    "nothing": (lambda m, s: [], "header"),
    "another one": (lambda m, s: of_other(s), "header"),
    "end flipped": (lambda m, s: [m[0], flipped(m[1], 700), *m[2:]], "footer"),
    "last byte flipped": (lambda m, s: [m[0], flipped(m[1], m[1][0][1].size - 1), *m[2:]], "footer"),
    "end of another": (lambda m, s: [m[0], of_other(s)[1], *m[2:]], "footer"),
    "end cut": (lambda m, s: [m[0], [(m[1][0][0], m[1][0][1][:-9])], *m[2:]], "footer"),
    "end missing": (lambda m, s: [m[0], *m[2:]], "footer"),
    "metadata flipped": (lambda m, s: [*m[:5], flipped(m[5], 11), *m[6:]], "batch 3"),
    "page flipped": (lambda m, s: [*m[:5], flipped(m[5], 9000), *m[6:]], "batch 3"),
    "version flipped": (lambda m, s: [*m[:5], flipped(m[5], sum(d.size for _, d in m[5]) - 8), *m[6:]], "batch 3"),
    "page left out": (lambda m, s: [*m[:5], without_a_page(m, 5), *m[6:]], "batch 3"),
    "pages after the columns": (lambda m, s: [*m[:5], m[5][::-1], *m[6:]], "batch 3"),
    "two swapped": (lambda m, s: [*m[:4], m[5], m[4], *m[6:]], "batch 2"),
    "two swapped and renamed": (
        lambda m, s: [*m[:4], moved(m[5], m[4][0][0]), moved(m[4], m[5][0][0]), *m[6:]],
        "batch 2",
    ),
    "one twice": (lambda m, s: [*m[:5], m[4], *m[5:]], "batch 3"),
    "one of another": (lambda m, s: [*m[:7], of_other(s)[7], *m[8:]], "batch 5"),
    "another in mid-stream": (lambda m, s: [*m[:8], *of_other(s)[8:]], "batch 6"),
    "cut between batches": (lambda m, s: m[:6], "batch 4"),
    "last batch missing": (lambda m, s: m[:-1], f"batch {BATCHES - 1}"),
    "last batch cut": (lambda m, s: [*m[:-1], m[-1][:-1]], f"batch {BATCHES - 1}"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_server_that_tampers_is_refused(store, tmp_path, how):
    """By a name that says where; what it sent before stays, and an honest server completes it."""
    key, folder = store
    tamper, part = TAMPERED[how]

    class Hostile(Shelf):
        def stream(self, ticket):
            return iter(tamper(list(super().stream(ticket)), self))

    both = serving(folder / "a.arrow", folder / "b.arrow", shelf=Hostile)
    with both as server, pytest.raises(DamagedSnapshotError) as refused:
        pull(server.address.uri("a.arrow"), tmp_path / "x", key)
    assert refused.value.part == part
    assert refused.value.exit_status == EXIT_INTEGRITY
    assert set(os.listdir(tmp_path)) <= {"x.part"}
    with serving(folder / "a.arrow") as server:
        done = pull(server.address.server, tmp_path / "x", key)
    assert done.kept == (refused.value.batch or 0)
    assert (tmp_path / "x").read_bytes() == (folder / "a.arrow").read_bytes()


def test_an_honest_hostile_server_would_pass(store, tmp_path):
    """So the tampering is what is refused above."""
    key, folder = store

    class Hostile(Shelf):
        def stream(self, ticket):
            return iter(list(super().stream(ticket)))

    with serving(folder / "a.arrow", folder / "b.arrow", shelf=Hostile) as server:
        pull(server.address.uri("a.arrow"), tmp_path / "x", key)
    assert (tmp_path / "x").read_bytes() == (folder / "a.arrow").read_bytes()


@pytest.mark.parametrize("size", [1, 500_000, 1 << 50])
def test_a_server_that_lies_about_the_size_is_refused(store, tmp_path, size):
    """Before the file gets that size."""
    key, folder = store
    with serving(folder / "a.arrow") as server:
        server.shelf.by_name["a.arrow"].__dict__["size"] = size
        with pytest.raises(DamagedSnapshotError, match="footer: a file of"):
            pull(server.address.server, tmp_path / "x", key)
    assert os.listdir(tmp_path) == []


def test_a_message_larger_than_any_batch_is_not_taken(store, tmp_path):
    key, folder = store

    class Hostile(Shelf):
        def stream(self, ticket):
            messages = list(super().stream(ticket))
            return iter([*messages[:3], [(messages[3][0][0], np.zeros(64 << 20, np.uint8))]])

    with serving(folder / "a.arrow", shelf=Hostile) as server, pytest.raises(TransferError, match="batch 1"):
        pull(server.address.server, tmp_path / "x", key)
    assert not (tmp_path / "x").exists()


def test_the_wrong_key_is_told(store, tmp_path):
    _, folder = store
    with serving(folder / "a.arrow") as server, pytest.raises(WrongKeyError):
        pull(server.address.server, tmp_path / "x", SnapshotKey.random())
    assert os.listdir(tmp_path) == []


def test_a_message_whose_offsets_point_outside_is_refused():
    """Arrow checks nothing of that by itself when a stream is read."""
    ends = pa.py_buffer(np.array([0, 1 << 30, 5], np.int32))
    data = pa.Array.from_buffers(pa.binary(), 2, [None, ends, pa.py_buffer(b"short")])
    message = pa.RecordBatch.from_arrays([pa.array([0, 1], pa.uint64()), data], schema=wire.MESSAGE)
    with pytest.raises(ValueError, match="no Arrow record batch"):
        extents_of(message, 0, 1 << 31)


@pytest.mark.parametrize(
    ("extents", "problem"),
    [
        ([(5, 10), (14, 5)], "another place"),
        ([(20, 5), (0, 5)], "another place"),
        ([(95, 6)], "another place"),
        ([(1 << 63, 6)], "another place"),
        ([(k, 0) for k in range(600)], "600 extents"),
    ],
)
def test_extents_are_ascending_apart_and_within(extents, problem):
    message = message_of([(offset, np.zeros(size, np.uint8)) for offset, size in extents])
    with pytest.raises(ValueError, match=problem):
        extents_of(message, 0, 100)


def test_a_message_of_another_form_is_refused():
    with pytest.raises(ValueError, match="another form"):
        extents_of(pa.record_batch({"offset": pa.array([1], pa.int64()), "data": pa.array([b""])}), 0, 9)


def test_what_a_stranger_says_does_not_reach_the_terminal_as_it_is():
    assert wire.printable("a\x1b[2J\nb\u202e") == "a?[2J b?"


# --- the ledger --------------------------------------------------------------------------------------------------


def test_a_snapshot_that_the_ledger_knows_to_be_older_is_not_pulled(tmp_path):
    """Nor does anything of it stay; the override says what it overrides."""
    key = SnapshotKey.create(tmp_path / "key")
    a_snapshot(tmp_path / "old.arrow", key, pages=300)
    opened = SnapshotFile(tmp_path / "old.arrow", key)
    opened.close()
    Ledger.beside(key).enter(opened.header.guest_id, 7, "f" * 64)
    with serving(tmp_path / "old.arrow") as server:
        with pytest.raises(RollBackError, match="number 7"):
            pull(server.address.server, tmp_path / "x", key)
        assert not (tmp_path / "x").exists()
        done = pull(server.address.server, tmp_path / "x", key, allow_rollback=True)
    assert "number 7" in done.overridden


# --- killed in mid-stream ----------------------------------------------------------------------------------------


def a_server_process(folder, *arguments):
    """`lazypv snapshot serve` as a process, and what it says when it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lazypv", "snapshot", "serve", "--json", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, json.loads(process.stdout.readline())


@contextlib.contextmanager
def reaped(process):
    """Whatever happens, it does not stay."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_server_killed_in_mid_stream_is_resumed_from(store, tmp_path):
    key, folder = store
    process, told = a_server_process(folder, "large.arrow")
    with reaped(process):

        def kill():
            process.kill()
            process.wait()

        with pytest.raises(TransferError, match="batch") as broke:
            pull(told["uri"], tmp_path / "x", key, progress=StopAfter(3, kill))
    assert broke.value.exit_status == EXIT_BAD_INPUT
    assert os.listdir(tmp_path) == ["x.part"]
    process, told = a_server_process(folder, "large.arrow")
    with reaped(process):
        done = pull(told["uri"], tmp_path / "x", key)
    assert 3 <= done.kept < done.batches == 96
    assert (tmp_path / "x").read_bytes() == (folder / "large.arrow").read_bytes()


class Stalling(Shelf):
    """Sends four batches, and then nothing until it is told to."""

    def __init__(self, targets):
        super().__init__(targets)
        self.sent, self.go_on = threading.Event(), threading.Event()

    def stream(self, ticket):
        for number, extents in enumerate(super().stream(ticket)):
            if number == 6:
                self.sent.set()
                self.go_on.wait(60)
            yield extents


def whole_batches(path, key):
    """How many batches of FILE.part verify."""
    from lazypv.snapshot.arriving import check_batch

    try:
        file = SnapshotFile(path, key)
    except (UsageError, DamagedSnapshotError, lazypv.errors.LazyPVError):
        return -1
    count = 0
    with contextlib.suppress(DamagedSnapshotError):
        while count < file.layout.batches:
            check_batch(file, count, file.new_buffer())
            count += 1
    file.close()
    return count


def test_a_client_killed_in_mid_stream_goes_on(store, tmp_path):
    key, folder = store
    with serving(folder / "a.arrow", shelf=Stalling) as server:
        command = ["snapshot", "pull", server.address.server, "-o", "x", "--key", str(folder / "key")]
        process = subprocess.Popen([sys.executable, "-m", "lazypv", *command], cwd=tmp_path)
        with reaped(process):
            assert server.shelf.sent.wait(60)
            deadline = time.monotonic() + 60
            while whole_batches(tmp_path / "x.part", key) < 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert process.poll() is None
            process.kill()
            process.wait()
        server.shelf.go_on.set()
        assert os.listdir(tmp_path) == ["x.part"]
        done = pull(server.address.server, tmp_path / "x", key)
    assert 3 <= done.kept <= 4
    assert (tmp_path / "x").read_bytes() == (folder / "a.arrow").read_bytes()


def test_a_server_that_sends_nothing_any_more_counts_as_gone(store, tmp_path):
    key, folder = store
    with serving(folder / "a.arrow", shelf=Stalling) as server:
        with pytest.raises(TransferError, match="batch 4: nothing came"):
            pull(server.address.server, tmp_path / "x", key, patience=0.5)
        server.shelf.go_on.set()
    assert os.listdir(tmp_path) == ["x.part"]


class Breaking(Shelf):
    """A stream that breaks off behind its header, end and `after` batches; the last of them brings everything."""

    breaks, after = 4, 3

    def __init__(self, targets):
        super().__init__(targets)
        self.asked = []

    def stream(self, ticket):
        self.asked.append(read_ticket(ticket)[1])
        for number, extents in enumerate(super().stream(ticket)):
            if number == 2 + self.after and len(self.asked) <= self.breaks:
                raise RuntimeError("a cable was pulled")
            yield extents


@pytest.mark.parametrize("after", [1, 2])
def test_a_stream_that_breaks_off_is_taken_up_behind_the_last_batch(store, tmp_path, monkeypatch, after):
    """Each that brings a batch begins the count of retries anew; nothing is asked for or verified twice."""
    key, folder = store
    monkeypatch.setattr(Breaking, "after", after)
    slept = []
    monkeypatch.setattr("lazypv.snapshot.pull.time.sleep", slept.append)
    with serving(folder / "a.arrow", shelf=Breaking) as server:
        done = pull(server.address.server, tmp_path / "x", key, retries=1)
    assert server.shelf.asked == [after * number for number in range(5)]
    assert slept == [0.5] * 4
    assert (done.kept, done.batches) == (0, 9)
    assert (tmp_path / "x").read_bytes() == (folder / "a.arrow").read_bytes()
    assert os.listdir(tmp_path) == ["x"]


def test_a_stream_that_brings_nothing_is_given_up_after_some_tries(store, tmp_path, monkeypatch):
    key, folder = store
    monkeypatch.setattr(Breaking, "after", 0)
    slept = []
    monkeypatch.setattr("lazypv.snapshot.pull.time.sleep", slept.append)
    with serving(folder / "a.arrow", shelf=Breaking) as server, pytest.raises(TransferError, match="broke off"):
        pull(server.address.server, tmp_path / "x", key, retries=3)
    assert server.shelf.asked == [0] * 4
    assert slept == [0.5, 1.0, 2.0]
    assert os.listdir(tmp_path) == ["x.part"]


def test_another_snapshot_is_not_put_behind_one_that_broke_off(store, tmp_path, monkeypatch):
    """The server has changed what it serves under that name between two tries."""
    key, folder = store

    with serving(folder / "a.arrow", shelf=Breaking) as server:

        def meanwhile(_seconds):
            server.shelf.by_name["a.arrow"] = Shelf([folder / "b.arrow"]).by_name["b.arrow"]

        monkeypatch.setattr("lazypv.snapshot.pull.time.sleep", meanwhile)
        with pytest.raises(lazypv.snapshot.pull.OtherSnapshotError):
            pull(server.address.server, tmp_path / "x", key, retries=2)
    assert os.listdir(tmp_path) == ["x.part"]


# --- who may --------------------------------------------------------------------------------------------------------


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


def test_a_call_without_the_token_is_refused(store, tmp_path, token_file):
    key, folder = store
    token = Token.load(token_file)
    with serving(folder / "a.arrow", token=token) as server:
        for offered in (None, Token(SECRET + "x"), Token("x" * 40)):
            for uri in (server.address.server, server.address.uri("a.arrow")):
                with pytest.raises(TransferError, match="token") as refused:
                    pull(uri, tmp_path / "x", key, token=offered)
                assert SECRET not in str(refused.value)
        pull(server.address.server, tmp_path / "x", key, token=token)
    assert SECRET not in repr(token)


def test_tokens_are_compared_in_constant_time(monkeypatch):
    """By the function that is made for it, and over values of one length."""
    seen, compare = [], wire.hmac.compare_digest
    monkeypatch.setattr(wire.hmac, "compare_digest", lambda a, b: seen.append((a, b)) or compare(a, b))
    assert not Token(SECRET).fits("short")
    assert Token(SECRET).fits(f"Bearer {SECRET}")
    assert [(len(a), len(b)) for a, b in seen] == [(32, 32), (32, 32)]


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (SECRET, 0o640, "0600"),
        ("short", 0o600, "at least 16"),
        ("two words of a token", 0o600, "one word"),
        ("lazypv-key-1 " + "a" * 64, 0o600, "is a key file"),
    ],
)
def test_a_token_file_that_does_not_do(tmp_path, content, mode, problem):
    (tmp_path / "token").write_text(content)
    (tmp_path / "token").chmod(mode)
    with pytest.raises(KeyFileError, match=problem) as refused:
        Token.load(tmp_path / "token")
    assert content not in str(refused.value)


def test_an_address_that_others_reach_takes_tls_and_a_token(store):
    _, folder = store
    shelf = Shelf([folder / "a.arrow"])
    for options in ({}, {"token": Token(SECRET)}, {"tls": (folder / "cert", folder / "key")}):
        with pytest.raises(UsageError, match="others reach this address"):
            listen(shelf, "0.0.0.0", **options)
    shelf.close()
    with serving(folder / "a.arrow", host="0.0.0.0", insecure=True) as server:
        assert server.address.port


def test_a_token_is_not_sent_in_the_clear_to_others(store, tmp_path):
    key, _ = store
    with pytest.raises(UsageError, match="in the clear"):
        pull("grpc://192.0.2.1:9/a", tmp_path / "x", key, token=Token(SECRET))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.0.2.1", False), ("", False)],
)  # fmt: skip
def test_what_counts_as_loopback(host, loopback):
    assert wire.is_loopback(host) == loopback


def a_certificate(folder):
    """A certificate for 127.0.0.1 that signs itself: (certificate, key)."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography makes the certificate")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(secret, hashes.SHA256())
    )
    cert, key = folder / "cert.pem", folder / "cert.key"
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert, key


def test_over_tls_the_certificate_has_to_be_trusted(store, tmp_path):
    key, folder = store
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()
    cert, secret = a_certificate(tmp_path / "right")
    other, _ = a_certificate(tmp_path / "wrong")
    token = Token(SECRET)
    with serving(folder / "a.arrow", tls=(cert, secret), token=token) as server:
        assert server.address.server.startswith("grpc+tls://")
        for ca in (None, other):
            with pytest.raises(TransferError, match="trusted"):
                pull(server.address.server, tmp_path / "x", key, ca=ca, token=token)
        pull(server.address.server, tmp_path / "x", key, ca=cert, token=token)
    assert (tmp_path / "x").read_bytes() == (folder / "a.arrow").read_bytes()


# --- bad use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    ["a.arrow", "grpc://", "grpc://host/a", "http://host:1/a", "grpc://host:x/a", "grpc://host:1/a?b", "grpc://[:1"],
)
def test_a_uri_that_is_none(uri):
    with pytest.raises(UsageError):
        Address.parse(uri)


def test_a_uri_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="token comes in a file") as refused:
        Address.parse("grpc://me:geheim@host:1/a")
    assert "geheim" not in str(refused.value)


def test_names_go_through_a_uri_and_back():
    address = Address("::1", 7, True)
    assert Address.parse(address.uri("a b/c%.arrow")) == Address("::1", 7, True, "a b/c%.arrow")


def test_one_of_several_has_to_be_named(store, tmp_path):
    key, folder = store
    with serving(folder / "a.arrow", folder / "b.arrow") as server:
        with pytest.raises(UsageError, match=r"a\.arrow, b\.arrow"):
            pull(server.address.server, tmp_path / "x", key)
        with pytest.raises(TransferError, match="no such snapshot"):
            pull(server.address.uri("c.arrow"), tmp_path / "x", key)
    assert os.listdir(tmp_path) == []


def test_a_taken_port_is_told(store):
    _, folder = store
    with serving(folder / "a.arrow") as server:
        shelf = Shelf([folder / "b.arrow"])
        with pytest.raises(UsageError, match="in use"):
            listen(shelf, port=server.address.port)
        shelf.close()


def test_what_is_no_snapshot_is_not_served(store, tmp_path):
    _, folder = store
    (tmp_path / "cut.arrow").write_bytes((folder / "a.arrow").read_bytes()[:500_000])
    with pytest.raises(DamagedSnapshotError, match="truncated"):
        Shelf([tmp_path / "cut.arrow"])
    with pytest.raises(UsageError, match=r"name a\.arrow"):
        Shelf([folder / "a.arrow", folder / "a.arrow"])


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(TransferError, match="is not there"):
        pull("grpc://127.0.0.1:1/a", tmp_path / "x", SnapshotKey.random())
    assert os.listdir(tmp_path) == []


# --- the commands ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, 0)])
def test_the_server_ends_cleanly_when_it_is_asked_to(store, tmp_path, capsys, number, status):
    _, folder = store
    process, told = a_server_process(folder, "a.arrow", "b.arrow")
    with reaped(process):
        assert told["schema"] == "lazypv.snapshot-serve/1"
        assert [each["name"] for each in told["snapshots"]] == ["a.arrow", "b.arrow"]
        uri = told["snapshots"][1]["uri"]
        assert run(["snapshot", "pull", uri, "-o", str(tmp_path / "x"), "--key", str(folder / "key"), "--json"]) == 0
        pulled = json.loads(capsys.readouterr().out)
        assert (pulled["schema"], pulled["batches"]) == ("lazypv.snapshot-pull/1", BATCHES)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    assert err == ("lazypv: interrupted\n" if status else "")
    assert (tmp_path / "x").read_bytes() == (folder / "b.arrow").read_bytes()


def test_a_client_that_takes_nothing_does_not_keep_the_server(store, tmp_path):
    """Its thread cannot be ended from within the process."""
    from pyarrow import flight

    _, folder = store
    process, told = a_server_process(folder, "large.arrow")
    with reaped(process):
        client = flight.FlightClient(told["uri"])
        reader = client.do_get(flight.Ticket(wire.ticket_of(told["snapshots"][0]["file_id"], 0)))
        reader.read_chunk()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "lazypv: a client that takes nothing was cut off\n")
        reader.cancel()
        client.close()


def test_refusals_have_their_exit_status_and_one_line(store, tmp_path, capsys, token_file):
    _, folder = store
    name, keys = str(folder / "a.arrow"), ["--key", str(folder / "key")]
    out = ["-o", str(tmp_path / "x")]
    other = SnapshotKey.create(tmp_path / "other").path
    with serving(name, token=Token(SECRET)) as server:
        uri = server.address.server
        token = ["--token-file", str(token_file)]
        for arguments, status in (
            (["serve", name, "--host", "0.0.0.0"], 2),
            (["serve", name, "--tls-cert", "c"], 2),
            (["serve", str(Path(name).parent / "none")], 2),
            (["pull", uri, *out, *keys], 2),
            (["pull", uri, *out, "--key", str(other), *token], 4),
            (["pull", uri, "-o", str(tmp_path / "no" / "x"), *keys, *token], 2),
            (["pull", uri, *out, *keys, *token, "--tls-ca", name], 2),
        ):
            assert run(["snapshot", *arguments]) == status, arguments
            shown = capsys.readouterr()
            assert shown.out == ""
            assert len(shown.err.splitlines()) == 1
            assert SECRET not in shown.err
        assert run(["snapshot", "pull", uri, *out, *keys, *token]) == 0
        assert SECRET not in "".join(capsys.readouterr())
