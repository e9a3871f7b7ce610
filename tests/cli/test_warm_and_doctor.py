"""`lazypv warm` and `lazypv doctor`, as commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lazypv
import lazypv_kernels
from lazypv.__main__ import run
from lazypv.upkeep import computer, doctor

PACKAGES = [Path(package.__file__).parent for package in (lazypv, lazypv_kernels)]
RUN = """
import json, sys
from lazypv.__main__ import run
from lazypv_kernels.compiled import compilations
status = run(sys.argv[1:])
print(json.dumps({"status": status, "compiled": compilations()}), file=sys.stderr)
"""
WORK = [
    ["reboot", "--memory", "256MiB", "--sync-below", "64MiB", "--json"],
    ["reboot", "--memory", "256MiB", "--repeat", "1", "--threads", "1", "--workload", "zipf", "--json"],
    ["shutdown", "--memory", "128MiB", "--sync-below", "32MiB", "--repeat", "1", "--json"],
    ["explore", "reboot-into-protected", "--pages", "2", "--preemptions", "1", "--faults", "1", "--json"],
    ["explore", "shutdown", "--pages", "2", "--preemptions", "0", "--finer", "--json"],
]
IN_FOLDER = [
    ["key", "new", "key"],
    ["snapshot", "save", "synthetic.raw", "--key", "key", "-o", "one.arrow", "--json"],
    ["snapshot", "save", "other.raw", "--key", "key", "--parent", "one.arrow", "-o", "two.arrow", "--json"],
    ["snapshot", "restore", "two.arrow", "--key", "key", "--json"],
    ["snapshot", "restore", "two.arrow", "--key", "key", "--lazy", "--json"],
    ["snapshot", "verify", "two.arrow", "--key", "key", "--json"],
]


def call(cache, arguments, folder=None):
    """Run a command in a process of its own; its output, and how many kernels it compiled.

    It runs a copy of the sources, so that an edit meanwhile is no matter.
    """
    sources = cache / "sources"
    for package in PACKAGES:
        if not (sources / package.name).exists():
            shutil.copytree(package, sources / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        env=os.environ | {"LAZYPV_CACHE_DIR": str(cache), "PYTHONPATH": str(sources)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    said = json.loads(done.stderr.splitlines()[-1])
    assert said["status"] == 0, done.stderr
    return done.stdout, said["compiled"]


@pytest.fixture(scope="module")
def warmed(tmp_path_factory):
    """A folder that was empty, and what `lazypv warm` said about it."""
    cache = tmp_path_factory.mktemp("cache")
    out, compiled = call(cache, ["warm", "--json"])
    return cache, json.loads(out), compiled


@pytest.mark.timeout(600)
def test_warm_compiles_every_kernel(warmed):
    """And says so in one object."""
    cache, told, compiled = warmed
    assert told["schema"] == "lazypv.warm/1"
    assert told["kernels"] > 50
    assert told["compiled"] == compiled >= told["kernels"]
    assert told["left_out"] == []
    assert told["folder"].startswith(str(cache))
    assert len(list(cache.rglob("*.kernel"))) == compiled


@pytest.mark.timeout(600)
def test_a_second_time_nothing_is_left_to_compile(warmed):
    """All of it was kept."""
    out, compiled = call(warmed[0], ["warm", "--json"])
    told = json.loads(out)
    assert (compiled, told["compiled"]) == (0, 0)
    assert told["loaded"] > 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("arguments", WORK, ids=" ".join)
def test_nothing_is_compiled_after_warming(warmed, arguments):
    """Issue: a run of any command loads everything it needs."""
    assert call(warmed[0], arguments)[1] == 0


@pytest.mark.timeout(600)
def test_snapshots_compile_nothing_after_warming(warmed, tmp_path):
    """Saved, saved as a child, restored both ways, verified."""
    content = os.urandom(2 << 20)
    (tmp_path / "synthetic.raw").write_bytes(content)
    (tmp_path / "other.raw").write_bytes(content[: 1 << 20] + bytes(1 << 20))
    for arguments in IN_FOLDER:
        assert call(warmed[0], arguments, tmp_path)[1] == 0, arguments


@pytest.mark.timeout(600)
def test_the_doctor_knows_a_warm_folder_from_a_cold_one(warmed, tmp_path, monkeypatch, capsys):
    """What is warm, how large it is, and the command that warms."""
    out, _ = call(warmed[0], ["doctor", "--json"])
    cache = json.loads(out)["cache"]
    assert (cache["state"], cache["signatures"]) == ("warm", warmed[2])
    assert cache["bytes"] > 10_000
    monkeypatch.setenv("LAZYPV_CACHE_DIR", str(tmp_path))
    assert run(["doctor", "--json"]) == 0
    cold = json.loads(capsys.readouterr().out)
    assert cold["cache"]["state"] == "cold"
    assert any("lazypv warm" in warning for warning in cold["warnings"])


# --- doctor ------------------------------------------------------------------------------------------------------


def examined(capsys, status=0):
    assert run(["doctor", "--json"]) == status
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_the_doctor_reports_what_the_issue_asks_for(capsys):
    """Processor, cipher path, threads and cores, cache folder, huge pages, free memory, versions."""
    told, err = examined(capsys)
    assert err == ""
    assert told["schema"] == "lazypv.doctor/1"
    assert told["usable"] is True
    assert told["processor"].keys() >= {"name", "features", "cores", "threads", "compiled_for"}
    assert 1 <= told["processor"]["threads"] <= told["processor"]["cores"]
    assert told["cipher"]["available"] is True
    assert told["cache"].keys() >= {"folder", "state", "writable", "signatures", "bytes"}
    assert told["memory"]["huge_pages"].keys() == {"anonymous", "shared", "defrag"}
    assert 0 < told["memory"]["free_bytes"] <= told["memory"]["total_bytes"]
    assert told["versions"].keys() >= {"python", "numpy", "numba", "libsodium"}
    assert all(told["versions"][name] for name in ("python", "numpy", "numba", "libsodium"))


def test_people_get_lines(capsys):
    """The same, by subject."""
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "AEGIS-256" in out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "processor", "cipher", "cache", "memory", "versions",
    ]  # fmt: skip


def test_a_processor_without_aes_instructions_is_warned_of(monkeypatch, capsys):
    """It works, and is slow: status 0, one clear warning."""
    monkeypatch.setattr(computer, "cpu_flags", lambda: frozenset({"sse2", "fpu"}))
    told, _ = examined(capsys)
    assert (told["usable"], told["cipher"]["aes_instructions"]) == (True, False)
    assert told["cipher"]["path"] == "portable code"
    assert any("no AES instructions" in warning for warning in told["warnings"])


def test_without_the_cipher_lazypv_is_unusable(monkeypatch, capsys):
    """One line that says what to install."""
    from nacl import bindings

    monkeypatch.delattr(bindings, "crypto_aead_aegis256_encrypt")
    told, err = examined(capsys, status=2)
    assert told["usable"] is False
    assert told["fatal"]
    assert len(err.splitlines()) == 1
    assert "AEGIS-256" in err
    assert "PyNaCl" in err


def test_a_cipher_that_lets_altered_pages_pass_is_none(monkeypatch):
    """It is tried, not only looked for."""
    from nacl import bindings

    assert doctor.cipher_works()
    monkeypatch.setattr(bindings, "crypto_aead_aegis256_decrypt", lambda sealed, *_: b"")
    assert not doctor.cipher_works()


def test_too_little_memory_is_unusable(monkeypatch, capsys):
    """The line has both figures."""
    monkeypatch.setattr(doctor, "available_memory", lambda: 10 << 20)
    told, err = examined(capsys, status=2)
    assert told["memory"]["available_bytes"] == 10 << 20
    assert "10 MiB" in err
    assert "256 MiB" in err


def test_no_huge_pages_are_warned_of(monkeypatch, tmp_path, capsys):
    """`never`, or a kernel without them."""
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(computer, "HUGE_PAGES", tmp_path)
    told, _ = examined(capsys)
    assert told["memory"]["huge_pages"] == {"anonymous": "never", "shared": None, "defrag": None}
    assert any("huge pages" in warning for warning in told["warnings"])


def test_a_folder_that_cannot_be_written_is_warned_of(monkeypatch, tmp_path, capsys):
    """It says why, and what moves the folder."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LAZYPV_CACHE_DIR", str(tmp_path / "file"))
    told, _ = examined(capsys)
    assert told["cache"]["writable"] is False
    assert any("LAZYPV_CACHE_DIR" in warning for warning in told["warnings"])


def test_a_part_that_cannot_be_imported_is_one_line():
    """Kernels without their cipher cannot even be imported; the doctor still speaks."""
    code = "import sys; sys.modules['nacl'] = None\nfrom lazypv.__main__ import run; sys.exit(run(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "nacl" in done.stderr
