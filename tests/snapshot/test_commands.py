"""`lazypv snapshot` and `lazypv key` as a person meets them."""

from __future__ import annotations

import json
import os

import pytest

from lazypv.__main__ import run
from lazypv.snapshot import SnapshotKey

IMAGE_PAGES = 512


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a key, two raw images that differ in three pages, and a snapshot of the first."""
    monkeypatch.chdir(tmp_path)
    content = bytearray(os.urandom(IMAGE_PAGES * 2048) + bytes(IMAGE_PAGES * 2048))
    (tmp_path / "guest.raw").write_bytes(content)
    for page in (0, 9, IMAGE_PAGES - 1):
        content[page * 4096 : page * 4096 + 5] = b"later"
    (tmp_path / "later.raw").write_bytes(content)
    assert run(["key", "new", "k"]) == 0
    assert run(["snapshot", "save", "guest.raw", "-o", "a.arrow", "--key", "k"]) == 0
    return tmp_path


def told(capsys, *arguments, status=0):
    """The JSON object that a command prints, which is all that it prints."""
    capsys.readouterr()
    assert run(["snapshot", *arguments, "--json"]) == status
    out = capsys.readouterr().out
    return json.loads(out) if out else None


def test_every_command_hands_out_one_object(work, capsys):
    """Schemas are named, and figures agree with each other."""
    key = ("--key", "k")
    verified = told(capsys, "verify", "a.arrow", *key)
    assert verified["schema"] == "lazypv.snapshot-verify/1"
    assert verified["snapshots"][0]["rows"] == IMAGE_PAGES
    child = told(capsys, "save", "later.raw", "--parent", "a.arrow", "-o", "b.arrow", *key)
    assert (child["schema"], child["pages"], child["sequence"]) == ("lazypv.snapshot-save/1", 3, 2)
    different = told(capsys, "diff", "a.arrow", "b.arrow", *key)
    assert different["runs"] == [[0, 1], [9, 1], [IMAGE_PAGES - 1, 1]]
    assert told(capsys, "info", "b.arrow")["parent"] == "a.arrow"
    for lazy in ([], ["--lazy"]):
        assert told(capsys, "restore", "b.arrow", *key, *lazy)["pages"] == IMAGE_PAGES
    assert told(capsys, "merge", "a.arrow", "b.arrow", "-o", "m.arrow", *key)["pages"] == IMAGE_PAGES
    assert told(capsys, "diff", "m.arrow", "b.arrow", *key)["changed"] == 0
    assert told(capsys, "export", "b.arrow", "-o", "core", *key)["stored"] > 250
    assert told(capsys, "import", "guest.raw", "-o", "i.arrow", *key)["pages"] == IMAGE_PAGES
    assert told(capsys, "recover", "a.arrow", "-o", "r.arrow", *key)["complete_batches"] == 2


@pytest.mark.parametrize("suffix", [[], ["--json"]])
def test_a_key_is_never_printed(work, capsys, suffix):
    assert run(["key", "new", "other", *suffix]) == 0
    secret = (work / "other").read_text().split()[1]
    shown = capsys.readouterr()
    assert secret not in shown.out + shown.err


def refused(capsys, status, *arguments):
    """The one line that a refused command says on standard error."""
    capsys.readouterr()
    assert run(["snapshot", *arguments]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    return shown.err


def test_bad_use_has_status_2(work, capsys):
    os.chmod("k", 0o644)
    assert "0600" in refused(capsys, 2, "verify", "a.arrow", "--key", "k")
    os.chmod("k", 0o600)
    assert "No such file" in refused(capsys, 2, "verify", "none.arrow", "--key", "k")
    assert "not an Arrow file" in refused(capsys, 2, "verify", "guest.raw", "--key", "k")
    assert "folder" in refused(capsys, 2, "import", "guest.raw", "-o", "no/where", "--key", "k")
    assert "No such file" in refused(capsys, 2, "verify", "a.arrow", "--key", "none")


def test_what_cannot_be_told_from_tampering_has_status_4(work, capsys):
    SnapshotKey.create(work / "other")
    assert "another key" in refused(capsys, 4, "verify", "a.arrow", "--key", "other")
    os.truncate("a.arrow", 500_000)
    assert "truncated" in refused(capsys, 4, "verify", "a.arrow", "--key", "k")


def test_an_override_says_what_it_overrides(work, capsys):
    told(capsys, "save", "later.raw", "--parent", "a.arrow", "-o", "b.arrow", "--key", "k")
    assert "--allow-rollback" in refused(capsys, 4, "restore", "a.arrow", "--key", "k")
    assert run(["snapshot", "restore", "a.arrow", "--key", "k", "--allow-rollback"]) == 0
    assert "it knows number 2 of this guest, this is number 1" in capsys.readouterr().err
    assert run(["snapshot", "save", "guest.raw", "--parent", "a.arrow", "-o", "c.arrow", "--key", "k"]) == 4
    capsys.readouterr()
    again = ["save", "later.raw", "--parent", "a.arrow", "-o", "c.arrow", "--key", "k", "--allow-fork"]
    assert run(["snapshot", *again]) == 0
    assert "overriding the ledger" in capsys.readouterr().err


def test_a_ledger_may_lie_elsewhere(work, capsys):
    told(capsys, "import", "guest.raw", "-o", "i.arrow", "--key", "k", "--ledger", "elsewhere")
    assert json.loads((work / "elsewhere").read_text())["schema"] == "lazypv.ledger/1"
