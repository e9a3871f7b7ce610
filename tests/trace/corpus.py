"""Writes `tests/data/traces`: good traces, recorded; bad ones, each with one thing wrong that a kernel could do wrong.

    python -m tests.trace.corpus

They have to be written again whenever a procedure of the host takes other steps. The bad ones are made out of recorded
ones, by leaving steps out, by changing one, or by recording a series that is not the one that the header names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lazypv.clocks.trace import Line
from lazypv.explore.switches import Switches
from lazypv.trace.check import check
from lazypv.trace.file import Setting, TraceFile
from lazypv.trace.record import record

FOLDER = Path(__file__).parents[1] / "data" / "traces"
REBOOT, SHUTDOWN = "reboot-into-protected", "shutdown-during-cleanup"
GOOD = {
    "reboot": REBOOT,
    "reboot-into-normal": "reboot-into-normal",
    "shutdown": SHUTDOWN,
    "two-guests": "two-guests-in-one-process",
    "unmap": "unmap-during-cleanup",
}


def recorded(name: str, *, without: tuple[str, ...] = (), wanted: Callable[[list[Line]], bool] = bool) -> TraceFile:
    """The first trace that has what is wanted."""
    setting = Setting(name, 4, Switches(without=without))
    world = setting.build()
    for seed in range(2000):
        trace, broken = record(setting, seed, world)
        if broken is None and wanted(trace.lines):
            return trace
    raise LookupError(f"no trace of {name} has it")


def overlapping(lines: list[Line]) -> bool:
    """Whether an operation begins while another is under way."""
    under_way: set[str] = set()
    for line in lines:
        if line.get("at") == "begin" and under_way - {line["actor"]}:
            return True
        change = {"begin": under_way.add, "end": under_way.discard}.get(line.get("at", ""))
        if change is not None:
            change(line["actor"])
    return False


def without(lines: list[Line], kind: str, what: str, times: int = 1) -> list[Line]:
    """All but the first `times` lines of that step, whichever parts it has."""
    first = [at for at, line in enumerate(lines) if (line["kind"], line.get("what")) == (kind, what)][:times]
    return [line for at, line in enumerate(lines) if at not in first]


def with_other_answer(lines: list[Line], what: str, **answer: object) -> list[Line]:
    """The first of those operations answers something else."""
    at = next(at for at, line in enumerate(lines) if line.get("what") == what and "answer" in line)
    changed = {**lines[at], "answer": {**lines[at]["answer"], **answer}}
    return [*lines[:at], changed, *lines[at + 1 :]]


def bad_traces() -> dict[str, TraceFile]:
    """By name; the name says what is wrong."""
    reboot, shutdown = recorded(REBOOT), recorded(SHUTDOWN)
    repaired = reboot.setting
    not_batched = recorded(REBOOT, without=("05",))
    not_exported = recorded(REBOOT, without=("07",))
    edited = {
        "cpu-not-destroyed": without(reboot.lines, "Call", "DESTROY_SEC_CPU", 3),
        "lock-not-taken": without(reboot.lines, "Acquire", "mmap_lock"),
        "lock-not-released": without(reboot.lines, "Release", "kvm->lock"),
        "page-refused": with_other_answer(reboot.lines, "destroy pages", rc=[0x0103], done=0, refused=1),
        "configuration-never-destroyed": without(reboot.lines, "Call", "DESTROY_SEC_CONF", 3),
        "cut-short": reboot.lines[:-3],
    }
    bad = {name: replace(reboot, lines=lines) for name, lines in edited.items()}
    bad["reference-not-dropped"] = replace(shutdown, lines=without(shutdown.lines, "Touch", "mm_count", 1))
    bad["walk-not-batched"] = replace(not_batched, setting=repaired)
    bad["not-exported-before-import"] = replace(not_exported, setting=repaired)
    return bad


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.jsonl"):
        path.unlink()
    for name, scenario in GOOD.items():
        trace = recorded(scenario, wanted=overlapping if name == "reboot" else bool)
        assert check(trace).refusal is None, name
        trace.save(FOLDER / f"good-{name}.jsonl")
    for name, trace in bad_traces().items():
        refusal = check(trace).refusal
        assert refusal is not None, name
        print(f"bad-{name}: line {refusal.line}: {refusal.why}")
        trace.save(FOLDER / f"bad-{name}.jsonl")


if __name__ == "__main__":
    main()
