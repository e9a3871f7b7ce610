"""Accounts in explored worlds: how each page of the old run became clean, and that it was the way meant for it.

Exceptions are counted too: each page that the next run meets raises what semantics 7 says, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from lazypv.clocks.explore import Choice
from lazypv.explore.search import Bounds
from lazypv.invariants import LastInstruction, OldRun
from lazypv.series import Series

from .check import Check, NoticedError
from .searches import explorer

PAGES = 8


@dataclass(frozen=True)
class Expected:
    """Pages of a guest of eight, four of them below the limit, by account.

    The shared page is exported wherever its new owner or its unmapping meets it. A node takes two pages, and of each
    three the first is exported for a node to be allocated.
    """

    scenario: str
    pages: dict[str, int]
    exceptions: dict[int, int]
    nodes: int = 1
    lazy_destroy: bool = True


EXPECTED = (
    Expected(
        "reboot-into-protected", {"destroyed_sync": 4, "destroyed_on_fault": 3, "exported": 1}, {0x3E: 7, 0x3F: 3}
    ),
    Expected("reboot-into-normal", {"destroyed_sync": 4, "destroyed_background": 1, "exported": 3}, {0x3D: 3}),
    Expected("shutdown", {"destroyed_background": 5, "set_aside": 5, "exported": 3}, {}),
    Expected("shutdown", {"destroyed_background": 5, "set_aside": 5, "exported": 3}, {}, nodes=2),
    Expected("shutdown-during-cleanup", {"destroyed_sync": 4, "exported": 4}, {}),
    Expected("unmap-during-cleanup", {"destroyed_sync": 4, "exported": 4}, {}),
    Expected("reboot-with-the-parameter-off", {"destroyed_sync": 8}, {0x3E: 7}, lazy_destroy=False),
    Expected("shutdown-with-the-parameter-off", {"exported": 8}, {}, lazy_destroy=False),
)


def checks() -> Iterator[Check]:
    """Each of them, in the order in which its actors come."""
    for expected in EXPECTED:
        yield Check(f"accounts of {expected.scenario}, {expected.nodes} nodes at once", partial(_accounts, expected))


def _accounts(expected: Expected) -> None:
    accounts, exceptions = _what_happens(expected)
    broken = accounts.check()
    if broken:
        raise NoticedError(f"invariant {broken[0].number}: {broken[0].text}")
    found = {name: pages for name, pages in vars(accounts).items() if pages and name != "owned"}
    if found != expected.pages:
        raise NoticedError(f"pages by account are {found}, {expected.pages} were to be")
    if exceptions != expected.exceptions:
        raise NoticedError(f"pages by exception are {exceptions}, {expected.exceptions} were to be")


def _what_happens(expected: Expected) -> tuple[OldRun, dict[int, int]]:
    """How the pages of the guest's first run became clean, and which exceptions the host took."""
    searcher = explorer(
        expected.scenario, Series(), PAGES, Bounds(0), nodes=expected.nodes, lazy_destroy=expected.lazy_destroy
    )
    host = searcher.world.host
    run = searcher.run()
    try:
        start = LastInstruction.of(host, searcher.world.first_handles[0])
        before = host.ledger.exceptions.copy()
        while enabled := run.enabled():
            run.step(Choice(enabled[0]))
        return start.so_far(host), dict(host.ledger.exceptions - before)
    finally:
        run.close()
