"""A thousand real traces with one step dropped, swapped or altered: how many does the check refuse?

    python -m tests.trace.thousand [--traces 1000] [--seed 0]

Whatever is not refused has to be equivalent: the model runs through it, and comes to the state that the trace as it was
recorded comes to. Swaps of lines of two actors, of which many are no change at all since the two do not touch the same
things, are counted a second time by themselves, as *crossed*. Exit status 1 if a trace as recorded is refused, a mutant
passes that is not equivalent, or fewer than 95 % are refused.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from lazypv.explore.scenarios import SCENARIOS
from lazypv.explore.switches import Switches
from lazypv.trace.check import Checked, check
from lazypv.trace.file import Setting, TraceFile
from lazypv.trace.record import record

from .mutate import Mutant, mutated

DRAWN = ("dropped", "swapped", "altered")
LEAST_REFUSED = 0.95


@dataclass
class Tally:
    """What became of the mutants.

    Attributes
    ----------
    refused, equivalent : Counter
        By kind.
    wrong : list of str
        Traces refused as they were recorded, and mutants that passed and end otherwise.
    equivalents : list of (TraceFile, Mutant)
    """

    refused: Counter[str] = field(default_factory=Counter)
    equivalent: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    equivalents: list[tuple[TraceFile, Mutant]] = field(default_factory=list)
    untried: int = 0

    def share_refused(self, kinds: tuple[str, ...] = DRAWN) -> float:
        """Of the mutants of these kinds."""
        refused = sum(self.refused[kind] for kind in kinds)
        return refused / max(refused + sum(self.equivalent[kind] for kind in kinds), 1)


def run(traces: int, seed: int, kinds: tuple[str, ...] = DRAWN, names: list[str] | None = None) -> Tally:
    """Record `traces` traces, scenario after scenario, and check one mutant of each, kind after kind."""
    tally = Tally()
    names = names or list(SCENARIOS)
    for number, name in enumerate(names):
        setting = Setting(name, SCENARIOS[name].shape.pages, Switches())
        world = setting.build()
        for trace_number in range(number, traces, len(names)):
            trace, broken = record(setting, seed * 1_000_003 + trace_number, world)
            as_recorded = check(trace, world)
            if broken is not None or as_recorded.refusal is not None:
                tally.wrong.append(f"{name}, as recorded: {broken or as_recorded.as_text()}")
                continue
            kind = kinds[trace_number // len(names) % len(kinds)]
            if kind == "crossed" and len({line["actor"] for line in trace.lines}) == 1:
                continue
            mutant = mutated(trace.lines, kind, random.Random(f"{seed}/{trace_number}"))
            _enter(tally, trace, mutant, as_recorded, check(replace(trace, lines=mutant.lines), world))
    return tally


def _enter(tally: Tally, trace: TraceFile, mutant: Mutant, before: Checked, after: Checked) -> None:
    tally.untried += not after.all_tried
    if after.refusal is not None:
        tally.refused[mutant.kind] += 1
    elif after.digest == before.digest and _answers(trace.lines) == _answers(mutant.lines):
        tally.equivalent[mutant.kind] += 1
        tally.equivalents.append((trace, mutant))
    else:
        tally.wrong.append(f"{trace.setting.scenario}, {mutant.kind} at line {mutant.at + 2}: passes, ends otherwise")


def _answers(lines: list[dict]) -> dict[str, list[str]]:
    """What each actor did and was answered, in its own order."""
    by_actor: dict[str, list[str]] = {}
    for line in lines:
        by_actor.setdefault(line["actor"], []).append(str(sorted(line.items(), key=str)))
    return by_actor


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--traces", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began = time.perf_counter()
    drawn = run(chosen.traces, chosen.seed)
    hard = run(chosen.traces, chosen.seed + 1, ("crossed",))
    for kind, tally in itertools.chain(((kind, drawn) for kind in DRAWN), [("crossed", hard)]):
        refused, equivalent = tally.refused[kind], tally.equivalent[kind]
        print(f"{kind:8} {refused + equivalent:5} mutants  {refused:5} refused  {equivalent:4} equivalent")
    share = drawn.share_refused()
    print(f"{share:.1%} of {chosen.traces} are refused (crossed: {hard.share_refused(('crossed',)):.1%})")
    pairs = Counter(_pair(mutant) for tally in (drawn, hard) for _, mutant in tally.equivalents)
    print("what the equivalent ones exchange:")
    for pair, times in pairs.most_common(12):
        print(f"{times:5}  {pair}")
    print(f"orders cut off: {drawn.untried + hard.untried}; {time.perf_counter() - began:.0f} s")
    wrong = drawn.wrong + hard.wrong
    print(*wrong, sep="\n")
    return int(bool(wrong) or share < LEAST_REFUSED)


def _pair(mutant: Mutant) -> str:
    def told(at: int) -> str:
        line = mutant.lines[at]
        return " ".join(filter(None, (line["kind"], line.get("what"), line.get("at"))))

    return " / ".join(sorted((told(mutant.at), told(mutant.at + 1))))


if __name__ == "__main__":
    sys.exit(main())
