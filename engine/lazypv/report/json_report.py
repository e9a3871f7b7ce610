"""One JSON object, and nothing else; `schema` says its version."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lazypv._version import __version__
from lazypv.report.sentence import sentence
from lazypv.report.statistics import speedup, spread, typical
from lazypv.scenario.measure import INVARIANTS_CHECKED
from lazypv.sizes import PAGE_SIZE

if TYPE_CHECKING:
    from lazypv.scenario.compare import Comparison
    from lazypv.scenario.measure import Measured

PAGE_ACCOUNTS = (
    "destroyed_sync",
    "destroyed_background",
    "destroyed_on_fault",
    "exported",
    "set_aside",
    "cleaned_by_configuration",
    "leaked",
)


def as_json(comparison: Comparison) -> str:
    """The comparison as text."""
    return json.dumps(as_object(comparison), indent=2)


def as_object(comparison: Comparison) -> dict[str, Any]:
    """The comparison as nested objects."""
    violations = sorted(set(comparison.violations))
    return {
        "schema": f"lazypv.{comparison.kind}/1",
        "version": __version__,
        "machine": comparison.computer,
        "guest": {
            "image": comparison.image,
            "pages": comparison.memory // PAGE_SIZE,
            "bytes": comparison.memory,
            "vcpus": comparison.vcpus,
        },
        "sync_below_bytes": comparison.sync_below,
        "batch": comparison.batch,
        "policies": {policy: _policy(runs) for policy, runs in comparison.runs.items()},
        "speedup": speedup(comparison),
        "summary": sentence(comparison),
        "invariants": {
            "checked": list(INVARIANTS_CHECKED),
            "violated": len(violations),
            "violations": [{"number": number, "text": text} for number, text in violations],
        },
    }


def _policy(runs: list[Measured]) -> dict[str, Any]:
    one = typical(runs)
    slowdowns = [run.slowdown for run in runs if run.slowdown is not None]
    return {
        "runs": len(runs),
        "downtime_s": spread(runs, lambda run: run.downtime_s).as_dict(),
        "complete_s": spread(runs, lambda run: run.complete_s).as_dict(),
        "setup_s": spread(runs, lambda run: run.setup_s).as_dict(),
        "rc": one.rc,
        "rrc": one.rrc,
        "owned_pages": one.owned_pages,
        "pages": {account: getattr(one.accounts, account) for account in PAGE_ACCOUNTS},
        "held_back_bytes": max(run.held_back_bytes for run in runs),
        "threads": one.threads,
        "exceptions": {f"{code:#04x}": count for code, count in sorted(one.exceptions.items())},
        "uvcs": dict(sorted(one.uvcs.items())),
        "useless_uvcs": dict(sorted(one.useless_uvcs.items())),
        "longest_lock_hold": {
            "pages": one.longest_hold.pages,
            "calls": one.longest_hold.calls,
            "seconds": one.longest_hold.seconds,
        },
        "guest_slowdown": max(slowdowns) if slowdowns else None,
    }
