"""The entries: each topic is there once, in our own words, and points to code that exists."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

from lazypv.explain import entries, locate
from lazypv.explain.places import source_file
from lazypv.series import PATCHES

TOPICS = (
    [f"{number:02}" for number in range(1, 12)]
    + sorted([f"D{number}" for number in range(1, 32)] + ["D11b"], key=lambda each: (int(each.strip("Db")), each))
    + ["0x3c", "0x3d", "0x3e", "0x3f"]
    + [f"invariant {number}" for number in range(1, 43)]
)
NOT_MODELLED = {"0x3c", "D28", "D29", "D30", "D31", "invariant 28"}
REPOSITORY = Path(__file__).parents[2]
SEMANTICS = REPOSITORY.parent / "shared" / "reference" / "protected-vm-semantics.md"
LONGEST_COMMON_RUN = 11

every_entry = pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.id)


def words(text):
    return re.findall(r"[a-z0-9_]+", text.lower())


def runs(text, length):
    """All runs of `length` consecutive words."""
    found = words(text)
    return {tuple(found[at : at + length]) for at in range(len(found) - length + 1)}


def test_every_topic_is_there_once_and_in_order():
    assert [entry.id for entry in entries()] == TOPICS


def test_patches_agree_with_the_switchboard():
    patches = [(entry.id, entry.title, entry.place) for entry in entries() if entry.kind == "patch"]
    assert patches == [(patch.number, patch.title, patch.place) for patch in PATCHES]


@every_entry
def test_a_paragraph_has_60_to_130_words(entry):
    assert 60 <= len(entry.text.split()) <= 130
    assert entry.text.endswith(".")
    assert "  " not in entry.text
    assert "\n" not in entry.text


@every_entry
def test_related_topics_exist_and_do_not_repeat(entry):
    assert set(entry.see) <= set(TOPICS) - {entry.id}
    assert len(set(entry.see)) == len(entry.see) > 0


def test_only_what_is_not_modelled_has_no_place():
    assert {entry.id for entry in entries() if not entry.place} == NOT_MODELLED


@every_entry
def test_what_has_no_place_says_so(entry):
    if not entry.place:
        assert re.search(r"\bmodel", entry.text)
        assert re.search(r"\b(no|not|neither|nor)\b", entry.text)


@every_entry
def test_the_line_of_a_place_defines_its_name(entry):
    if not entry.place:
        return
    module, _, qualname = entry.place.partition(":")
    path, _, line = locate(entry.place).rpartition(":")
    source = source_file(module)
    assert source.as_posix().endswith(path)
    assert re.search(rf"\b{qualname.rpartition('.')[2]}\b", source.read_text().splitlines()[int(line) - 1])


@every_entry
def test_a_place_can_be_imported(entry):
    if entry.place:
        module, _, qualname = entry.place.partition(":")
        reduce(getattr, qualname.split("."), importlib.import_module(module))


@pytest.mark.skipif(not SEMANTICS.exists(), reason="the reference is not beside the checkout")
def test_nothing_is_copied_from_the_reference():
    reference = runs(SEMANTICS.read_text(encoding="utf-8"), LONGEST_COMMON_RUN + 1)
    common = {entry.id: runs(entry.text, LONGEST_COMMON_RUN + 1) & reference for entry in entries()}
    assert {topic: found for topic, found in common.items() if found} == {}
