"""What may go wrong with a step: the choice points of a search with faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lazypv.steps import Alloc, Bulk, Call, Spawn, Step
from lazypv.ultravisor import Answer, Ultravisor

UNKNOWN_RC: Final = 0x0F10
"""A refusal for a reason that no source states."""
_MAY_FAIL: Final = frozenset({"DESTROY_SEC_CPU", "DESTROY_SEC_CONF"})

Faults = Callable[[Step[Any]], list[tuple[str, Callable[[Callable[[], Any]], Any]]]]


def faults_for(ultravisor: Ultravisor) -> Faults:
    """For each step the names of its faults, and how it is done with that fault."""

    def refused_page(operation: Callable[[], Any]) -> Any:
        ultravisor.refuse = UNKNOWN_RC
        try:
            return operation()
        finally:
            ultravisor.refuse = 0

    def faults_of(step: Step[Any]) -> list[tuple[str, Callable[[Callable[[], Any]], Any]]]:
        if isinstance(step, Alloc) and step.what != "guest memory":
            return [("no memory", _nothing)]
        if isinstance(step, Spawn):
            return [("no thread", _nothing)]
        if isinstance(step, Call) and step.name in _MAY_FAIL:
            return [("refused", _refused_call)]
        if isinstance(step, Bulk) and step.name.startswith("destroy"):
            return [("refused", refused_page)]
        return []

    return faults_of


def _nothing(_operation: Callable[[], Any]) -> None:
    return None


def _refused_call(_operation: Callable[[], Any]) -> Answer:
    return Answer(1, UNKNOWN_RC)
