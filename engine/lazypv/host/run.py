"""The run loop of a vCPU: enter SIE, take its exceptions, enter again.

Source: semantics 7; invariant 35.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.host.faults import HANDLERS, ProcessKilledError
from lazypv.steps import Bulk
from lazypv.ultravisor.interface import PGM_PAGE_TRANSLATION
from lazypv_kernels.layout import RC_BUSY, RC_DONE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.vm import Vm
    from lazypv.ultravisor import BulkAnswer

MOST_ROUNDS = 64
"""Rounds of exceptions after which a page that still raises them is taken to do so for ever."""
_NO_SOURCE = np.zeros((1, 512), np.uint64)


async def access(
    vm: Vm,
    number: int,
    pages: NDArray[np.int64],
    operation: int,
    values: NDArray[np.uint64],
    source: NDArray[np.uint64] = _NO_SOURCE,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """vCPU `number` touches `pages`, whatever exceptions that takes; parameters as of ``Machine.guest_access``.

    Raises
    ------
    ProcessKilledError
        A handler gave up, or a page went on raising exceptions (invariant 35).
    """
    machine = vm.host.machine

    def enter(part: NDArray[np.int64], into: NDArray[np.uint64], which: NDArray[np.int64]) -> BulkAnswer:
        return machine.guest_access(vm.cpu(number), part, operation, into, source, which)

    todo, into, which = pages, values, pages if rows is None else rows
    back: NDArray[np.int64] | None = None
    rounds = 0
    while True:
        answer: BulkAnswer = await Bulk("guest access", enter, todo, into, which, frame_of=vm.frame_at)
        if back is not None and operation == 0:
            values[back] = into
        if answer.all_done:
            return
        code = answer.rc
        if answer.done or answer.noop:
            left = np.flatnonzero(code != RC_DONE)
            back = left if back is None else back[left]
            code, todo, into, which = code[left], todo[left], into[left], which[left]
        faulting = code[code != RC_BUSY] if answer.busy else code
        rounds = rounds + 1 if faulting.size else rounds
        if rounds > MOST_ROUNDS:
            vm.host.ledger.broke(35, f"guest page {int(todo[0]):#x} raised exceptions {MOST_ROUNDS} times in a row")
            raise ProcessKilledError(
                "endless loop", f"guest page {int(todo[0]):#x} goes on raising {int(code[0]):#04x}"
            )
        for kind in np.unique(faulting).tolist() if faulting.size > 1 else faulting.tolist():
            chosen = todo[code == kind] if todo.size > 1 else todo
            if kind != PGM_PAGE_TRANSLATION:
                vm.host.ledger.exception(kind, chosen.size)
            await HANDLERS[kind](vm, chosen)
