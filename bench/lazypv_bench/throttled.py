"""What background cleaning costs the new guest when it is throttled."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Final

from lazypv.errors import ModelError
from lazypv.guest import Workload
from lazypv.host.teardown import DESTROY_THREAD
from lazypv.host.walk import LIVE_BATCH, Throttle, destroy_range
from lazypv.scenario import VM, Host
from lazypv.sizes import PAGE_SIZE
from lazypv_bench.harness import Work, benchmark
from lazypv_bench.rig import Rig, contents_of, expect_destroyed, expect_zero, frames_of, make_secure_again, soil
from lazypv_bench.walks import FOR_EVER, NEIGHBOUR_SHARE

if TYPE_CHECKING:
    from lazypv.clocks.actors import Actor

SHARE: Final = 0.6
"""Of the time, for the cleaning: what it reaches beside a guest has to be a quarter of its free rate."""
ALONE_SECONDS: Final = 0.3
POLL_SECONDS: Final = 0.001


def guest_alone(_rig: Rig, subject: Work) -> Work:
    """The same guest while nothing else happens."""
    scene: Scene = subject.run.__self__  # type: ignore[attr-defined]
    return Work(run=scene.alone, bytes=1)


@benchmark("guest.throttled", limit=guest_alone, bar=0.8, unit="of the cleaning's free rate")
def guest_throttled(rig: Rig) -> Work:
    """The new guest's own speed while the old one's memory is cleaned at a share of the free rate."""
    return Scene(rig).work()


class Scene:
    """Memory of an old guest that is cleaned, and a new guest that reads its own."""

    def __init__(self, rig: Rig) -> None:
        size = max(1, rig.size // PAGE_SIZE // NEIGHBOUR_SHARE) * PAGE_SIZE
        machine = rig.make_machine(rig.size, size)
        self._host = Host(machine, batch=LIVE_BATCH)
        rig.closing.callback(self._host.close)
        self._old = self._host.create_vm(rig.size, vcpus=1, image=rig.image(rig.size))
        self._old.run(Workload("sequential"))
        self._frames = frames_of(self._old)
        self._contents = contents_of(machine, self._frames)
        self._new: VM = self._host.create_vm(size, vcpus=1, image=rig.image(size))
        self._new.protect()
        self._new.populate()
        self._rates: list[float] = []
        self._free: list[float] = []

    def work(self) -> Work:
        """What the harness drives."""
        return Work(run=self.beside, bytes=1, prepare=self.prepare, finish=self.finish, value=self.rate)

    def prepare(self) -> None:
        """The free rate, with nobody about; then everything is secure again."""
        self._secure()
        self._free.append(self._clean(Throttle()))
        self._secure()

    def beside(self) -> float:
        """Seconds for an access of the new guest while cleaning is throttled."""
        throttle = Throttle(share=SHARE)
        throttle.now = self._host.clock.now
        actors = self._start()
        before, start = self._new.guest.accesses, time.perf_counter()
        self._rates.append(self._clean(throttle))
        while self._new.guest.accesses == before:  # a walk so short that the guest did nothing beside it
            time.sleep(POLL_SECONDS)
        seconds = (time.perf_counter() - start) / (self._new.guest.accesses - before)
        self._new.stop(actors)
        return seconds

    def alone(self) -> float:
        """Seconds for an access while nothing else happens."""
        actors = self._start()
        before, start = self._new.guest.accesses, time.perf_counter()
        time.sleep(ALONE_SECONDS)
        seconds = (time.perf_counter() - start) / (self._new.guest.accesses - before)
        self._new.stop(actors)
        return seconds

    def finish(self) -> None:
        """All of it is clean, and really so."""
        expect_destroyed(self._host.machine, self._frames)
        expect_zero(self._host.machine, self._frames)

    def rate(self) -> float:
        """Cleaning beside the guest over cleaning alone: the median of all turns but the first, which warms up."""
        return median(beside / free for beside, free in zip(self._rates[1:], self._free[1:], strict=True))

    def _start(self) -> list[Actor]:
        """The new guest runs, and has begun to."""
        before = self._new.guest.accesses
        actors = self._new.start(Workload("sequential", touches=FOR_EVER, writes=False))
        while self._new.guest.accesses == before:
            if actors[0].done:
                self._new.stop(actors)
                raise ModelError("the guest that was to be watched has ended")
            time.sleep(POLL_SECONDS)
        return actors

    def _secure(self) -> None:
        soil(self._contents)
        make_secure_again(self._host.machine, self._frames)

    def _clean(self, throttle: Throttle) -> float:
        """Walk over all of it; pages a second."""
        kernel, mm, base = self._host.kernel, self._old.kernel_vm.mm, self._old.kernel_vm.base
        start = time.perf_counter()
        text = destroy_range(
            kernel.pages, mm, 1, base, base + self._old.pages, kernel.batch, "destroyed_background", throttle
        )
        self._host.clock.run(text, DESTROY_THREAD)
        return self._old.pages / (time.perf_counter() - start)
