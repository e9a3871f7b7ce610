"""What the results look like, for programs and for people."""

from __future__ import annotations

import io
import json

from rich.console import Console

from lazypv._version import __version__
from lazypv_bench.comparison import Change
from lazypv_bench.harness import Result, Settings
from lazypv_bench.report import as_object, print_changes, print_list, print_table

from .fakes import fake_benchmark

MISSED = Result("some.thing", 0.5, 0.25, 1.0, "higher", 0.7, "streaming fill", "GB/s", 12.5, {"python loop": 3.0})
MET = Result("some.growth", 1.1, 1.0, 1.2, "lower", 1.15, "small guest", "ms", 40.0, {})
WITHOUT = Result("some.other", 2.0, 1.0, 3.0, "higher", None, "copy", "GB/s", 1.0, {})


def table_of(*results):
    text = io.StringIO()
    print_table(list(results), Settings(1 << 30, 3), Console(file=text, width=80))
    return text.getvalue()


def test_json_is_one_object_with_schema_machine_and_results():
    """Another program can compare two of them."""
    document = json.loads(json.dumps(as_object([MISSED, WITHOUT], Settings(1 << 30, 3))))
    assert document["schema"] == "lazypv.bench/1"
    assert document["version"] == __version__
    assert document["machine"].keys() == {
        "cpu", "cores", "memory_bytes", "system", "python", "kernel", "huge_pages", "features", "versions",
    }  # fmt: skip
    assert document["machine"]["versions"].keys() >= {"python", "numpy", "numba", "libsodium", "libc"}
    assert document["turns"] == {"some.thing": [0.25, 0.5, 1.0], "some.other": [1.0, 2.0, 3.0]}
    assert (document["size_bytes"], document["pairs"]) == (1 << 30, 3)
    assert document["results"][0] == {
        "name": "some.thing",
        "ratio": 0.5,
        "low": 0.25,
        "high": 1.0,
        "better": "higher",
        "bar": 0.7,
        "limit": "streaming fill",
        "unit": "GB/s",
        "value": 12.5,
        "rivals": {"python loop": 3.0},
        "bar_of": "ratio",
        "limit_over_rivals": {"python loop": 6.0},
    }
    assert document["results"][1]["bar"] is None


def test_the_table_shows_ratio_spread_bar_and_verdict():
    """On 80 columns, each benchmark in a row of its own."""
    text = table_of(MISSED, MET, WITHOUT)
    rows = {row.split()[0]: row for row in text.splitlines() if row.startswith("some.")}
    assert all(word in rows["some.thing"] for word in ("0.5", "0.25..1", "≥ 0.7", "missed"))
    assert "verdict" in text
    assert all(word in rows["some.growth"] for word in ("1.1", "1..1.2", "≤ 1.15", "met"))
    assert "missed" not in rows["some.growth"]
    assert not any(word in rows["some.other"] for word in ("≥", "met", "missed"))


def test_the_table_names_what_is_compared():
    """The limit, the value, and the rivals."""
    text = table_of(MISSED)
    assert "limit: streaming fill" in text
    assert "12.5 GB/s" in text
    assert "rival: python loop" in text
    assert "1 GiB, 3 turns" in text


def test_a_comparison_has_a_row_for_each_benchmark():
    """What was, what is, the change, and the verdict."""
    text = io.StringIO()
    changes = [
        Change("some.thing", "slower", 0.8, 0.72, -0.1, 0.00058),
        Change("some.other", "new", None, 2.0, None, None),
    ]
    print_changes(changes, Console(file=text, width=80))
    lines = text.getvalue().replace("│", " ").splitlines()
    rows = {row.split()[0]: row.split() for row in lines if row.startswith("some.")}
    assert rows["some.thing"] == ["some.thing", "0.8", "0.72", "-10.0%", "0.00058", "slower"]
    assert rows["some.other"] == ["some.other", "2", "new"]


def test_the_list_is_one_line_a_benchmark(capsys):
    """Its name, and what is done."""
    print_list([fake_benchmark([[1], [1]])])
    assert capsys.readouterr().out == "fake  \n"


def test_no_figure_is_cut_off_on_80_columns():
    """The longest name, the longest unit, the longest figures."""
    unit = "of the guest's speed alone"
    longest = Result(
        "destroy.walk4096.beside", 0.0737, 0.0726, 0.0757, "higher", 0.78, "streaming fill", unit, 0.342, {}
    )
    assert "…" not in table_of(longest)
