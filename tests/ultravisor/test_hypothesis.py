"""Hypothesis draws the sequences and the batches, and makes a failing one small."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazypv.ultravisor import BulkAnswer

from .test_bulk import CALLS, FRAMES, GUEST_PAGES, Twins
from .test_model import run

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@relaxed
@given(draw=st.randoms(use_true_random=False), misc=st.booleans(), steps=st.integers(1, 40))
def test_any_drawn_sequence_of_calls_leaves_what_the_model_leaves(draw, misc, steps):
    """Semantics 2.2, 2.3, 7: the dictionary model is asked after each call."""
    met = run((0,) if misc else (), draw, steps)
    assert all(isinstance(code, int) for _, code in met)


@relaxed
@given(
    name=st.sampled_from(sorted(CALLS)),
    seed=st.integers(0, 3),
    batch=st.lists(st.integers(0, FRAMES - 1), max_size=40),
)
def test_any_drawn_bulk_call_leaves_what_single_calls_leave(name, seed, batch):
    """Design, batch = page by page; hypothesis likes to repeat pages."""
    twins = Twins(seed)
    limit = FRAMES if name in ("export", "destroy", "pin", "host clears") else GUEST_PAGES
    column = np.array(batch, np.int64) % limit
    bulk = CALLS[name](twins.guests[0], column)
    singly = BulkAnswer.merge([CALLS[name](twins.guests[1], column[i : i + 1]) for i in range(column.size)])
    np.testing.assert_array_equal(bulk.rc, singly.rc)
    assert repr(bulk) == repr(singly)
    twins.assert_same()
