"""Which stored page each page of a guest starts from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypv.errors import SizeError
from lazypv.image import NO_PAGE, GuestImage

from .dumps import PAGE


def image(guest_pages, count):
    pages = np.zeros((len(guest_pages), PAGE), dtype=np.uint8)
    return GuestImage("guest", pages, np.array(guest_pages, dtype=np.uint32), count * PAGE)


def test_guest_of_the_image_size_has_no_page_in_the_holes():
    guest = image([1, 2, 5], 7)
    rows = [NO_PAGE, 0, 1, NO_PAGE, NO_PAGE, 2, NO_PAGE]
    assert guest.source().tolist() == rows
    assert guest.source(7 * PAGE).tolist() == rows
    assert guest.source().dtype == np.uint32


def test_larger_guest_repeats_the_stored_pages_over_holes_and_the_rest():
    assert image([1, 2, 5], 7).source(10 * PAGE).tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2, 0]


def test_larger_guest_of_an_image_without_holes_is_the_image_again_and_again():
    assert image([0, 1, 2], 3).source(8 * PAGE).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_smaller_guest_is_refused_naming_both_sizes():
    with pytest.raises(SizeError, match=r"8192 bytes is smaller than image guest, which has 12288"):
        image([0], 3).source(2 * PAGE)


@pytest.mark.parametrize("memory", [4095, 3 * PAGE + 1, -1])
def test_guest_that_is_not_in_whole_pages_is_refused(memory):
    with pytest.raises(SizeError, match=f"guest memory of {memory} bytes is not a multiple of 4096"):
        image([0], 3).source(memory)


@pytest.mark.parametrize("memory", [0, -PAGE])
def test_guest_without_memory_is_refused(memory):
    with pytest.raises(SizeError, match="smaller than image"):
        image([0], 1).source(memory)


def test_guest_beyond_what_rows_can_name_is_refused():
    with pytest.raises(SizeError, match="larger than 17592186040320"):
        image([0], 1).source(16 << 40)


def test_each_call_gives_a_table_of_its_own():
    guest = image([0, 1], 2)
    guest.source()[:] = 9
    assert guest.source().tolist() == [0, 1]


def test_image_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        image([0], 1).size = 0


@given(
    stored=st.sets(st.integers(0, 20), max_size=12),
    hole_behind=st.integers(0, 3),
    more=st.integers(1, 40),
)
def test_rows_are_the_images_own_where_it_has_a_page_and_cyclic_elsewhere(stored, hole_behind, more):
    guest_pages = sorted(stored)
    count = (max(stored) + 1 if stored else 1) + hole_behind
    rows = image(guest_pages, count).source((count + more) * PAGE).tolist()
    elsewhere = [page for page in range(count + more) if page not in stored]
    assert [rows[page] for page in guest_pages] == list(range(len(stored)))
    assert [rows[page] for page in elsewhere] == [i % len(stored) if stored else NO_PAGE for i in range(len(elsewhere))]
