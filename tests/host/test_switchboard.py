"""The switchboard: defects by number, presets, and what is refused. Patches: test_patches."""

from __future__ import annotations

import importlib

import pytest

from lazypv.errors import UsageError
from lazypv.explain import lookup
from lazypv.series import DEFECTS, NOT_SWITCHED, PATCHES, PRESETS, Series

from .worlds import posted


def test_every_defect_is_a_switch_that_names_its_place_and_is_explained_there():
    """Design, the switchboard."""
    for each in DEFECTS:
        module, _, name = each.place.partition(":")
        place = importlib.import_module(module)
        for part in name.split("."):
            place = getattr(place, part)
        assert getattr(Series(), each.switch) is False
        assert getattr(posted(each.number), each.switch) is True
        entry = lookup(each.number)
        assert (entry.title, entry.place) == (each.title, each.place)


def test_every_known_defect_is_a_switch_or_has_a_reason_not_to_be():
    """Semantics 5: D1 to D31."""
    known = {f"D{number}" for number in range(1, 32)} | {"D11b"}
    switched = {each.number for each in DEFECTS}
    assert switched | set(NOT_SWITCHED) == known
    assert switched & set(NOT_SWITCHED) == set()
    assert all("\n" not in reason for reason in NOT_SWITCHED.values())


def test_presets():
    """posted is version 1 as mailed, repaired what is in force unless said otherwise."""
    assert Series.repaired() == Series() == PRESETS["repaired"]
    assert Series.posted() == PRESETS["posted"] == posted(*(each.number for each in DEFECTS))
    assert all(getattr(Series.posted(), each.switch) for each in (*PATCHES, *DEFECTS))


def test_a_defect_that_does_not_exist_is_refused_with_those_that_do():
    """Series.with_defects."""
    with pytest.raises(UsageError, match=r"'D99'.*D1, D2, .*D27"):
        posted("D99")


@pytest.mark.parametrize("number", NOT_SWITCHED)
def test_a_defect_that_is_no_switch_is_refused_with_the_reason(number):
    """Series.with_defects."""
    with pytest.raises(UsageError) as refused:
        posted(number)
    assert NOT_SWITCHED[number] in str(refused.value)


@pytest.mark.parametrize(("number", "patch"), [(each.number, patch) for each in DEFECTS for patch in each.needs])
def test_a_defect_without_the_patch_that_brought_it_is_refused(number, patch):
    """In whatever order they are named."""
    for make in (
        lambda: Series().without(patch).with_defects(number),
        lambda: Series().with_defects(number).without(patch),
    ):
        with pytest.raises(UsageError, match=rf"{number} .*patch {patch}"):
            make()
