"""``python -m tests.mutation --count 200 --seed 1``: draw mutants, try them, report who survived.

Exit status: 0 if nine in ten were noticed, 2 for bad use and reasons that are out of date, 3 otherwise, 130
interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .mutants import Mutant, all_mutants, draw
from .report import Report, tried
from .survivors import Reasons, StaleReasonError
from .trial import ROOT, BaselineError, Bench, Kept, Verdict

BUDGET_SECONDS = 60


def main(arguments: list[str] | None = None) -> int:
    """Run the test; what the process is to exit with."""
    options = _options().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bench = Bench(options.checkout, options.budget)
    try:
        reasons = Reasons()
        mutants = all_mutants(bench.package)
        reasons.require_in({mutant.key for mutant in mutants})
        verdict = bench.baseline()
        print(f"the unchanged engine holds, in {verdict.seconds:.0f} s; {len(mutants)} mutants", file=sys.stderr)
        drawn = draw(mutants, options.count, options.seed, bench.package)
        verdicts = _try_all(drawn, bench, options.jobs, Kept(options.keep, bench.sources()))
        reasons.require_none_of({mutant.key for mutant, verdict in verdicts.items() if verdict.is_certain})
        report = Report(
            options.seed,
            options.budget,
            len(mutants),
            len({mutant.place for mutant in mutants}),
            [tried(mutant, mutant.change(bench.package), verdicts[mutant], reasons) for mutant in drawn],
        )
    except (BaselineError, StaleReasonError) as error:
        print(f"tests.mutation: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        bench.close()
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_object(), indent=1) + "\n")
    print(report.as_text())
    return 0 if report.is_good else 3


def _try_all(drawn: list[Mutant], bench: Bench, jobs: int, kept: Kept) -> dict[Mutant, Verdict]:
    def try_one(numbered: tuple[int, Mutant]) -> Verdict:
        number, mutant = numbered
        verdict = kept.verdicts.get(str(mutant.key))
        if verdict is None:
            verdict = bench.try_mutant(mutant)
            kept.add(mutant, verdict)
        said = f"{verdict.outcome} {verdict.check}".strip()
        place = f"{mutant.key.module}:{mutant.lineno}"
        print(f"{number}/{len(drawn)} {place} {mutant.key.operator}: {said}, {verdict.seconds:.1f} s", file=sys.stderr)
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return dict(zip(drawn, pool.map(try_one, enumerate(drawn, 1)), strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            bench.close()
            raise


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="how many mutants")
    parser.add_argument("--seed", type=int, default=1, help="which draw")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    parser.add_argument("--budget", type=int, default=BUDGET_SECONDS, help="seconds of a core for each mutant")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the report there as JSON")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep verdicts there, and go on with those it has")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose engine and kernels are tried")
    return parser


if __name__ == "__main__":
    sys.exit(main())
