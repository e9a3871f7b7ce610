"""Protected guests made by hand: a machine, its calls, and no host in between."""

from __future__ import annotations

import numpy as np

from lazypv.hardware import GuestCpu, Machine
from lazypv.ultravisor import ImageHeader, vault
from lazypv_kernels import access
from lazypv_kernels.layout import RC_DONE

PAGE_SIZE = 4096


def empty_header():
    """The header of an image without pages: VERIFY_IMG finds nothing missing."""
    return ImageHeader.seal(np.zeros((0, PAGE_SIZE), np.uint8), 0)


def pages(*numbers):
    """int64[k]"""
    return np.array(numbers, np.int64)


class Guest:
    """A secure configuration whose guest page g lies in ``frames[g]``, with one running CPU unless told otherwise."""

    def __init__(self, machine: Machine, frames, cpus=1, operating=True):
        self.machine = machine
        self.ultravisor = machine.ultravisor
        self.frames = np.asarray(frames, np.int64)
        self.translation = (self.frames + 1).astype(np.uint32)
        # Not for the allocator; who maps the same frames later finds them reserved.
        machine.frames.byte[self.frames] |= 1
        self.table = machine.frames.allocate_run(4, 4)
        self.donated = machine.frames.allocate(2)
        self.asce = int(self.table[0]) * PAGE_SIZE
        answer = self.ultravisor.create_sec_conf(
            self.donated, self.frames.size, self.asce, self.table, self.translation
        )
        assert answer.ok
        self.handle = answer.handle
        self.cpu_handles = []
        assert self.ultravisor.set_sec_conf_params(self.handle, empty_header()).ok
        assert self.ultravisor.verify_img(self.handle).ok
        for number in range(cpus):
            self.add_cpu(number, operating)

    @property
    def slot(self):
        return vault.firmware_of(self.ultravisor).configurations[self.handle].slot

    @property
    def all_pages(self):
        return np.arange(self.frames.size)

    def add_cpu(self, number, operating=True):
        made = self.ultravisor.create_sec_cpu(self.handle, number, self.machine.frames.allocate(1))
        assert made.ok
        self.cpu_handles.append(made.handle)
        if operating:
            assert self.ultravisor.cpu_set_state(made.handle, True).ok

    def cpu(self, index=0):
        """What SIE is entered with."""
        return GuestCpu(self.handle, self.cpu_handles[index], self.asce, self.translation)

    def access(self, numbers, operation, values=None, rows=None, source=None):
        """Codes of the accesses of the first CPU."""
        values = np.zeros(numbers.size, np.uint64) if values is None else values
        source = np.zeros((1, 512), np.uint64) if source is None else source
        return self.machine.guest_access(self.cpu(), numbers, operation, values, source, rows).rc

    def write(self, numbers, word):
        """Store `word` into each page, at its stamp offset."""
        return self.access(numbers, access.STORE_WORD, np.full(numbers.size, word, np.uint64))

    def fill(self, numbers, word):
        """Import `numbers` and fill each page with `word`."""
        assert (self.ultravisor.import_pages(self.handle, numbers).rc == RC_DONE).all()
        source = np.full((1, 512), word, np.uint64)
        rc = self.access(numbers, access.COPY_PAGE, rows=np.zeros(numbers.size, np.int64), source=source)
        assert (rc == RC_DONE).all()

    def stop(self):
        """Destroy all CPUs."""
        while self.cpu_handles:
            assert self.ultravisor.destroy_sec_cpu(self.cpu_handles.pop()).ok


def firmware_of(machine):
    """What only a test may look into."""
    return vault.firmware_of(machine.ultravisor)
