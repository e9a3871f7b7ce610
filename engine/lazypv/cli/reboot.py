"""`lazypv reboot` and `lazypv shutdown`: the main job."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lazypv.errors import EXIT_VIOLATION

if TYPE_CHECKING:
    from lazypv.scenario.compare import Comparison
    from lazypv.scenario.measure import Contender


PRESETS: dict[str, tuple[Literal["eager", "lazy"], ...]] = {
    "eager": ("eager",),
    "lazy": ("lazy",),
    "both": ("eager", "lazy"),
}
"""What the series does under names of policies."""


class Pattern(StrEnum):
    """Names of the access patterns, here so that ``--help`` need not import numpy; a test compares them."""

    BOOT = "boot"
    SEQUENTIAL = "sequential"
    UNIFORM = "uniform"
    ZIPF = "zipf"


Image = Annotated[
    str | None,
    typer.Argument(
        metavar="[IMAGE]",
        help="Memory of a guest: an ELF dump as QEMU writes it, also .zst, or raw memory. None: a synthetic guest.",
        show_default=False,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Size of the guest, such as 8GiB. [default: 8GiB, or half of the free memory]", show_default=False
    ),
]
Vcpus = Annotated[int, typer.Option(min=1, max=248, help="CPUs of the guest.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        metavar="POLICY",
        help="eager: destroy before the reboot; lazy: behind its back; both in turn; or your own, FILE.py:NAME. Again"
        " for more columns. [default: both]",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Cores of one bulk operation. [default: all]", show_default=False)
]
Batch = Annotated[int, typer.Option(min=1, help="Pages that a walk gathers with one hold of the lock.")]
Throttle = Annotated[
    float | None,
    typer.Option(help="Pages a second that the background may destroy. [default: no limit]", show_default=False),
]
SyncBelow = Annotated[str, typer.Option(help="Guest memory below this is never destroyed lazily.")]
WorkloadName = Annotated[Pattern, typer.Option("--workload", help="What the guest does before its last instruction.")]
Repeat = Annotated[int, typer.Option(min=1, help="Runs of each policy; both take turns.")]
Seed = Annotated[int, typer.Option(help="Seed of the workload and of a synthetic guest; keys never depend on it.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else.")]
Save = Annotated[
    Path | None, typer.Option(metavar="RUN.arrow", help="Write the timeline as an Arrow table.", show_default=False)
]
Picture = Annotated[
    Path | None, typer.Option(metavar="RUN.svg", help="Draw the table for a document.", show_default=False)
]


_DOCUMENTATION = {
    "reboot": "Reboot a protected guest: how long is it down, and when is all of its old memory clean?",
    "shutdown": "Shut a protected guest down: how long until its process is gone, and when is all its memory back?",
}
_STATUS = "Exit status: 0 fine, 2 bad use or input, 3 an invariant was violated, 130 interrupted."


def _command(kind: Literal["reboot", "shutdown"]) -> Callable[..., None]:
    """The command of that name: both have the same options and do the same around what they measure."""

    def command(
        image: Image = None,
        memory: Memory = None,
        vcpus: Vcpus = 2,
        policy: Policies = None,
        threads: Threads = None,
        batch: Batch = 512,
        throttle: Throttle = None,
        sync_below: SyncBelow = "2GiB",
        workload: WorkloadName = Pattern.BOOT,
        repeat: Repeat = 2,
        seed: Seed = 0,
        json: Json = False,
        save: Save = None,
        picture: Picture = None,
    ) -> None:
        from lazypv.cli.progress import Progress
        from lazypv.files import check_writable
        from lazypv.guest import Workload
        from lazypv.scenario.compare import Plan, compare

        for path in (save, picture):
            if path is not None:
                check_writable(path)
        plan = Plan(
            kind=kind,
            image=image,
            memory=memory,
            vcpus=vcpus,
            policies=_policies(policy or ["both"]),
            threads=threads,
            batch=batch,
            throttle=throttle,
            sync_below=sync_below,
            workload=Workload(workload.value),
            repeat=repeat,
            seed=seed,
            timeline=save is not None,
        )
        with Progress() as progress:
            comparison = compare(plan, progress)
        _hand_out(comparison, json, save, picture)

    command.__name__ = kind
    command.__doc__ = f"{_DOCUMENTATION[kind]}\n\n{_STATUS}"
    return command


def _policies(names: list[str]) -> tuple[Contender, ...]:
    """Whose turn it is, each once."""
    from lazypv.policy import load_policy

    chosen: dict[str, Contender] = {}
    for name in names:
        if name in PRESETS:
            chosen |= {each: each for each in PRESETS[name]}
        else:
            chosen[name] = load_policy(name, besides=PRESETS)
    return tuple(chosen.values())


def _hand_out(comparison: Comparison, json: bool, save: Path | None, picture: Path | None) -> None:
    from lazypv.report import as_json, print_table, save_picture, save_timeline

    if save is not None:
        save_timeline(comparison, save)
    if picture is not None:
        save_picture(comparison, picture)
    if json:
        typer.echo(as_json(comparison))
    else:
        print_table(comparison)
    if comparison.violations:
        for number, text in comparison.violations:
            typer.echo(f"lazypv: invariant {number} is violated: {text}", err=True)
        raise typer.Exit(EXIT_VIOLATION)


reboot = _command("reboot")
shutdown = _command("shutdown")
