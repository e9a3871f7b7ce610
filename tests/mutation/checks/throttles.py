"""A walk under a throttle, by a clock of its own: it owes its pages to the clock, and nothing else lets it go on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lazypv.clocks.explore import Choice, ExploringClock
from lazypv.explore.scenarios import SCENARIOS
from lazypv.host.throttle import AT_ONCE_SECONDS, Throttle
from lazypv.host.walk import destroy_range
from lazypv.series import Series

from .check import Check, NoticedError

PAGES = 8
PAGES_PER_SECOND = 2.0
SECONDS = 5.0
SECONDS_A_PAGE = 2e-6
LOOKS_EVERY_SECONDS = 5e-5
RESTS = 5
LEAST, MOST = 0.9, 1.03
"""No credit is given for time in which nobody looked, hence the lower bound."""


def checks() -> Iterator[Check]:
    """In batches of one page and of three; closed; and with no limit."""
    for batch in (1, 3):
        yield Check(f"a throttled walk in batches of {batch}", partial(_throttled, batch))
    for limit in ({"pages_per_second": 20_000.0}, {"share": 0.25}, {"share": 0.75}):
        yield Check(f"cleaning within {limit}", partial(_in_the_long_run, limit))
    yield Check("a walk that is held back", _held_back)
    yield Check("a walk without a limit", _unlimited)


class _Walk:
    """A walk over an address space in which everything is mapped, with a clock that is set by hand."""

    def __init__(self, throttle: Throttle, batch: int) -> None:
        world = SCENARIOS["shutdown"].build(Series(), PAGES)
        self.time = 0.0
        self._ultravisor = world.machine.ultravisor
        self._begin = self._ultravisor.issued["DESTR_SEC_STOR"]
        throttle.now = lambda: self.time
        mm = world.processes[0].mm
        self.end = mm.end
        self._clock = ExploringClock()
        walk = destroy_range(world.host.pages, mm, 0, 0, mm.end, batch, "destroyed_sync", throttle)
        self._clock.start(walk, "walk")

    def pages(self) -> int:
        """Go on as far as it may; pages that it has destroyed so far."""
        while self._clock.enabled():
            self._clock.step(Choice(0))
        return self._ultravisor.issued["DESTR_SEC_STOR"] - self._begin


def _expect(found: int, pages: int, when: str) -> None:
    if found != pages:
        raise NoticedError(f"{found} pages were destroyed {when}, {pages} were to be")


def _throttled(batch: int) -> None:
    walk = _Walk(Throttle(PAGES_PER_SECOND), batch)
    walk.time = 5.0
    for number in range(1, walk.end // batch):
        _expect(walk.pages(), number * batch, f"by {walk.time} s")
        walk.time += 0.9 * batch / PAGES_PER_SECOND
        _expect(walk.pages(), number * batch, f"by {walk.time} s, which is too early")
        walk.time += 0.1 * batch / PAGES_PER_SECOND
    walk.time += 1000.0
    _expect(walk.pages(), min(walk.end, (walk.end // batch) * batch), "after a long time, of which no credit is left")


def _held_back() -> None:
    throttle = Throttle()
    throttle.open = False
    walk = _Walk(throttle, 1)
    _expect(walk.pages(), 0, "while it was held back")
    throttle.open = True
    _expect(walk.pages(), walk.end, "afterwards")


def _unlimited() -> None:
    walk = _Walk(Throttle(), 3)
    _expect(walk.pages(), walk.end, "without a limit")


def _in_the_long_run(limit: dict[str, float]) -> None:
    """So many pages a second, or such a share of the time, over seconds; and no more at once than may be."""
    throttle, time, pages, most = Throttle(**limit), [0.0], 0, 0
    throttle.now = lambda: time[0]
    share = limit.get("share", limit.get("pages_per_second", 0.0) * SECONDS_A_PAGE)
    at_once = AT_ONCE_SECONDS * share / (1 - share if "share" in limit else 1) / SECONDS_A_PAGE
    _page_by_page(Throttle(**limit), at_once)
    while time[0] < SECONDS:
        if throttle.may_pass():
            throttle.begin()
            batch = max(1, throttle.room())
            time[0] += batch * SECONDS_A_PAGE
            throttle.passed(batch)
            pages, most = pages + batch, max(most, batch if pages else 0)
        else:
            time[0] += LOOKS_EVERY_SECONDS
    found = pages * SECONDS_A_PAGE / time[0]
    if not LEAST * share < found < MOST * share:
        raise NoticedError(f"cleaning took {found:.3f} of the time, {share} was to be")
    if not LEAST * at_once < most <= at_once + 1:
        raise NoticedError(f"{most} pages were cleaned at once, {at_once:.0f} may be")


def _page_by_page(throttle: Throttle, at_once: float) -> None:
    """In batches of a page, too, it rests seldom and long: as many pages go before each rest, not the first alone."""
    time, rests, pages = [0.0], 0, 0
    throttle.now = lambda: time[0]
    while rests < RESTS:
        if throttle.may_pass():
            throttle.begin()
            time[0] += SECONDS_A_PAGE
            throttle.passed(1)
            pages += 1
            continue
        rests += 1
        while not throttle.may_pass():
            time[0] += LOOKS_EVERY_SECONDS
    if pages < LEAST * RESTS * at_once:
        raise NoticedError(f"{pages} pages were cleaned between {RESTS} rests, {at_once:.0f} may be before each")
