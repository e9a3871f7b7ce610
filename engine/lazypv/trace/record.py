"""Recording: a scenario runs on the live clock, on real threads, and is written down."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lazypv.clocks.live import LiveClock
from lazypv.clocks.trace import Jitter, Trace
from lazypv.errors import LazyPVError
from lazypv.explore.scenarios import scenario
from lazypv.trace.file import Setting, TraceFile

if TYPE_CHECKING:
    from lazypv.explore.world import World

_LOOK_AGAIN_SECONDS = 0.0002


def record(setting: Setting, seed: int, world: World | None = None) -> tuple[TraceFile, LazyPVError | None]:
    """Run a scenario once, and what it broke down with, if it did.

    Parameters
    ----------
    seed : int
        Of the moments at which threads are held back. The same seed does not make the same trace: threads are real.
    world : World, optional
        The setting's world, when several traces are recorded; it is put back first.
    """
    world = setting.build() if world is None else world
    world.restore()
    jitter, clock = Jitter(seed), LiveClock()
    trace = clock.trace = Trace(jitter)
    try:
        for name, text in scenario(setting.scenario).scene(world):
            actor = clock.spawn(text, name)
            # As in the exploring clock all are at their first step before anybody takes it, one after the other.
            while name not in jitter.arrived and not actor.done:
                time.sleep(_LOOK_AGAIN_SECONDS)
        jitter.go.set()
        broken = _wait_for_all(trace)
    finally:
        jitter.go.set()
        clock.stop()
    return TraceFile(setting, trace.lines), broken


def _wait_for_all(trace: Trace) -> LazyPVError | None:
    """Until every text has ended, spawned ones too; what one of them broke down with."""
    waited = 0
    while waited < len(actors := trace.actors):
        actors[waited].join()
        waited += 1
    errors = [actor.error for actor in trace.actors if not actor.unwinding]
    return next((error for error in errors if isinstance(error, LazyPVError)), None)
