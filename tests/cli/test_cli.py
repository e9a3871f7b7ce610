"""The command line: data on stdout, one clear line on stderr, the right exit status, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pytest

from lazypv.__main__ import run
from lazypv.cli.reboot import Pattern
from lazypv.guest import PATTERNS
from lazypv.invariants import Violation

SMALL = ["--memory", "32MiB", "--sync-below", "8MiB", "--repeat", "1"]


def command(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "lazypv", *arguments], capture_output=True, text=True, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["reboot", "--help"], ["--version"], ["explain", "07"]])
def test_help_version_and_explain_import_neither_numpy_nor_numba_nor_pyarrow(arguments):
    """The charter: they cost little more than Python itself."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lazypv", *arguments], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "lazypv" in imported
    assert not imported & {"numpy", "numba", "pyarrow", "llvmlite", "nacl"}


@pytest.mark.parametrize("kind", ["reboot", "shutdown"])
def test_json_is_one_object_with_the_agreed_keys(kind, capsys):
    """Issue: `schema`, `machine`, `guest`, `policies`, `speedup`, `invariants`."""
    assert run([kind, *SMALL, "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert report["schema"] == f"lazypv.{kind}/1"
    assert report["guest"]["bytes"] == 32 << 20
    assert report["guest"]["pages"] == 8192
    for policy in ("eager", "lazy"):
        figures = report["policies"][policy]
        assert figures["runs"] == 1
        for figure in ("downtime_s", "complete_s"):
            assert set(figures[figure]) == {"median", "low", "high"}
        assert set(figures["pages"]) == {
            "destroyed_sync", "destroyed_background", "destroyed_on_fault", "exported", "set_aside",
            "cleaned_by_configuration", "leaked",
        }  # fmt: skip
        assert sum(figures["pages"].values()) - figures["pages"]["set_aside"] == 8192
        assert {"held_back_bytes", "exceptions", "uvcs"} <= set(figures)
    assert report["speedup"] == pytest.approx(
        report["policies"]["eager"]["downtime_s"]["median"] / report["policies"]["lazy"]["downtime_s"]["median"]
    )
    assert report["invariants"]["violated"] == 0
    assert report["invariants"]["violations"] == []
    assert len(report["invariants"]["checked"]) > 20


def test_a_single_policy_has_no_speedup(capsys):
    assert run(["reboot", *SMALL, "--policy", "lazy", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["policies"]) == ["lazy"]
    assert report["speedup"] is None


def test_the_table_names_what_the_issue_asks_for_and_ends_with_a_sentence(capsys):
    assert run(["reboot", *SMALL]) == 0
    out = capsys.readouterr().out
    rows = (
        "downtime", "all memory back after", "held back at most", "exceptions 0x3e", "UVC DESTR_SEC_STOR",
        "longest hold of the mmap lock", "calls made under it", "next run slower", "eager / lazy downtime",
    )  # fmt: skip
    for row in rows:
        assert row in out
    assert "not of a mainframe" in out


def test_a_guest_too_small_for_lazy_destroy_is_told_so(capsys):
    """Above all: when the guest is too small for lazy destroy to matter."""
    assert run(["reboot", "--memory", "32MiB", "--repeat", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "does not matter" in report["summary"]
    assert report["policies"]["lazy"]["pages"]["destroyed_sync"] == 8192


def test_the_timeline_is_an_arrow_table(tmp_path, capsys):
    path = tmp_path / "run.arrow"
    assert run(["reboot", *SMALL, "--save", str(path)]) == 0
    table = pa.ipc.open_file(path).read_all()
    assert table.schema.metadata[b"schema"] == b"lazypv.timeline/1"
    assert set(table["policy"].to_pylist()) == {"eager", "lazy"}
    assert "destroy pages" in set(table["step"].to_pylist())
    assert os.listdir(tmp_path) == ["run.arrow"]


BAD = [
    (["reboot", "nothing.elf"], "nothing.elf"),
    (["reboot", "."], "folder"),
    (["reboot", "short.raw"], "4096"),
    (["reboot", "cut.elf"], "cut.elf"),
    (["reboot", "--memory", "1PiB"], "1PiB"),
    (["reboot", "--memory", "900TiB"], "memory"),
    (["reboot", "--memory", "5000"], "4096"),
    (["reboot", "--memory", "0"], "without memory"),
    (["reboot", "--sync-below", "3000", *SMALL[:2]], "4096"),
    (["reboot", "--policy", "hasty"], "hasty"),
    (["reboot", "--batch", "0"], "--batch"),
    (["reboot", "--throttle", "-5", *SMALL], "-5"),
    (["reboot", "--save", "no/such/folder.arrow"], "folder"),
    (["shutdown", "--vcpus", "0"], "--vcpus"),
    (["explain", "D99"], "D99"),
    (["unheard-of"], "unheard-of"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_use_and_input_is_one_clear_line_and_status_2(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.raw").write_bytes(b"x" * 5000)
    (tmp_path / "cut.elf").write_bytes(b"\x7fELF" + bytes(12))
    before = sorted(os.listdir(tmp_path))
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("lazypv: ")
    assert says in err
    assert sorted(os.listdir(tmp_path)) == before


def test_a_violated_invariant_is_printed_by_number_and_ends_with_status_3(monkeypatch, capsys):
    from lazypv.scenario import compare

    measure = compare.measure

    def broken(*arguments):
        measured = measure(*arguments)
        measured.violations = [Violation(22, "planted")]
        return measured

    monkeypatch.setattr(compare, "measure", broken)
    assert run(["reboot", *SMALL, "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["invariants"]["violations"] == [{"number": 22, "text": "planted"}]
    assert "invariant 22 is violated: planted" in err


def test_a_bug_of_ours_is_status_1_without_traceback(monkeypatch, capsys):
    from lazypv.scenario import compare

    monkeypatch.setattr(compare, "measure", lambda *_: 1 / 0)
    assert run(["reboot", *SMALL]) == 1
    assert re.fullmatch(r"lazypv: a bug of lazypv: ZeroDivisionError.*\n", capsys.readouterr().err)


def test_the_second_run_of_the_main_job_compiles_nothing():
    """Kernels are cached under a key of all kernel sources."""
    script = (
        "import sys; from lazypv.__main__ import run; status = run(sys.argv[1:]);"
        "from lazypv_kernels.compiled import KERNELS, compilations;"
        "print(status, compilations(), sum(bool(kernel.stats.cache_hits) for kernel in KERNELS), file=sys.stderr)"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script, "reboot", *SMALL, "--json"], capture_output=True, text=True, check=True
        )
    status, compiled, loaded = map(int, done.stderr.split())
    assert (status, compiled) == (0, 0)
    assert loaded > 10


INTERRUPTED = """
import os, signal, sys, threading
from lazypv import __main__
from lazypv.scenario import compare
measure, delay = compare.measure, float(sys.argv.pop())
def interrupted(*arguments):
    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
    compare.measure = measure
    return measure(*arguments)
compare.measure = interrupted
compare.warm = lambda *_: None
status = __main__.run(sys.argv[1:])
others = [t for t in threading.enumerate() if t is not threading.main_thread()]
print([t.name for t in others if not isinstance(t, threading.Timer)])
sys.exit(status)
"""


@pytest.mark.parametrize("after", ["0.05", "0.4", "1.1"])
def test_an_interrupt_ends_with_130_and_leaves_nothing(tmp_path, after):
    """Ctrl-C: texts end at their next step, threads are joined, no file is half-written."""
    arguments = ["reboot", "--memory", "64MiB", "--sync-below", "8MiB", "--repeat", "500", "--save", "run.arrow", after]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 130
    assert done.stdout == "[]\n"
    assert done.stderr == "lazypv: interrupted\n"
    assert os.listdir(tmp_path) == []


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m lazypv explain 07 | true", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def test_the_patterns_of_the_command_line_are_those_of_the_guest():
    assert {pattern.value for pattern in Pattern} == set(PATTERNS)


def test_running_the_package_is_running_the_command():
    assert command("--version").stdout.startswith("lazypv ")
