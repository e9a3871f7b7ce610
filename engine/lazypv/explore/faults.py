"""What may go wrong with a step: the choice points of a search with faults.

Each Ultravisor call may be refused, busy or done in part; memory, a node, a table, a thread may not be had; a fatal
signal may be pending where a thread looks for one. Busy and partial are retried by the texts (invariant 36), so that
nothing but time is lost. What else happens to a process (unmapping, swap-out, kills by others) is not a fault of a
step: those are actors of scenarios.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lazypv.host.faults import ProcessKilledError
from lazypv.steps import Alloc, Bulk, Call, Spawn, Step, Touch
from lazypv.ultravisor import Answer, Ultravisor
from lazypv.ultravisor.interface import UVC_CC_BUSY, UVC_CC_ERROR, UVC_CC_PARTIAL, UVC_RC_NEED_DESTROY

UNKNOWN_RC: Final = 0x0F10
"""A refusal for a reason that no source states."""
PENDING_SIGNALS: Final = "pending signals"
FATAL_SIGNAL: Final = "SIGKILL"
ONLY_TIME_LOST: Final = frozenset({"busy", "partial", "export busy"})
"""Faults after which a text has to ask again, and everything else has to hold as if nothing had happened."""

Fault = Callable[[Callable[[], Any]], Any]
"""Does a step, given as a function, in the way in which it fails; what the text is given."""
Named = list[tuple[str, Fault]]
Faults = Callable[[Step[Any]], Named]

_PAGE_CALLS: Final = {
    "destroy pages": "DESTR_SEC_STOR",
    "destroy set-aside pages": "DESTR_SEC_STOR",
    "export pages": "CONV_FROM_SEC_STOR",
    "export unmapped pages": "CONV_FROM_SEC_STOR",
    "make accessible": "PIN_PAGE_SHARED",
}
"""The call behind each bulk step of the host, where a refusal of that call alone is an answer that may come."""
_IMPORT: Final = "make secure"
_IMPORT_CALLS: Final = ("CONV_TO_SEC_STOR", "UNPACK_IMG")


def faults_for(ultravisor: Ultravisor) -> Faults:
    """For each step the names of its faults, and how it is done with that fault."""

    def of_a_page(calls: tuple[str, ...], *, busy: bool) -> Fault:
        """The step whose next call among `calls`, by interface name, is refused or busy."""

        def done_with_it(operation: Callable[[], Any]) -> Any:
            ultravisor.fault_at = calls
            ultravisor.refuse, ultravisor.stall = (0, True) if busy else (UNKNOWN_RC, False)
            try:
                return operation()
            finally:
                ultravisor.refuse, ultravisor.stall, ultravisor.fault_at = 0, False, ()

        return done_with_it

    by_step: dict[str, Named] = {
        step: [("refused", of_a_page((call,), busy=False)), ("busy", of_a_page((call,), busy=True))]
        for step, call in _PAGE_CALLS.items()
    }
    by_step[_IMPORT] = [
        ("refused", of_a_page(_IMPORT_CALLS, busy=False)),
        ("busy", of_a_page(_IMPORT_CALLS, busy=True)),
        ("export busy", of_a_page(("CONV_FROM_SEC_STOR",), busy=True)),
    ]

    def faults_of(step: Step[Any]) -> Named:
        if isinstance(step, Bulk):
            return by_step.get(step.name, [])
        if isinstance(step, Alloc):
            return [] if step.what == "guest memory" else _NO_MEMORY
        if isinstance(step, Spawn):
            return _NO_THREAD
        if isinstance(step, Call) and step.uvc:
            return _BY_CALL.get(step.name, _CALL)
        if isinstance(step, Touch) and step.name == PENDING_SIGNALS and not step.write:
            return _SIGNAL
        return []

    return faults_of


def _nothing(_operation: Callable[[], Any]) -> None:
    return None


def _refused(_operation: Callable[[], Any]) -> Answer:
    return Answer(UVC_CC_ERROR, UNKNOWN_RC)


def _refused_but_made(operation: Callable[[], Any]) -> Answer:
    answer: Answer = operation()
    return answer._replace(cc=UVC_CC_ERROR, rc=UNKNOWN_RC | UVC_RC_NEED_DESTROY)


def _busy(_operation: Callable[[], Any]) -> Answer:
    return Answer(UVC_CC_BUSY, 0)


def _partial(_operation: Callable[[], Any]) -> Answer:
    return Answer(UVC_CC_PARTIAL, 0)


def _killed(_operation: Callable[[], Any]) -> Any:
    raise ProcessKilledError(FATAL_SIGNAL, "a fatal signal arrives")


_NO_MEMORY: Final[Named] = [("no memory", _nothing)]
_NO_THREAD: Final[Named] = [("no thread", _nothing)]
_CALL: Final[Named] = [("refused", _refused), ("busy", _busy)]
_BY_CALL: Final[dict[str, Named]] = {
    "DESTROY_SEC_CONF": [*_CALL, ("partial", _partial)],
    "CREATE_SEC_CONF": [*_CALL, ("refused, to be destroyed", _refused_but_made)],
}
_SIGNAL: Final[Named] = [("fatal signal", _killed)]
