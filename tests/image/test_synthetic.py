"""The guest that needs no file: the same everywhere, and distributed like the real one."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypv.errors import SizeError
from lazypv.image import NO_PAGE, open_image, synthetic

from .dumps import PAGE, entropy

MIB = 1 << 20


@pytest.fixture(scope="module")
def guest():
    return open_image(None)


def test_seed_zero_is_these_bytes_on_every_platform(guest):
    assert hashlib.sha256(guest.pages).hexdigest() == "6bc3c450874545e10f8985ddbbdf4730da2bcbb21dab49d04659820b6def2be0"


@pytest.mark.parametrize(
    ("seed", "sha256"),
    [
        (1, "0ca8c34d3667def6cf2b8a14cc1a06aebf7205e616baf211711c2f7c96e70cfb"),
        (2**70, "bd5c3337dbb38122b0621f95fd9bb25c60244745d110cdf76a98d11dac704ee8"),
        (-5, "a38597f8865e7b47e2286ebac1b615c84e788ac7cdb7c3f1cd5af9814baa9d90"),
    ],
)
def test_each_seed_is_these_bytes_on_every_platform(seed, sha256):
    assert hashlib.sha256(synthetic(seed, 4 * MIB).pages).hexdigest() == sha256


def test_default_guest_has_256_mib_and_stores_its_zero_pages_too(guest):
    assert (guest.name, guest.size) == ("synthetic", 256 * MIB)
    assert guest.pages.shape == (65536, PAGE)
    assert np.array_equal(guest.source(), np.arange(65536))
    assert NO_PAGE not in guest.source(512 * MIB)
    assert not guest.pages.flags.writeable


def test_seed_of_open_image_is_that_of_the_synthetic_guest():
    assert np.array_equal(open_image(None, seed=7).pages, synthetic(7).pages)


def test_zero_pages_are_as_many_as_in_the_real_guest_and_stand_in_runs(guest):
    zero = ~guest.pages.any(axis=1)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[True], zero, [True]]))))[::2]
    assert zero.sum() == 46759
    assert runs.size == pytest.approx(215, rel=0.05)
    assert 2 <= np.median(runs) <= 5
    assert runs.max() > 1000


def test_contents_repeat_as_often_as_in_the_real_guest(guest):
    data = guest.pages[guest.pages.any(axis=1)]
    counts = Counter(hashlib.sha256(page).digest() for page in data)
    assert len(counts) == pytest.approx(14325, rel=0.05)
    assert sum(count for count in counts.values() if count > 1) == pytest.approx(5529, rel=0.15)
    assert counts[hashlib.sha256(b"\xff" * PAGE).digest()] == pytest.approx(293, rel=0.25)


def test_entropy_of_the_pages_is_distributed_as_in_the_real_guest(guest):
    bits = entropy(guest.pages[guest.pages.any(axis=1)])
    histogram = np.histogram(bits, bins=[0, 1e-9, 1, 2, 3, 4, 5, 6, 7, 8])[0]
    real = [293, 1174, 2805, 3942, 768, 3517, 4439, 1434, 403]
    assert histogram == pytest.approx(real, rel=0.25)
    assert bits.mean() == pytest.approx(3.78, abs=0.15)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(), pages=st.integers(1, 700))
def test_every_size_has_its_share_of_zero_pages_and_the_same_bytes_twice(seed, pages):
    guest = synthetic(seed, pages * PAGE)
    assert (~guest.pages.any(axis=1)).sum() == pages * 7135 // 10000
    assert np.array_equal(guest.pages, synthetic(seed, pages * PAGE).pages)


def test_other_seeds_give_other_bytes():
    digests = {hashlib.sha256(synthetic(seed, MIB).pages).digest() for seed in range(20)}
    assert len(digests) == 20


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE + 1, 16 << 40])
def test_size_that_no_guest_can_have_is_refused(size):
    with pytest.raises(SizeError, match=f"synthetic guest of {size} bytes"):
        synthetic(0, size)
