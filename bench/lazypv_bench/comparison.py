"""Two runs of the suite side by side: what has become faster, what slower, and what is noise.

The rule, per benchmark, on the ratios of all turns of both runs:

* an exact two-sided rank-sum test (Mann and Whitney) asks how often turns dealt out at random would lie as far apart;
  the answer has to be at most 1 %, or, where there are so few turns that it cannot be, as small as it can be, which
  means that no turn of one run lies among those of the other;
* and the medians differ by 3 % or more: two runs differ in more than their turns do, such as in where memory lies.

Anything else is noise. With seven turns each, equal runs are told apart in at most one case of a hundred; with three,
in one of ten: a quick run that says "slower" is a reason to run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from lazypv.errors import UsageError
from lazypv_bench.harness import PAIRS, Better, Result

LEVEL: Final = 0.01
LEAST_CHANGE: Final = 0.03
EXACT: Final = 500_000
"""Ways to deal turns out, up to which all are counted."""

Verdict = Literal["faster", "slower", "noise", "new"]


@dataclass(frozen=True)
class Change:
    """What became of one benchmark.

    Attributes
    ----------
    verdict : {"faster", "slower", "noise", "new"}
        New: the older run has it not.
    before, after : float
        Medians; `before` is None for a new one.
    change : float or None
        ``after / before - 1``.
    p : float or None
        How often equal runs would differ as much.
    """

    name: str
    verdict: Verdict
    before: float | None
    after: float
    change: float | None
    p: float | None


def judge(before: Sequence[float], after: Sequence[float], better: Better) -> tuple[Verdict, float, float]:
    """Verdict, change of the median, and p, for the ratios of two runs' turns."""
    p = rank_sum_p(before, after)
    change = median(after) / median(before) - 1
    reachable = 2 / comb(len(before) + len(after), len(before))
    if p > max(LEVEL, reachable) * (1 + 1e-9) or abs(change) < LEAST_CHANGE:
        return "noise", change, p
    return ("faster" if (change > 0) == (better == "higher") else "slower"), change, p


def rank_sum_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Exact two-sided p of the rank-sum test; equal values share their rank.

    Raises
    ------
    UsageError
        A run without turns, or with so many that they cannot be counted out.
    """
    values = sorted([*one, *other])
    if not one or not other or comb(len(values), len(one)) > EXACT:
        raise UsageError(f"runs of {len(one)} and {len(other)} turns cannot be compared")
    rank = {value: values.index(value) + (values.count(value) + 1) / 2 for value in set(values)}
    ranks = [rank[value] for value in values]
    expected = len(one) * (len(values) + 1) / 2
    seen = abs(sum(rank[value] for value in one) - expected) - 1e-9
    sums = [abs(sum(chosen) - expected) >= seen for chosen in combinations(ranks, len(one))]
    return sum(sums) / len(sums)


def compare(older: Mapping[str, Any], results: Iterable[Result]) -> list[Change]:
    """`results` against a document that :func:`load` has read, in order of `results`."""
    before = {each["name"]: each for each in older["results"]}
    changes = []
    for result in results:
        known = before.get(result.name)
        if known is None:
            changes.append(Change(result.name, "new", None, result.ratio, None, None))
            continue
        verdict, change, p = judge(turns_of(older, known), result.turns, result.better)
        changes.append(Change(result.name, verdict, known["ratio"], result.ratio, change, p))
    return changes


def turns_of(document: Mapping[str, Any], result: Mapping[str, Any]) -> list[float]:
    """Ratios of all turns; of a document without them lowest, median and highest, which tells runs apart as well."""
    known = document.get("turns", {}).get(result["name"])
    return list(known or (result["low"], result["ratio"], result["high"]))


def differences(older: Mapping[str, Any], newer: Mapping[str, Any]) -> list[str]:
    """What the two runs did not have in common, for people: a comparison says less then."""
    found = []
    for name in ("cpu", "cores", "kernel", "huge_pages"):
        before, after = older["machine"].get(name), newer["machine"].get(name)
        if before != after:
            found.append(f"{name.replace('_', ' ')}: {before}, now {after}")
    if older.get("size_bytes", newer["size_bytes"]) != newer["size_bytes"]:
        found.append(f"size: {older['size_bytes']} bytes, now {newer['size_bytes']}")
    return found


def as_object(changes: Iterable[Change]) -> dict[str, Any]:
    """By name, for the JSON document."""
    return {change.name: {key: value for key, value in asdict(change).items() if key != "name"} for change in changes}


def load(path: Path) -> dict[str, Any]:
    """A document that `lazypv bench --json` has printed.

    Raises
    ------
    UsageError
        It cannot be read, or is something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"{path}: is no JSON document") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise UsageError(f"{path}: schema {schema!r}, where {SCHEMA!r} was expected")
    results, machine, turns = (document.get(field) or kind() for field, kind in _KINDS.items())
    for field, kind in _KINDS.items():
        if not isinstance(document.get(field) or kind(), kind):
            raise UsageError(f"{path}: {field!r} is not what `lazypv bench --json` prints")
    for each in results:
        if not (isinstance(each, dict) and isinstance(each.get("name"), str) and each.keys() >= _RATIOS):
            raise UsageError(f"{path}: a result has no name, ratio, low or high")
        if not all(_is_positive(each[field]) for field in _RATIOS):
            raise UsageError(f"{path}: a ratio of {each['name']} is not a number above 0")
    for name, ratios in turns.items():
        if not (isinstance(ratios, list) and all(_is_positive(ratio) for ratio in ratios)):
            raise UsageError(f"{path}: the turns of {name} are not numbers above 0")
        if comb(len(ratios) + PAIRS, PAIRS) > EXACT:
            raise UsageError(f"{path}: {len(ratios)} turns of {name} are too many to be compared")
    return {**document, "results": results, "machine": machine, "turns": turns}


_KINDS: Final[Mapping[str, type]] = {"results": list, "machine": dict, "turns": dict}
_RATIOS: Final = {"ratio", "low", "high"}


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


SCHEMA: Final = "lazypv.bench/1"
