"""Progress on stderr, for people: nothing unless stderr is a terminal, and nothing in the first second."""

from __future__ import annotations

import sys
import time
from types import TracebackType

QUIET_SECONDS = 1.0


class Progress:
    """A bar over the phases of a job; called with what happens now."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._bar = None
        self._total = 0
        self._done = 0
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, phases: int) -> None:
        """How many phases there will be in all."""
        self._total = phases

    def __call__(self, phase: str) -> None:
        """The next phase begins."""
        self._done += 1
        if self._bar is None:
            return
        if time.monotonic() - self._began > QUIET_SECONDS:
            self._bar.start()
        self._bar.update(self._task, description=phase, total=self._total or None, completed=self._done - 1)
