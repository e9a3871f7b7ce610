"""What may go wrong with a step: the choice points of a search with faults."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lazypv.steps import Alloc, Bulk, Call, Spawn, Step
from lazypv.ultravisor import Answer, BulkAnswer

UNKNOWN_RC: Final = 0x0F10
"""A refusal for a reason that no source states."""
_MAY_FAIL: Final = frozenset({"DESTROY_SEC_CPU", "DESTROY_SEC_CONF", "CREATE_SEC_CPU", "CREATE_SEC_CONF"})


def faults_of(step: Step[Any]) -> list[tuple[str, Any]]:
    """Names of faults, and what the step gives back instead of being done."""
    if isinstance(step, Alloc):
        return [("no memory", None)]
    if isinstance(step, Spawn):
        return [("no thread", None)]
    if isinstance(step, Call) and step.name in _MAY_FAIL:
        return [("refused", Answer(1, UNKNOWN_RC))]
    if isinstance(step, Bulk) and step.name.startswith("destroy"):
        return [("refused", BulkAnswer(np.array([UNKNOWN_RC], np.uint16), 0, refused=1))]
    return []
