"""How a protected guest comes up: the boot loader, then the ioctls, in the order of the field.

Source: semantics 3.6, 4.12.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import LazyPVError
from lazypv.guest.patterns import GUEST_BATCH
from lazypv.host import kvm
from lazypv.host.faults import import_pages
from lazypv.host.run import access
from lazypv.ultravisor import ImageHeader
from lazypv.ultravisor.interface import PGM_NON_SECURE_STORAGE_ACCESS
from lazypv_kernels.access import COPY_PAGE
from lazypv_kernels.layout import PAGE_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.kvm import Result
    from lazypv.host.vm import Vm
    from lazypv_kernels.workers import Workers

BOOT_IMAGE_SIZE: Final = 64 << 20
"""A boot image (kernel, command line, initial file system) is no larger than this."""


class GuestStartError(LazyPVError):
    """A protected guest that did not come up; says at which ioctl, with its codes."""

    exit_status = 3

    def __init__(self, step: str, result: Result) -> None:
        super().__init__(f"{step} failed: errno {result.errno}, rc {result.rc:#06x}, rrc {result.rrc:#06x}")
        self.result = result


class BootImage:
    """A sealed boot image, as its owner made it, out of `pages` (uint8[n, 4096]) and in their place.

    Page i of it belongs at guest page i.

    Attributes
    ----------
    sealed : uint64[n, 512]
        Its pages, encrypted.
    """

    def __init__(
        self, pages: NDArray[np.uint8], workers: Workers, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        sealed = np.ascontiguousarray(pages)
        self.header = ImageHeader.seal(sealed, 0, workers, entropy)
        self.sealed: NDArray[np.uint64] = sealed.view(np.uint64)
        self.pages: int = sealed.shape[0]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.pages * PAGE_SIZE


async def load_boot_image(vm: Vm, number: int, image: BootImage) -> None:
    """The boot loader, in a guest that is not protected yet, puts the sealed image where it belongs."""
    pages = np.arange(image.pages, dtype=np.int64)
    for at in range(0, image.pages, GUEST_BATCH):
        part = pages[at : at + GUEST_BATCH]
        await access(vm, number, part, COPY_PAGE, np.zeros(part.size, np.uint64), image.sealed, part)


async def protect(vm: Vm, image: BootImage) -> None:
    """Enable, set parameters, unpack, verify, start.

    Raises
    ------
    GuestStartError
        An ioctl failed.
    """
    _expect("KVM_PV_ENABLE", await kvm.enable(vm))
    _expect("KVM_PV_SET_SEC_PARMS", await kvm.set_parameters(vm, image.header))
    ultravisor, handle = vm.host.machine.ultravisor, vm.kvm.pv.handle
    pages = np.arange(image.pages, dtype=np.int64)
    for at in range(0, image.pages, GUEST_BATCH):
        await import_pages(
            vm,
            pages[at : at + GUEST_BATCH],
            lambda part: ultravisor.unpack_pages(handle, part),
            PGM_NON_SECURE_STORAGE_ACCESS,
        )
    _expect("KVM_PV_VERIFY", await kvm.verify(vm))
    _expect("CPU_SET_STATE", await kvm.start_cpus(vm))


def _expect(step: str, result: Result) -> None:
    if result.errno:
        raise GuestStartError(step, result)
