"""`lazypv bench`, as far as it can be seen without measuring much."""

from __future__ import annotations

import json
import subprocess
import sys

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
