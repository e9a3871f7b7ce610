"""`lazypv reboot` and `lazypv shutdown` under somebody's own teardown protocol.

Source: issue 3, "Your own protocol".
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from lazypv.__main__ import run

SMALL = ["--memory", "32MiB", "--sync-below", "8MiB", "--repeat", "1"]
OWN = f"{Path(__file__).parents[2] / 'examples' / 'configuration_first.py'}:ConfigurationFirst"
HEADER = "from lazypv.policy import *\n\n"


def written(folder, body):
    path = folder / "mine.py"
    path.write_text(f"{HEADER}class Mine(SeriesTeardown):\n{body}", encoding="utf-8")
    return f"{path}:Mine"


@pytest.mark.parametrize("kind", ["reboot", "shutdown"])
def test_an_own_policy_is_a_column_beside_the_series(kind, capsys, tmp_path):
    """Pages that a walk destroyed are cleaned with the configuration; all are accounted for."""
    timeline = tmp_path / "run.arrow"
    command = [kind, *SMALL, "--policy", "lazy", "--policy", OWN, "--json", "--save", str(timeline)]
    assert run(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["policies"]) == ["lazy", OWN]
    lazy, own = (report["policies"][name]["pages"] for name in ("lazy", OWN))
    assert lazy["cleaned_by_configuration"] == 0
    assert own["destroyed_background"] == 0
    assert own["cleaned_by_configuration"] > 4000
    assert sum(own.values()) - own["set_aside"] == 8192
    assert report["invariants"]["violated"] == 0
    assert report["speedup"] is None
    assert f"under {OWN}" in report["summary"]
    assert set(pa.ipc.open_file(timeline).read_all()["policy"].to_pylist()) == {"lazy", OWN}


def test_the_table_has_a_column_of_that_name(capsys):
    assert run(["reboot", *SMALL, "--policy", OWN]) == 0
    out = capsys.readouterr().out
    assert "ConfigurationFirst" in out
    assert "no invariant violated" in " ".join(out.split())


def test_a_policy_that_is_named_twice_has_one_column(capsys):
    assert run(["reboot", *SMALL, "--policy", "lazy", "--policy", "both", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["policies"]) == ["lazy", "eager"]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("    async def reset(self, vm):\n        return vm.nothing\n", 2, "mine.py:5, in reset: AttributeError"),
        (
            "    async def in_background(self, vm, record):\n        raise KeyError('lost')\n",
            2,
            "mine.py:5, in in_background: KeyError: 'lost'",
        ),
        (
            "    async def reset(self, vm):\n        async with vm.kvm.lock.shared():\n            return DEFERRED\n",
            3,
            "mine.py:Mine: all actors wait: ",
        ),
        (
            "    async def in_background(self, vm, record):\n        await super().in_background(vm, record)\n"
            "        vm.host.machine.frames.put(record.pv.base)\n",
            3,
            "a reference was dropped twice",
        ),
    ],
)
def test_what_a_policy_breaks_is_one_line_and_its_own(tmp_path, capsys, body, status, told):
    own = written(tmp_path, body)
    assert run(["reboot", *SMALL, "--policy", own]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.startswith(("lazypv: policy Mine (", f"lazypv: under the policy {own}: "))
    assert err.count("\n") == 1
    assert run(["reboot", *SMALL, "--policy", "lazy"]) == 0, "nothing of it is left"


def test_a_policy_that_leaves_a_configuration_behind_is_a_violation(tmp_path, capsys):
    """Invariant 34: its thread cleans every page, and forgets the configuration. The table is shown all the same."""
    body = """    async def in_background(self, vm, record):
        await drain_set_aside(vm.host.pages, record.mm, "destroyed_background")
        if record.has_mm:
            await mmput(vm.host, record.mm)
        await record.mm.drop()
        vm.host.discarded(record)
"""
    assert run(["reboot", *SMALL, "--policy", written(tmp_path, body)]) == 3
    out, err = capsys.readouterr()
    assert "downtime" in out
    assert "invariant 34 is violated" in err


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("hasty", "'hasty' is not a policy: write FILE.py:NAME, or one of eager, lazy, both"),
        ("nowhere.py:Mine", "nowhere.py: No such file or directory"),
    ],
)
def test_a_policy_that_cannot_be_had_gets_one_line_before_anything_is_run(policy, told, capsys):
    assert run(["shutdown", *SMALL, "--policy", policy]) == 2
    assert capsys.readouterr().err == f"lazypv: {told}\n"
