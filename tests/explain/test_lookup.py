"""Topics are found however a person writes them; what is unknown leads to what is near."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from lazypv.errors import EXIT_BAD_INPUT, UsageError
from lazypv.explain import Entry, entries, locate, lookup, render


@pytest.mark.parametrize(
    ("topic", "found"),
    [
        ("07", "07"),
        ("7", "07"),
        ("patch 7", "07"),
        ("Patch  07", "07"),
        ("11", "11"),
        ("D17", "D17"),
        ("d17", "D17"),
        ("defect d7", "D7"),
        ("D11b", "D11b"),
        ("d11B", "D11b"),
        ("0x3f", "0x3f"),
        ("0X3F", "0x3f"),
        ("3f", "0x3f"),
        ("exception 0x3d", "0x3d"),
        ("invariant 22", "invariant 22"),
        (" Invariant 022 ", "invariant 22"),
        ("invariant22", "invariant 22"),
        ("i22", "invariant 22"),
        ("I 4", "invariant 4"),
    ],
)
def test_a_topic_is_found_however_it_is_written(topic, found):
    assert lookup(topic).id == found


def test_every_entry_is_found_by_its_id_and_by_its_name():
    for entry in entries():
        assert lookup(entry.id) is entry
        assert lookup(entry.name) is entry


@pytest.mark.parametrize(
    ("topic", "near"),
    [
        ("22", "nearest are D22 and 'invariant 22'"),
        ("12", "nearest are D12 and 'invariant 12'"),
        ("D99", "nearest are D9, D19 and D29"),
        ("invariant 0x3f", "0x3f"),
        ("invarient 41", "nearest is 'invariant 41'"),
        ("0x40", "topics are 01 to 11"),
        ("patch 0", "topics are 01 to 11"),
        ("banana", "'banana' is not explained: topics are 01 to 11, D1 to D31, 0x3c to 0x3f, 'invariant 1' to"),
        ("", "topics are 01 to 11"),
        ("۷", "topics are 01 to 11"),
        ("0" * 5000, "topics are 01 to 11"),
    ],
)
def test_an_unknown_topic_leads_to_the_nearest(topic, near):
    with pytest.raises(UsageError) as caught:
        lookup(topic)
    assert near in str(caught.value)
    assert caught.value.exit_status == EXIT_BAD_INPUT


def test_a_text_has_heading_paragraph_place_and_related_topics():
    lines = render(lookup("07")).splitlines()
    assert lines[0] == "patch 07: export before import"
    assert max(len(line) for line in lines) <= 100
    assert " ".join(lines[2 : lines.index("", 2)]) == lookup("07").text
    assert lines[-3] == f"where     {locate(lookup('07').place)}"
    assert lines[-2].strip() == lookup("07").place
    assert lines[-1] == "see also  06, 11, 0x3e, invariant 12"


def test_no_text_is_wider_than_a_terminal():
    for entry in entries():
        assert max(len(line) for line in render(entry).splitlines()) <= 100


def test_what_is_not_modelled_is_shown_as_such():
    assert "where     not in this model" in render(lookup("0x3c"))


def test_entries_cannot_be_changed():
    with pytest.raises(AttributeError):
        lookup("07").title = "something else"


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("lazypv.errors:EXIT_BUG", "lazypv/errors.py:"),
        ("lazypv.errors:UsageError", "lazypv/errors.py:"),
        ("lazypv.errors:LazyPVError.exit_status", "lazypv/errors.py:"),
        ("lazypv.explain.catalogue:Entry.title", "lazypv/explain/catalogue.py:"),
        ("lazypv.explain.catalogue:Entry.kind", "lazypv/explain/catalogue.py:"),
        ("lazypv.explain:__all__", "lazypv/explain/__init__.py:"),
        ("lazypv:__doc__", None),
        ("lazypv.errors:Nothing", None),
        ("lazypv.errors:UsageError.nothing", None),
        ("lazypv.errors:EXIT_BUG.nothing", None),
        ("lazypv.errors:", None),
        ("lazypv.nothing:nothing", None),
        ("no_such_package.at_all:nothing", None),
        ("", None),
    ],
)
def test_a_place_is_a_file_and_a_line_or_refused(place, where):
    if where is None:
        with pytest.raises(UsageError):
            locate(place)
    else:
        path, _, line = locate(place).rpartition(":")
        assert path + ":" == where
        assert int(line) > 0


def test_explaining_imports_neither_numpy_nor_numba_nor_pyarrow():
    """Everything is rendered in a fresh interpreter, kernels' places included."""
    program = """
        import sys
        from lazypv.explain import entries, render
        for entry in entries():
            render(entry)
        heavy = {"numpy", "numba", "pyarrow", "lazypv_kernels"}
        print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_entry_knows_its_kind():
    assert {entry.kind for entry in entries()} == {"patch", "defect", "exception", "invariant"}
    assert Entry("0x3f", "t", "p", "", ()).name == "exception 0x3f"
    assert Entry("invariant 1", "t", "p", "", ()).name == "invariant 1"
