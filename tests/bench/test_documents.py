"""What a run leaves behind: the Arrow table of its turns, the picture, and the tables of the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from lazypv.errors import UsageError
from lazypv_bench import readme
from lazypv_bench.harness import Result, Runs, Settings, measure
from lazypv_bench.picture import require_matplotlib, save_plot
from lazypv_bench.report import as_object, results_of
from lazypv_bench.saved import save_turns

from .fakes import fake_benchmark, silent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def measured():
    """Three turns of a subject, a limit and a rival."""
    return measure(fake_benchmark([[9, 2, 4, 1], [9, 1, 1, 1], [9, 4, 4, 4]], bar=0.4), None, 3, silent)


# --- turns -------------------------------------------------------------------------------------------------------


def test_a_result_knows_the_ratio_of_every_turn(measured):
    """And everybody's seconds."""
    assert measured.turns == (0.5, 0.25, 1.0)
    assert [(runs.role, runs.label, runs.seconds) for runs in measured.runs] == [
        ("subject", "fake", (2, 4, 1)),
        ("limit", "b", (1, 1, 1)),
        ("rival", "c", (4, 4, 4)),
    ]


def test_every_turn_is_saved(measured, tmp_path):
    """One row for each turn of each who took part; the document is in the metadata."""
    path = tmp_path / "turns.arrow"
    told = as_object([measured], Settings(1 << 30, 3))
    save_turns([measured], told, path)
    table = pa.ipc.open_file(path).read_all()
    rows = table.to_pylist()
    assert len(rows) == 9
    assert rows[0] == {
        "benchmark": "fake", "turn": 0, "role": "subject", "label": "fake", "seconds": 2.0, "bytes": 1000,
        "ratio": None,
    }  # fmt: skip
    assert [row["ratio"] for row in rows if row["role"] == "limit"] == [0.5, 0.25, 1.0]
    assert [row["ratio"] for row in rows if row["role"] == "rival"] == [2.0, 1.0, 4.0]
    assert json.loads(table.schema.metadata[b"document"]) == told
    assert table.schema.metadata[b"schema"] == b"lazypv.bench/1"


def test_a_table_that_cannot_be_written_leaves_the_old_one(measured, tmp_path):
    """Atomically, or not at all."""
    path = tmp_path / "turns.arrow"
    path.write_text("old")
    with pytest.raises(TypeError):
        save_turns([measured], {"not": object()}, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- the picture -------------------------------------------------------------------------------------------------

DRAWN = [
    Result("one.met", 0.9, 0.8, 1.0, "higher", 0.85, "fill", "GB/s", 50.0, {"numpy": 3.0}),
    Result("two.missed", 20.0, 15.0, 25.0, "lower", 10, "fill", "ms", 5.0, {}),
    Result("three", 0.5, 0.4, 0.6, "higher", None, "fill", "GB/s", 1.0, {}),
]


def test_the_picture_names_every_benchmark_and_is_the_same_twice(tmp_path):
    """Of the same results; so that a documentation's file changes only with its figures."""
    pytest.importorskip("matplotlib")
    save_plot(DRAWN, {"cpu": "Some processor", "cores": 2}, tmp_path / "one.svg")
    save_plot(DRAWN, {"cpu": "Some processor", "cores": 2}, tmp_path / "two.svg")
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert all(result.name in text for result in DRAWN)
    assert "Some processor" in text
    assert all(colour in text for colour in ("#2a7f62", "#c2452d", "#5b6b7b"))


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path):
    """And nothing is left."""
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match=r"out\.doc"):
        save_plot(DRAWN, {}, tmp_path / "out.doc")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_it_is_said_before_anything_runs(monkeypatch):
    """With what to install."""
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"lazypv\[plots\]"):
        require_matplotlib()


# --- the documentation -------------------------------------------------------------------------------------------


def test_results_come_back_from_their_document(measured):
    """But for the runs, which are in the Arrow table."""
    (back,) = results_of(json.loads(json.dumps(as_object([measured], Settings(1 << 30, 3)))))
    assert (back.name, back.ratio, back.low, back.high, back.rivals) == ("fake", 0.5, 0.25, 1.0, {"c": 2.0})
    assert back.met is True


def test_the_table_takes_the_place_of_what_stood_between_the_markers(measured):
    """And nothing else of the page changes; twice is once."""
    page = f"before\n\n{readme.BEGIN}\nold\n{readme.END}\n\nafter\n"
    document = as_object([measured], Settings(1 << 30, 3))
    new = readme.rewritten(page, document, short=False)
    assert new.startswith("before\n\n")
    assert new.endswith("\n\nafter\n")
    assert "old" not in new
    assert "| `fake` | 0.5 | 0.25 to 1 | ≥ 0.4 | b |" in new
    assert "1 GiB, 3 turns" in new
    assert readme.rewritten(new, document, short=False) == new


def test_the_short_table_has_only_what_has_a_bar():
    """The README's."""
    document = as_object(DRAWN, Settings())
    page = f"{readme.BEGIN}{readme.END}"
    assert "`three`" in readme.rewritten(page, document, short=False)
    assert "`three`" not in readme.rewritten(page, document, short=True)
    assert "`one.met`" in readme.rewritten(page, document, short=True)


@pytest.mark.parametrize("page", ["no marker", readme.BEGIN, f"{readme.END} {readme.BEGIN}"])
def test_a_page_without_markers_is_refused(measured, page):
    """By its name."""
    with pytest.raises(UsageError, match="the page: has no"):
        readme.rewritten(page, as_object([measured], Settings()), short=False)


def test_one_command_writes_tables_and_picture(measured, tmp_path):
    """From what `lazypv bench --json` printed, into the pages as they are in this checkout."""
    pytest.importorskip("matplotlib")
    (tmp_path / "docs").mkdir()
    for name in readme.PAGES:
        (tmp_path / name).write_text((ROOT / name).read_text())
    saved = tmp_path / "results.json"
    saved.write_text(json.dumps(as_object([measured], Settings(1 << 30, 3))))
    written = readme.update(saved, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [*readme.PAGES, readme.PICTURE]
    assert all("`fake`" in (tmp_path / name).read_text() for name in readme.PAGES)
    assert "fake" in (tmp_path / readme.PICTURE).read_text()


def test_runs_without_a_limit_are_known_by_their_extremes():
    """As a result that came from a document is."""
    assert Result("a", 0.5, 0.4, 0.6, "higher", None, "", "", 1, {}).turns == (0.4, 0.5, 0.6)
    assert Runs("subject", "a", 1, (1.0,)).ratios == ()
