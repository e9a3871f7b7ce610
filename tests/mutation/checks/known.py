"""Violations that are known: they have to be found when a patch is taken out or a defect is brought back.

Patches 02, 05, 09 and 11 cost when they are missing, and break nothing: that is looked at too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from lazypv.explore.search import Bounds
from lazypv.series import Series

from .check import Check, NoticedError
from .searches import explorer, nothing_broken


class Known(NamedTuple):
    """What is taken out or brought back, where it shows, within which bounds, and as what."""

    without: tuple[str, ...]
    defects: tuple[str, ...]
    scenario: str
    pages: int
    preemptions: int
    faults: int
    invariant: int


KNOWN = (
    Known(("01",), (), "shutdown", 2, 0, 1, 14),
    Known(("03",), (), "reboot-into-protected", 4, 0, 0, 35),
    Known(("04",), (), "reboot-into-normal", 4, 0, 0, 35),
    Known(("06",), (), "reboot-into-protected", 2, 0, 0, 35),
    Known(("07",), (), "reboot-into-protected", 2, 0, 0, 35),
    Known(("08",), (), "reboot-into-protected", 2, 0, 0, 40),
    Known(("10",), (), "reboot-with-the-parameter-off", 2, 0, 0, 38),
    Known((), ("D1",), "reboot-with-the-parameter-off", 2, 0, 0, 38),
    Known((), ("D1",), "shutdown-with-the-parameter-off", 2, 0, 0, 38),
    Known((), ("D3",), "shutdown", 2, 0, 0, 24),
    Known((), ("D4",), "shutdown", 2, 0, 1, 25),
    Known((), ("D4",), "reboot-into-normal", 2, 0, 1, 25),
    Known((), ("D5",), "reboot-into-normal", 2, 0, 1, 25),
    Known((), ("D9",), "reboot-into-normal", 2, 0, 0, 18),
    Known((), ("D10",), "small-guest-ends", 2, 0, 0, 19),
    Known((), ("D11",), "slot-taken-away", 2, 0, 0, 35),
    Known((), ("D12",), "touched-after-it-was-taken-away", 2, 0, 0, 42),
    Known((), ("D15",), "asked-again", 2, 0, 1, 25),
    Known((), ("D17",), "reboot-into-normal", 2, 0, 1, 27),
    Known((), ("D18",), "shutdown", 2, 0, 1, 27),
    Known((), ("D19",), "shutdown", 2, 0, 1, 1),
    Known((), ("D20",), "shutdown", 2, 0, 1, 1),
    Known((), ("D22",), "shutdown", 2, 0, 1, 25),
    Known((), ("D27",), "shutdown", 2, 0, 1, 34),
    Known(("09",), ("D2",), "shutdown-during-cleanup", 2, 0, 0, 24),
)
NOBODY_LEAVES = ("shutdown", "shutdown-during-cleanup", "reboot-into-protected", "two-guests-in-one-process")
"""Scenarios in which no task leaves while the cleaner counts users."""
COSTLY = ("02", "05", "09", "11")
AT_A_COST = ("shutdown", "reboot-into-protected", "shutdown-during-cleanup", "reboot-with-feature-bit-0")


def checks() -> Iterator[Check]:
    """Each by itself."""
    for known in KNOWN:
        yield Check(f"explore {known.scenario}, {_taken(known)}", partial(_found, known))
    for known in KNOWN:
        if known.faults:
            yield Check(f"explore {known.scenario}, {_taken(known)}, no fault", partial(_holds, known))
    for name in NOBODY_LEAVES:
        known = Known((), ("D17",), name, 4, 0, 0, 27)
        yield Check(f"explore {name} with D17, no preemption", partial(_holds, known))
    for patch in COSTLY:
        for name in AT_A_COST:
            yield Check(f"explore {name} without {patch}", partial(_holds_without, patch, name))


def _taken(known: Known) -> str:
    return ", ".join([*(f"without {patch}" for patch in known.without), *(f"with {each}" for each in known.defects)])


def _series(known: Known) -> Series:
    return Series().without(*known.without).with_defects(*known.defects)


def _holds(known: Known) -> None:
    """What it takes a failing step or another order to find does no harm without."""
    nothing_broken(partial(explorer(known.scenario, _series(known), known.pages, Bounds(0)).exhaust, prune=False))


def _found(known: Known) -> None:
    searcher = explorer(known.scenario, _series(known), known.pages, Bounds(known.preemptions, known.faults))
    outcome = searcher.exhaust(prune=known.preemptions > 0)
    numbers = [broken.violation.number for broken in outcome.broken]
    if numbers != [known.invariant]:
        raise NoticedError(f"invariant {known.invariant} should have been found broken, found was {numbers}")


def _holds_without(patch: str, name: str) -> None:
    nothing_broken(partial(explorer(name, Series().without(patch), 3, Bounds(0)).exhaust, prune=False))
