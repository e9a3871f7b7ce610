"""How fast a protected guest comes up."""

from __future__ import annotations

from lazypv.errors import ModelError
from lazypv.scenario import VM, Host
from lazypv.sizes import PAGE_SIZE
from lazypv_bench.harness import Work, benchmark
from lazypv_bench.limits import copy_then_cipher
from lazypv_bench.rig import Rig, free_contents


@benchmark("boot.image", limit=copy_then_cipher, bar=0.5, share=0.5)
def boot_image(rig: Rig) -> Work:
    """From an opened image to a running protected guest with its memory filled, on one core."""
    return Boots(rig).work()


class Boots:
    """Guests that come up, one after the other; each is gone before the next, and before the limit's turn."""

    def __init__(self, rig: Rig) -> None:
        self._size = rig.size
        self._machine = rig.make_machine(rig.size)
        self._image = rig.image(rig.size)
        self._host = Host(self._machine)
        self._vm: VM | None = None
        rig.closing.callback(self._host.close)

    def work(self) -> Work:
        """What the harness drives."""
        return Work(
            run=self.run,
            bytes=self._size,
            finish=self.finish,
            contents=free_contents(self._machine, self._size // PAGE_SIZE),
            source=self._image.pages,
        )

    def run(self) -> None:
        """A process, its guest, the boot loader, the ioctls; then the guest fills its memory."""
        self._vm = self._host.create_vm(self._size, vcpus=1, image=self._image)
        self._vm.protect()
        self._vm.populate()

    def finish(self) -> None:
        """The guest has all of its memory; then it goes."""
        assert self._vm is not None
        report = self._vm.shutdown()
        self._host.drain()
        if report.owned_pages < self._vm.pages:
            raise ModelError(f"the guest that was measured owned only {report.owned_pages} of {self._vm.pages} pages")
        self._vm = None
