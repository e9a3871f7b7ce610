"""`lazypv bench`, as far as it can be seen without measuring much."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from lazypv.cli.bench import bench
from lazypv.errors import EXIT_BAD_INPUT, UsageError
from lazypv_bench.suite import REGISTRY


@pytest.fixture
def call():
    app = typer.Typer()
    app.command()(bench)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_the_list_names_every_benchmark_and_runs_none(call):
    """Names first, so that they can be cut out."""
    lines = call("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(REGISTRY)


def test_a_list_can_be_narrowed(call):
    """By the same patterns as a run."""
    assert [line.split()[0] for line in call("--list", "downtime").stdout.splitlines()] == [
        "downtime.growth",
        "downtime.growth.eager",
    ]


def test_json_is_all_there_is_on_standard_output(call):
    """And a bar that may have been missed is no failure."""
    done = call("startup.help", "--quick", "--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert [result["name"] for result in document["results"]] == ["startup.help"]


def test_people_get_a_table(call):
    """With the note that says how to read it."""
    done = call("startup.help", "--quick")
    assert done.exit_code == 0
    assert "startup.help" in done.stdout
    assert "bare python" in done.stdout


def test_two_runs_can_be_compared_saved_and_drawn(call, tmp_path):
    """Each says its verdict, and whatever it is the status is 0; every turn is in the Arrow table."""
    old = tmp_path / "old.json"
    old.write_text(call("startup.help", "--quick", "--json").stdout)
    document = json.loads(old.read_text())
    document["turns"]["startup.help"] = [each / 1000 for each in document["turns"]["startup.help"]]
    old.write_text(json.dumps(document))
    turns, picture = tmp_path / "turns.arrow", tmp_path / "picture.svg"
    done = call(
        "startup.help", "--quick", "--json", "--compare", str(old), "--save", str(turns), "--picture", str(picture)
    )
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["compared"]["startup.help"]["verdict"] == "slower"
    table = pa.ipc.open_file(turns).read_all().to_pylist()
    assert [row["ratio"] for row in table if row["role"] == "limit"] == told["turns"]["startup.help"]
    assert "startup.help" in picture.read_text()
    people = call("startup.help", "--quick", "--compare", str(old))
    assert people.exit_code == 0
    assert "slower" in people.stdout


@pytest.mark.parametrize(
    "arguments",
    [("--compare", "none.json"), ("--save", "no/such/folder/out.arrow"), ("--picture", "no/such/folder/out.svg")],
    ids=" ".join,
)
def test_files_that_cannot_be_used_are_refused_before_anything_runs(call, arguments, monkeypatch):
    """A run takes minutes."""
    monkeypatch.setattr("lazypv_bench.suite.run", lambda *_: pytest.fail("something was measured"))
    done = call("startup.help", "--quick", *arguments)
    assert isinstance(done.exception, UsageError)
    assert arguments[1] in str(done.exception)


def test_an_unknown_name_is_bad_use(call):
    """The nearest name is in the message."""
    done = call("startup.hlep")
    assert isinstance(done.exception, UsageError)
    assert "startup.help" in str(done.exception)


def test_the_suite_runs_as_a_module_too():
    """One line on standard error, the exit status of bad use."""
    done = subprocess.run(
        [sys.executable, "-m", "lazypv_bench", "nothing.such"], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_BAD_INPUT
    assert done.stdout == ""
    assert done.stderr.startswith("lazypv: no benchmark is called 'nothing.such'")
