"""Threads of a process that run in a scenario, and how a signal ends them."""

from __future__ import annotations

from typing import Any

from lazypv.explore.faults import FATAL_SIGNAL, PENDING_SIGNALS, UNKNOWN_RC
from lazypv.explore.world import World
from lazypv.host.faults import ProcessKilledError
from lazypv.scenario.boot import GuestStartError
from lazypv.steps import Text, Touch


class Threads:
    """Threads of one process of a world.

    A fatal signal ends all of them, each where it looks for signals, and the last to go ends the process. So do the two
    clean ways to give up after a step that failed: the guest cannot be started, or a page of it is refused.

    Attributes
    ----------
    left : int
        Threads that still run.
    killed : bool
        A fatal signal is pending for all of them.
    """

    def __init__(self, world: World, process: int = 0, threads: int = 1) -> None:
        self._world = world
        self._process = world.processes[process]
        self.left = threads
        self.killed = False

    async def run(self, text: Text[Any]) -> None:
        """One of the threads: `text`, unless a signal ends it."""
        try:
            await text
        except ProcessKilledError as error:
            if error.signal != FATAL_SIGNAL and error.rc != UNKNOWN_RC:
                raise
            await self.kill()
        except GuestStartError:
            if not self._world.faulted:
                raise
            await self.kill()
        await Touch(self, "threads of the process", write=True)
        self.left -= 1
        if self.killed and not self.left:
            await self._process.exit()

    async def survive(self) -> None:
        """Look for signals, as a thread does before it goes (back) to the guest.

        Raises
        ------
        ProcessKilledError
            One is pending that ends the process.
        """
        await Touch(self, PENDING_SIGNALS)
        if self.killed:
            raise ProcessKilledError(FATAL_SIGNAL, "somebody has killed the process")

    async def kill(self) -> None:
        """Send all threads a fatal signal."""
        await Touch(self, PENDING_SIGNALS, write=True)
        self.killed = True
