"""Accounts in explored worlds: how each page of the old run became clean, and that it was the way meant for it.

Exceptions are counted too: each page that the next run meets raises what semantics 7 says, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from tests.host.stepping import Stepper, named

from lazypv.clocks.explore import Choice
from lazypv.explore.search import Bounds
from lazypv.host.host import PRIVATE_SIZE, SHARED_FILE_SIZE, SPECIAL_SIZE, frames_for
from lazypv.host.kvm import StorageSizes
from lazypv.host.set_aside import PV_MAX_LAZY_COUNT
from lazypv.invariants import LastInstruction, OldRun
from lazypv.series import Series
from lazypv.sizes import parse_pages

from .check import Check, NoticedError
from .footprints import leave
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
    for nodes in (1, 2, 3):
        yield Check(f"nodes of the list are filled, {nodes} at once", partial(_nodes_are_full, nodes))
    for series in (Series(), Series().with_defects("D17")):
        yield Check("accounts of the next run's shutdown", partial(_next_shutdown, series))
    yield Check("everybody leaves while pages are destroyed at once", _everybody_leaves)
    yield Check("useless calls are counted", _useless_calls)
    yield Check("a guest takes its frames, and little more", _frames_for)


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


def _nodes_are_full(nodes: int) -> None:
    """Only the first node of a list has room (invariant 26)."""
    world = explorer("shutdown", Series(), PAGES, Bounds(0), nodes=nodes).world
    world.restore()
    Stepper().run(world.processes[0].exit())
    aside = world.processes[0].mm.set_aside
    counts = [node.count for node in aside.nodes]
    if not counts or any(count != aside.node_capacity for count in counts[1:]):
        raise NoticedError(f"nodes of the list hold {counts} pages, there is room for {aside.node_capacity}")


def _next_shutdown(series: Series) -> None:
    """A reboot whose cleaner is through does not cost the next run that its pages are set aside when it ends."""
    world = explorer("shutdown", series, PAGES, Bounds(0)).world
    world.restore()
    vm, host, stepper = world.vms[0], world.host, Stepper()
    stepper.run(world.disable(vm))
    stepper.run(world.bring_up(vm))
    stepper.threads[0].finish()
    start = LastInstruction.of(host, vm.kvm.pv.handle)
    stepper.run(world.processes[0].exit())
    stepper.threads[1].finish()
    found = start.so_far(host)
    if found.check() or (found.owned, found.set_aside) != (1, 1):
        raise NoticedError(f"one page was to be set aside: {found}")


def _everybody_leaves() -> None:
    """A walk that no number of users stops goes to the end, and leaves nothing to be exported (semantics 4.5)."""
    world = explorer("shutdown", Series(), PAGES, Bounds(0), lazy_destroy=False).world
    world.restore()
    process, vm, host, stepper = world.processes[0], world.vms[0], world.host, Stepper()
    start = LastInstruction.of(host, vm.kvm.pv.handle)
    disabling = stepper.start(world.disable(vm)).until(named("destroy pages"))
    stepper.run(leave(process))
    disabling.finish()
    found = start.so_far(host)
    if found.check() or found.destroyed_sync != found.owned:
        raise NoticedError(f"all pages were to be destroyed at once: {found}")


def _useless_calls() -> None:
    """Without patch 02 every page that was destroyed is asked for twice in vain (semantics 4.2, step 6)."""
    for series, calls in ((Series(), 0), (Series().without("02"), 2 * PAGES)):
        world = explorer("reboot-with-the-parameter-off", series, PAGES, Bounds(0), lazy_destroy=False).world
        world.restore()
        vm, host, stepper = world.vms[0], world.host, Stepper()
        stepper.run(world.disable(vm))
        before = host.ledger.pages["useless_calls"]
        stepper.run(host.pages.make_accessible(vm.gmap.pte.frames()))
        found = host.ledger.pages["useless_calls"] - before
        if found != calls:
            raise NoticedError(f"{found} useless calls were counted, {calls} were made")


def _frames_for() -> None:
    """A page of each `PV_MAX_LAZY_COUNT` and one is exported, for a node that takes the others (patch 09)."""
    sizes = StorageSizes()
    process = frames_for(0, 0, sizes)
    for pages in (1 << 10, 1 << 15, 1 << 22):
        for vcpus in (1, 4):
            more = frames_for(pages, vcpus, sizes) - process
            storage = 2 * (sizes.total(pages, vcpus) - sizes.total(0, 0))
            nodes = pages // (PV_MAX_LAZY_COUNT + 1)
            if not pages + storage + nodes <= more <= pages + storage + nodes + 1:
                raise NoticedError(f"{pages} pages and {vcpus} CPUs take {more} frames more")
            if sizes.total(pages, vcpus) != 32 + pages // 256 + 5 * vcpus:
                raise NoticedError(f"{pages} pages and {vcpus} CPUs take {sizes.total(pages, vcpus)} frames of storage")
    least = parse_pages(PRIVATE_SIZE) + parse_pages(SHARED_FILE_SIZE) + parse_pages(SPECIAL_SIZE)
    if not least <= process <= least + 200:
        raise NoticedError(f"a process takes {process} frames, {least} of them for its own pages")
