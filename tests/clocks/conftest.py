"""A clock, and the certainty that none of its threads outlives a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lazypv.clocks.live import LiveClock


@pytest.fixture
def clock() -> Iterator[LiveClock]:
    """A clock; stopped at the end, when every thread it started has to be gone."""
    before = set(threading.enumerate())
    made = LiveClock()
    yield made
    made.stop()
    assert set(threading.enumerate()) <= before
