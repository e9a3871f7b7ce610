"""What all tests share: machines small enough that every page can be looked at."""

from __future__ import annotations

import sys

import pytest

from lazypv.hardware import Machine


@pytest.fixture
def machine():
    """A machine of 64 frames, with contents."""
    made = Machine(64 * 4096, uv_base_pages=1)
    yield made
    made.close()


@pytest.fixture
def quick_switches():
    """Python threads take turns a hundred times as often: more orders of events in less time."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(usual)
