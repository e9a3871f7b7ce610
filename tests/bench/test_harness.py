"""How benchmarks are timed and chosen, on work that only says how long it took."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest

from lazypv.errors import ModelError, SizeError, UsageError
from lazypv_bench import harness
from lazypv_bench.harness import DEFAULT_SIZE, Settings, Work, benchmark, measure, phases, seconds_of, select

from .fakes import Clock, fake_benchmark, silent


def runs_in(log):
    return [entry for entry in log if " " not in entry]


# --- the order of things -----------------------------------------------------------------------------------------


def test_everybody_warms_up_once_and_then_subject_and_limit_take_turns():
    """Design: interleaved pairs, A B B A, warm."""
    log = []
    measure(fake_benchmark([[1] * 5, [1] * 5], log=log), None, 4, silent)
    assert runs_in(log) == list("ababbaabba")


def test_rivals_stand_behind_the_limit_and_turn_with_it():
    """Subject and limit are neighbours in every turn."""
    log = []
    measure(fake_benchmark([[1] * 3] * 4, log=log), None, 2, silent)
    assert runs_in(log) == list("abcdabcddcba")


def test_every_run_is_prepared_before_and_finished_after():
    """Also the one that warms up."""
    log = []
    measure(fake_benchmark([[1] * 2, [1] * 2], log=log), None, 1, silent)
    once = ["prepare a", "a", "finish a", "prepare b", "b", "finish b"]
    assert log == once + once


def test_progress_is_told_as_often_as_was_promised():
    """One phase for setting up, one for each turn."""
    told = []
    measure(fake_benchmark([[1] * 4, [1] * 4]), None, 3, told.append)
    assert len(told) == phases(3)
    assert told[0].startswith("fake:")


# --- what is timed -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness, "time", clock)
    return clock


def test_only_the_run_is_timed(clock):
    """Preparing and finishing may take as long as they like."""

    def takes(seconds):
        def pass_time():
            clock.now += seconds

        return pass_time

    assert seconds_of(Work(run=takes(2.0), prepare=takes(100.0), finish=takes(50.0))) == 2.0


def test_a_run_may_say_itself_which_part_of_it_counts(clock):
    """As a downtime does, which stands in the report."""

    def run():
        clock.now += 9.0
        return 0.25

    assert seconds_of(Work(run=run)) == 0.25


def test_no_garbage_is_collected_while_time_runs():
    """And what was before is so again afterwards."""
    seen = {}

    def note(what):
        seen[what] = gc.isenabled()

    seconds_of(Work(run=lambda: note("run"), prepare=lambda: note("prepare"), finish=lambda: note("finish")))
    assert seen == {"prepare": True, "run": False, "finish": True}


def test_garbage_is_collected_again_after_a_run_that_failed():
    """The error goes on to the caller."""

    def run():
        raise ModelError("not today")

    with pytest.raises(ModelError, match="not today"):
        seconds_of(Work(run=run))
    assert gc.isenabled()


def test_garbage_collection_that_somebody_had_switched_off_stays_off():
    """The harness puts back what it found."""
    gc.disable()
    try:
        seconds_of(Work(run=lambda: None))
        assert not gc.isenabled()
    finally:
        gc.enable()


# --- ratios ------------------------------------------------------------------------------------------------------


def test_higher_is_speed_over_speed_turn_by_turn():
    """Median, lowest and highest of the ratios; the warm-up counts for nothing."""
    result = measure(fake_benchmark([[99, 2, 4, 1], [99, 1, 1, 1]]), None, 3, silent)
    assert (result.ratio, result.low, result.high) == (0.5, 0.25, 1.0)


def test_lower_is_time_over_time():
    """Whatever the bytes are."""
    declared = fake_benchmark([[99, 2, 4, 1], [99, 1, 1, 1]], sizes=[3000, 1000], better="lower")
    result = measure(declared, None, 3, silent)
    assert (result.ratio, result.low, result.high) == (2.0, 1.0, 4.0)


def test_speeds_count_the_bytes_of_each():
    """A limit may go over a few bytes less."""
    result = measure(fake_benchmark([[1, 1], [1, 1]], sizes=[500, 1000]), None, 1, silent)
    assert result.ratio == 0.5


def test_ratios_are_of_runs_in_the_same_turn():
    """A slow moment that meets both changes nothing, whichever ran first."""
    result = measure(fake_benchmark([[1, 1, 10, 1], [1, 2, 20, 2]]), None, 3, silent)
    assert (result.ratio, result.low, result.high) == (2.0, 2.0, 2.0)


def test_rivals_are_ratios_too():
    """By their names, medians, in the benchmark's own sense."""
    result = measure(fake_benchmark([[1, 1, 2], [1, 1, 1], [1, 4, 4], [1, 1, 1]]), None, 2, silent)
    assert result.rivals == {"c": 3.0, "d": 0.75}


@pytest.mark.parametrize(
    ("better", "bar", "met"),
    [
        ("higher", 0.5, True),
        ("higher", 0.51, False),
        ("lower", 2.0, True),
        ("lower", 1.9, False),
        ("lower", None, None),
    ],
)
def test_a_bar_is_met_from_the_right_side(better, bar, met):
    """The subject takes twice as long as the limit."""
    result = measure(fake_benchmark([[2, 2], [1, 1]], better=better, bar=bar), None, 1, silent)
    assert result.met is met


@pytest.mark.parametrize(("value", "better", "met"), [(12, "lower", True), (13, "lower", False), (13, "higher", True)])
def test_a_bar_of_a_value_is_one_at_the_full_size(value, better, met):
    """Issue 4: 12 GiB for a machine of 4 TiB; what a smaller one takes says nothing of that."""
    declared = {"better": better, "bar": 12, "unit": "GiB", "bar_of": "value", "share": 0.5}
    fakes = [fake_benchmark([[2, 2], [1, 1]], value=lambda: value, **declared) for _ in range(2)]
    full = measure(fakes[0], SimpleNamespace(size=DEFAULT_SIZE // 2), 1, silent)
    assert (full.met, full.bar_text) == (met, f"{'≥' if better == 'higher' else '≤'} 12 GiB")
    assert full.bar_ratio == 12 * full.ratio / value
    small = measure(fakes[1], SimpleNamespace(size=DEFAULT_SIZE // 4), 1, silent)
    assert (small.met, small.bar, small.bar_text, small.bar_ratio) == (None, None, "", None)


def test_an_empty_name_is_not_all_of_them():
    """A script whose variable is empty does not want to measure for a quarter of an hour."""
    with pytest.raises(UsageError, match="an empty name"):
        select([""], harness.REGISTRY)


@pytest.mark.parametrize(("unit", "value"), [("GB/s", 1000 / 2 / 1e9), ("ms", 2000.0)])
def test_the_harness_knows_speed_and_time(unit, value):
    """Of the median run."""
    assert measure(fake_benchmark([[9, 1, 2, 7], [1] * 4], unit=unit), None, 3, silent).value == value


def test_other_units_are_the_subjects_own():
    """Asked for once, when all is done."""
    log = []
    declared = fake_benchmark([[1, 1], [1, 1]], log=log, unit="of it", value=lambda: log.append("value") or 0.75)
    assert measure(declared, None, 1, silent).value == 0.75
    assert log[-1] == "value"
    with pytest.raises(ModelError, match="'of it'"):
        measure(fake_benchmark([[1, 1], [1, 1]], unit="of it"), None, 1, silent)


# --- names -------------------------------------------------------------------------------------------------------


REGISTRY = {
    name: fake_benchmark([[1], [1]])
    for name in ("destroy.walk32", "destroy.walk512", "destroy.walk512.beside", "boot.image")
}


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], ["destroy.walk32", "destroy.walk512", "destroy.walk512.beside", "boot.image"]),
        (["destroy.walk512"], ["destroy.walk512"]),
        (["destroy.walk"], ["destroy.walk32", "destroy.walk512", "destroy.walk512.beside"]),
        (["*.beside"], ["destroy.walk512.beside"]),
        (["boot", "destroy.walk??"], ["destroy.walk32", "boot.image"]),
    ],
)
def test_names_beginnings_and_patterns_choose(patterns, chosen):
    """In order of declaration; a whole name means that benchmark only."""
    assert select(patterns, REGISTRY) == [REGISTRY[name] for name in chosen]


def test_a_quick_run_leaves_out_what_takes_long_unless_it_is_named():
    """Issue: all but `metadata`."""
    registry = REGISTRY | {"metadata": fake_benchmark([[1], [1]], quick=False)}
    assert select([], registry, quick=True) == list(REGISTRY.values())
    assert select([], registry) == list(registry.values())
    assert select(["meta"], registry, quick=True) == [registry["metadata"]]


def test_a_name_that_fits_nothing_is_refused_with_the_nearest():
    """What the person meant is in the message."""
    with pytest.raises(UsageError, match=r"'boot\.imaeg'.*nearest is boot\.image"):
        select(["destroy.walk32", "boot.imaeg"], REGISTRY)


def test_a_declaration_is_found_by_its_name(monkeypatch):
    """And a second one under the same name is a bug."""
    monkeypatch.setattr(harness, "REGISTRY", {})

    @benchmark("some.thing", limit=lambda rig, subject: subject, bar=2, better="lower", share=0.5)
    def subject(rig):
        """What is done.

        More about it.
        """

    declared = harness.REGISTRY["some.thing"]
    assert (declared.subject, declared.bar, declared.better) == (subject, 2, "lower")
    assert declared.summary == "What is done."
    assert declared.guest_size(1 << 20) == 1 << 19
    with pytest.raises(ModelError, match=r"some\.thing"):
        benchmark("some.thing", limit=lambda rig, subject: subject)(subject)


# --- settings ----------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_help():
    """4 GiB and seven turns; quick is 1 GiB and three; a size is a size."""
    assert Settings.of(None, quick=False) == Settings(4 << 30, 7)
    assert Settings.of(None, quick=True) == Settings(1 << 30, 3, quick=True)
    assert Settings.of("64MiB", quick=True) == Settings(64 << 20, 3, quick=True)


@pytest.mark.parametrize(("size", "error"), [("many", SizeError), ("33000000", SizeError), ("1MiB", UsageError)])
def test_sizes_that_cannot_be_measured_are_refused(size, error):
    """Not a size, not in whole pages, too small."""
    with pytest.raises(error, match=r"refused|not a"):
        Settings.of(size, quick=False)
