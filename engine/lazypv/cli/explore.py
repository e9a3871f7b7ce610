"""`lazypv explore`: every order that matters, and the shortest story of one that breaks something."""

from __future__ import annotations

import json as json_text
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lazypv.errors import EXIT_VIOLATION

if TYPE_CHECKING:
    from lazypv.explore.report import Exploration


class Strategy(StrEnum):
    """How orders are chosen."""

    EXHAUSTIVE = "exhaustive"
    RANDOM = "random"
    PCT = "pct"
    SWARM = "swarm"


def explore(
    scenario: Annotated[str, typer.Argument(help="A scenario, or all.")] = "all",
    preset: Annotated[str, typer.Option(help="repaired, or posted: the series exactly as mailed.")] = "repaired",
    without: Annotated[
        list[str] | None, typer.Option(metavar="PATCH", help="Take a patch out, such as 07.", show_default=False)
    ] = None,
    with_defect: Annotated[
        list[str] | None, typer.Option(metavar="DEFECT", help="Bring a defect back, such as D17.", show_default=False)
    ] = None,
    misread: Annotated[
        bool, typer.Option("--misread", help="The host takes Ultravisor feature bit 0 for on: patch 11 used wrongly.")
    ] = False,
    pages: Annotated[
        int | None, typer.Option(min=2, max=8, help="Pages of a guest. [default: the scenario's]", show_default=False)
    ] = None,
    strategy: Annotated[Strategy, typer.Option(help="All orders within the bounds, or random ones.")] = (
        Strategy.EXHAUSTIVE
    ),
    preemptions: Annotated[int, typer.Option(min=0, help="How often an actor is left that could go on.")] = 2,
    unbounded: Annotated[bool, typer.Option("--unbounded", help="No bound on that.")] = False,
    faults: Annotated[int, typer.Option(min=0, help="How many steps may fail in one run.")] = 0,
    runs: Annotated[int, typer.Option(min=1, help="Random runs, shared among the scenarios.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of random orders.")] = 0,
    finer: Annotated[
        bool, typer.Option("--finer", help="A call on a page is two steps, with others in between.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    capsule: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the first counterexample there.", show_default=False)
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run a written counterexample again.", show_default=False)
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME", help="How guests end: your own teardown, not the series'.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Explore small worlds in every order that matters, and tell the story of what breaks.

    Exit status: 0 nothing found, 2 bad use or input, 3 an invariant was violated, 130 interrupted.
    """
    from lazypv.cli.progress import Progress
    from lazypv.explore.capsule import Capsule
    from lazypv.explore.report import Exploration, explore_all
    from lazypv.explore.search import Bounds
    from lazypv.explore.switches import Switches
    from lazypv.files import check_writable
    from lazypv.policy import load_policy

    if replay is not None:
        _hand_out(Exploration.of_replay(Capsule.load(replay, policy)), json)
        return
    if capsule is not None:
        check_writable(capsule)
    own = None if policy is None else load_policy(policy)
    switches = Switches(preset, tuple(without or ()), tuple(with_defect or ()), own, misread)
    with Progress() as progress:
        found = explore_all(
            scenario,
            switches,
            Bounds(None if unbounded else preemptions, faults, finer),
            pages=pages,
            strategy=strategy.value,
            runs=runs,
            seed=seed,
            progress=progress,
            jobs=jobs,
        )
    if capsule is not None and found.capsules:
        found.capsules[0].save(capsule)
    _hand_out(found, json)


def _hand_out(found: Exploration, json: bool) -> None:
    if json:
        typer.echo(json_text.dumps(found.as_object(), indent=2))
    else:
        typer.echo(found.as_text())
    if found.counterexamples:
        raise typer.Exit(EXIT_VIOLATION)
