"""Faster, slower or noise: the rule on made-up turns, and what the command makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lazypv.errors import UsageError
from lazypv_bench.comparison import (
    LEVEL,
    as_object,
    compare,
    differences,
    judge,
    load,
    rank_sum_p,
    turns_of,
)
from lazypv_bench.harness import Result, Runs


def around(centre, *, turns=7, spread=0.01, seed=0):
    """Turns of a run, as they scatter."""
    return (centre + np.random.default_rng(seed).normal(0, spread, turns)).tolist()


def result(name="some.thing", better="higher", turns=(0.8, 0.81, 0.82)):
    runs = (Runs("subject", name, 1, (1.0,) * len(turns)), Runs("limit", "fill", 1, (1.0,) * len(turns), tuple(turns)))
    middle = float(np.median(turns))
    return Result(name, middle, min(turns), max(turns), better, None, "fill", "GB/s", 1.0, {}, runs)


def document(name="some.thing", turns=(0.8, 0.81, 0.82), **more):
    return {
        "schema": "lazypv.bench/1",
        "machine": {"cpu": "one"},
        "results": [{"name": name, "ratio": float(np.median(turns)), "low": min(turns), "high": max(turns)}],
        "turns": {name: list(turns)},
    } | more


# --- the test itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [
        ([1, 2, 3], [4, 5, 6], 2 / 20),
        ([1, 2, 3], [1, 2, 3], 1.0),
        (range(7), range(7, 14), 2 / 3432),
        ([1, 3, 5], [2, 4, 6], 14 / 20),
        ([1, 1, 1], [1, 1, 1], 1.0),
    ],
)
def test_p_is_counted_out_exactly(one, other, p):
    """By hand: of all ways to deal the turns out, those that lie as far apart."""
    assert rank_sum_p(list(one), list(other)) == pytest.approx(p)
    assert rank_sum_p(list(other), list(one)) == pytest.approx(p)


def test_turns_that_cannot_be_counted_out_are_refused():
    """None at all, or thousands."""
    with pytest.raises(UsageError, match="0 and 3 turns"):
        rank_sum_p([], [1, 2, 3])
    with pytest.raises(UsageError, match="40 and 40"):
        rank_sum_p([1.0] * 40, [2.0] * 40)


# --- the verdict -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [3, 7])
@pytest.mark.parametrize(
    ("better", "after", "verdict"),
    [("higher", 0.9, "faster"), ("higher", 0.7, "slower"), ("lower", 0.7, "faster"), ("lower", 0.9, "slower")],
)
def test_a_clear_change_is_told_with_its_direction(better, after, verdict, turns):
    """From 0.8, with a spread of 0.01."""
    found, change, _ = judge(around(0.8, turns=turns), around(after, turns=turns, seed=1), better)
    assert found == verdict
    assert change == pytest.approx(after / 0.8 - 1, abs=0.03)


@pytest.mark.parametrize("turns", [3, 7])
def test_the_same_run_twice_is_noise(turns):
    """Whatever its spread."""
    for spread in (0.0, 0.001, 0.1):
        assert (
            judge(around(0.8, turns=turns, spread=spread), around(0.8, turns=turns, spread=spread), "higher")[0]
            == "noise"
        )


def test_a_change_below_three_percent_is_noise_however_sure():
    """Two runs differ in more than their turns do."""
    before, after = around(0.8, spread=0.0001), around(0.816, spread=0.0001, seed=1)
    assert rank_sum_p(before, after) < LEVEL
    assert judge(before, after, "higher")[0] == "noise"


def test_a_large_change_within_the_spread_is_noise():
    """The medians are far apart, the turns are not."""
    before, after = [0.2, 0.5, 0.6, 0.8, 0.9, 1.0, 1.1], [0.3, 0.4, 0.55, 0.6, 0.95, 1.05, 1.2]
    assert abs(judge(before, after, "higher")[1]) > 0.2
    assert judge(before, after, "higher")[0] == "noise"


def test_one_outlier_does_not_hide_a_change():
    """A rank-sum test, not lowest against highest: it lies in the middle of the other run."""
    before = [*around(0.8, turns=6), 0.9]
    assert judge(before, around(0.9, seed=1), "higher")[0] == "faster"


def test_three_turns_have_to_be_apart_entirely():
    """Less cannot be told from chance with so few."""
    assert judge([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], "higher")[0] == "faster"
    assert judge([1.0, 1.1, 1.31], [1.3, 1.4, 1.5], "higher")[0] == "noise"


def test_equal_runs_are_rarely_told_apart():
    """Of 300 pairs of runs of one distribution at most a few: the level is 1 %, and 3 % of change come on top."""
    told = sum(
        judge(around(1, spread=0.2, seed=n), around(1, spread=0.2, seed=n + 9999), "higher")[0] != "noise"
        for n in range(300)
    )
    assert told <= 9


# --- documents ---------------------------------------------------------------------------------------------------


def test_each_benchmark_gets_its_verdict_in_order_of_the_run():
    """What the older run has not is new; what only that has is left out."""
    older = document() | {"results": document()["results"] + document("gone")["results"]}
    changes = compare(older, [result("other"), result(turns=(0.9, 0.91, 0.92))])
    assert [(change.name, change.verdict) for change in changes] == [("other", "new"), ("some.thing", "faster")]
    told = as_object(changes)
    assert told["other"]["before"] is None
    assert told["some.thing"]["change"] == pytest.approx(0.91 / 0.81 - 1)
    json.dumps(told)


def test_a_document_without_turns_is_compared_by_lowest_median_and_highest():
    """These tell runs that lie apart as well."""
    older = document()
    del older["turns"]
    assert turns_of(older, older["results"][0]) == [0.8, 0.81, 0.82]
    assert compare(older, [result(turns=around(0.9))])[0].verdict == "faster"
    assert compare(older, [result(turns=around(0.81))])[0].verdict == "noise"


def test_what_the_runs_have_not_in_common_is_named():
    """Another computer, another size."""
    newer = document(size_bytes=1 << 30) | {"machine": {"cpu": "two"}}
    assert differences(document(size_bytes=4 << 30), newer) == [
        "cpu: one, now two",
        "size: 4294967296 bytes, now 1073741824",
    ]
    assert differences(newer, newer) == []


def a_result(turns=None, **changed):
    """A document with one result of which something is changed."""
    result = {"name": "a", "ratio": 1.0, "low": 0.9, "high": 1.1} | changed
    return json.dumps({"schema": "lazypv.bench/1", "results": [result], "turns": turns or {}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "no JSON"),
        ("[]", "schema None"),
        ('{"schema": "lazypv.reboot/1"}', "lazypv.reboot/1"),
        ('{"schema": "lazypv.bench/1", "results": [{"name": "a"}]}', "no name, ratio, low or high"),
        ('{"schema": "lazypv.bench/1", "results": 5}', "'results' is not what"),
        ('{"schema": "lazypv.bench/1", "machine": [1]}', "'machine' is not what"),
        ('{"schema": "lazypv.bench/1", "turns": [1]}', "'turns' is not what"),
        (a_result(name=["a"]), "no name"),
        (a_result(ratio="fast"), "a ratio of a is not a number above 0"),
        (a_result(low=None), "a ratio of a is not a number above 0"),
        (a_result(high=float("nan")), "a ratio of a is not a number above 0"),
        (a_result(ratio=0), "a ratio of a is not a number above 0"),
        (a_result(turns={"a": ["1"]}), "the turns of a are not numbers above 0"),
        (a_result(turns={"a": 3}), "the turns of a are not numbers above 0"),
        (a_result(turns={"a": [1.0] * 40}), "40 turns of a are too many"),
    ],
)
def test_what_is_no_document_of_the_suite_is_refused(tmp_path, text, message):
    """In one line that names the file."""
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"old\.json: .*{message}"):
        load(path)


def test_a_document_that_is_not_there_is_refused(tmp_path):
    """With the operating system's words."""
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "none.json")
