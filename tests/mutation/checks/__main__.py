"""What looks at a mutant: searches of small worlds, calls against the dictionary model, small runs on real threads.

Run as ``python -m tests.mutation.checks REPORT ENGINE`` in a process of its own, with a copy of the engine first on the
path. Cheapest first; the first thing that is noticed ends it. REPORT gets a line when a check begins, and one when all
is over. Everything that is asked here holds for any engine: no check knows of a mutant.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from .check import Check, NoticedError


def all_checks() -> Iterator[Check]:
    """In the order in which they are made."""
    from . import (
        accounts,
        calls,
        codes,
        footprints,
        ioctls,
        known,
        mixtures,
        moments,
        policies,
        records,
        refusals,
        runs,
        searches,
        throttles,
        walks,
    )

    yield from codes.checks()
    yield from calls.checks()
    yield from refusals.checks()
    yield from records.checks()
    yield from searches.straight()
    yield from throttles.checks()
    yield from walks.checks()
    yield from mixtures.checks()
    yield from accounts.checks()
    yield from footprints.checks()
    yield from ioctls.checks()
    yield from moments.checks()
    yield from policies.checks()
    yield from runs.checks()
    yield from searches.with_faults()
    yield from known.checks()
    yield from searches.with_preemptions()


def main(report: str, engine: str) -> int:
    """Make the checks until one of them notices something; 0 if none does, 1 if one does."""
    with Path(report).open("a") as file:

        def tell(**line: object) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        compiled, check = _unknown, "import"
        try:
            import lazypv
            from lazypv_kernels.compiled import compilations

            compiled = compilations
            if not Path(lazypv.__file__).is_relative_to(engine):
                raise LookupError(f"lazypv was imported from {lazypv.__file__}, not from {engine}")
            for each in all_checks():
                check = each.name
                tell(check=check)
                each.look()
        except NoticedError as noticed:
            tell(check=check, outcome="violation", text=str(noticed)[:300], compiled=compiled())
            return 1
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{error!r} at {Path(where.filename).name}:{where.lineno}"
            tell(check=check, outcome="exception", text=text[:300], compiled=compiled())
            return 1
        tell(check="", outcome="survived", text="", compiled=compiled())
        return 0


def _unknown() -> int:
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
