"""Several processes find what one finds, and none of them outlives the search."""

from __future__ import annotations

import multiprocessing

import pytest

from lazypv.errors import LazyPVError
from lazypv.explore.jobs import Job, in_pieces, share_out, work_here
from lazypv.explore.sampling import Manner
from lazypv.explore.search import Bounds, Outcome
from lazypv.explore.switches import Switches


def together(pieces):
    outcomes = {}
    for job, outcome in pieces:
        outcomes.setdefault(job.search, Outcome()).add(outcome)
    return outcomes


def test_several_processes_come_to_the_same_ends():
    jobs = [Job(name, 2, Bounds(1), Switches()) for name in ("reboot-twice", "shutdown", "killed-during-reboot")]
    alone, shared = together(work_here(jobs)), together(share_out(jobs, 2))
    assert alone.keys() == shared.keys()
    for search, outcome in alone.items():
        assert len(shared[search].final_states) == len(outcome.final_states)
        assert shared[search].schedules >= outcome.schedules
        assert not shared[search].broken
    assert not multiprocessing.active_children()


def test_what_one_process_finds_ends_that_search_for_all():
    jobs = [
        Job("shutdown", 2, Bounds(2), Switches(defects=("D3",)), Manner.RANDOM, numbers=range(1000), seed="1"),
        Job("shutdown", 2, Bounds(0), Switches()),
    ]
    found = together(share_out(jobs, 2))[("shutdown", 2)]
    assert {broken.violation.number for broken in found.broken} == {24}
    assert found.schedules < 1000


def test_what_a_process_meets_is_met_here():
    job = Job("shutdown", 2, Bounds(0), Switches(without=("77",)))
    with pytest.raises(LazyPVError, match="77") as caught:
        list(share_out([job], 1))
    assert caught.value.exit_status == 2
    assert not multiprocessing.active_children()


def test_random_runs_are_cut_into_pieces_that_draw_the_same_numbers():
    job = Job("shutdown", 2, Bounds(0), Switches(), Manner.PCT, numbers=range(700), seed="x")
    assert [number for piece in in_pieces(job) for number in piece.numbers] == list(range(700))
    assert in_pieces(Job("shutdown", 2, Bounds(0), Switches())) == [Job("shutdown", 2, Bounds(0), Switches())]
