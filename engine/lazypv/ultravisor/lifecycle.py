"""Calls that make and end configurations and secure CPUs.

Source: semantics 2.3, 3.3, 3.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypv.ultravisor import vault
from lazypv.ultravisor.answers import BUSY, EXECUTED, Answer, refused
from lazypv.ultravisor.door import MAX_CPU_ID, Door
from lazypv.ultravisor.firmware import Configuration, SecureCpu
from lazypv.ultravisor.interface import (
    CREATE_SEC_CONF_RC_ASCE,
    CREATE_SEC_CONF_RC_STORAGE,
    CREATE_SEC_CPU_RC_DEFINED,
    CREATE_SEC_CPU_RC_NUMBER,
    CREATE_SEC_CPU_RC_STORAGE,
    INIT_UV_RC_DONE_ALREADY,
    INIT_UV_RC_STORAGE,
    RC_CPUS_ALIVE,
    RC_NO_SLOT,
    RC_NOT_COMPLETE,
    UVC,
    UVC_CC_PARTIAL,
    UVC_RC_EXECUTED,
    UVC_RC_INV_CHANDLE,
    UVC_RC_INV_GHANDLE,
    UVC_RC_INV_STATE,
)
from lazypv_kernels import sweep
from lazypv_kernels.layout import (
    ASCE,
    COUNT_BUSY,
    COUNT_DONE,
    DON_CONF,
    DON_CPU,
    DON_UV,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lazypv.ultravisor.header import ImageHeader
    from lazypv_kernels.arrays import Table

    Frames = NDArray[np.int64]


class LifecycleCalls(Door):
    """INIT_UV, and the life of configurations and CPUs."""

    def init_uv(self, frames: Frames) -> Answer:
        """INIT_UV (0x000f): take `frames`, the Ultravisor's base storage, for good."""
        self.count(UVC.INIT_UV)
        firmware = self._checked(frames)
        with firmware.lock:
            if self._initialised:
                return refused(INIT_UV_RC_DONE_ALREADY)
            if sweep.donate(firmware.state, firmware.owner, frames, DON_UV, 0) >= 0:
                return refused(INIT_UV_RC_STORAGE)
            self._initialised = True
            return EXECUTED

    def create_sec_conf(self, donated: Frames, pages: int, asce: int, table: Frames, translation: Table) -> Answer:
        """CREATE_SEC_CONF (0x0100); the handle is in the answer.

        Parameters
        ----------
        donated : int64[k]
            Frames of base and variable storage.
        pages : int
            Guest storage in pages.
        asce : int
            The address space control element; `table` : int64[4] its top table, marked from now on.
        translation : uint32[m], or (uint64[s], uint32[m])
            What the tables say: frame + 1 for each guest page, 0 where nothing is mapped. The host goes on writing it.

        Source: semantics 2.3, 3.3; invariant 13.
        """
        self.count(UVC.CREATE_SEC_CONF)
        self._checked(table)
        firmware = self._checked(donated)
        with firmware.lock:
            if not self._initialised:
                return refused(UVC_RC_INV_STATE)
            slot = firmware.free_slot()
            if slot is None:
                return refused(RC_NO_SLOT)
            if sweep.donate(firmware.state, firmware.owner, table, ASCE, slot) >= 0:
                return refused(CREATE_SEC_CONF_RC_ASCE)
            if sweep.donate(firmware.state, firmware.owner, donated, DON_CONF, slot) >= 0:
                sweep.unmark(firmware.state, firmware.owner, table)
                return refused(CREATE_SEC_CONF_RC_STORAGE)
            records, tags = firmware.new_records(pages)
            handle = firmware.next_handle(slot)
            track = firmware.new_track(pages)
            firmware.enter(Configuration(slot, handle, pages, asce, translation, records, tags, donated, table, track))
            return Answer(0, UVC_RC_EXECUTED, 0, handle)

    def destroy_sec_conf(self, handle: int) -> Answer:
        """DESTROY_SEC_CONF (0x0101): clean and release all that the configuration still has; `pages` says how many.

        Refused while it has CPUs. Condition code 2 while another call works on the configuration, 3 while somebody else
        has a claim on one of its frames.

        Source: semantics 2.3, invariants 8, 16.
        """
        self.count(UVC.DESTROY_SEC_CONF)
        firmware = vault.firmware_of(self)
        with firmware.lock:
            configuration = firmware.configurations.get(handle)
            if configuration is None:
                return refused(UVC_RC_INV_GHANDLE)
            if configuration.cpus:
                return refused(RC_CPUS_ALIVE)
            configuration.dying = True
            if configuration.in_flight or configuration.cleaning:
                return BUSY
            configuration.cleaning = True
        counts = self._workers.add_up(
            firmware.state.size,
            lambda first, last, into: sweep.clean_configuration(
                firmware.storage.contents, firmware.state, firmware.owner, configuration.slot, first, last, into
            ),
        )
        configuration.cleaned += int(counts[COUNT_DONE])
        with firmware.lock:
            configuration.cleaning = False
            if counts[COUNT_BUSY]:
                return Answer(UVC_CC_PARTIAL, 0, 0, 0, int(counts[COUNT_DONE]))
            firmware.remove(configuration)
        return Answer(0, UVC_RC_EXECUTED, 0, 0, int(counts[COUNT_DONE]))

    def create_sec_cpu(self, handle: int, number: int, frames: Frames) -> Answer:
        """CREATE_SEC_CPU (0x0120) with CPU storage `frames`; the CPU handle is in the answer."""
        self.count(UVC.CREATE_SEC_CPU)
        firmware = self._checked(frames)
        with firmware.lock:
            configuration = firmware.configurations.get(handle)
            if configuration is None or configuration.dying:
                return refused(UVC_RC_INV_GHANDLE)
            if not 0 <= number <= MAX_CPU_ID:
                return refused(CREATE_SEC_CPU_RC_NUMBER)
            if any(cpu.number == number for cpu in configuration.cpus.values()):
                return refused(CREATE_SEC_CPU_RC_DEFINED)
            if sweep.donate(firmware.state, firmware.owner, frames, DON_CPU, configuration.slot) >= 0:
                return refused(CREATE_SEC_CPU_RC_STORAGE)
            cpu = SecureCpu(firmware.next_handle(configuration.slot), number, frames)
            configuration.cpus[cpu.handle] = cpu
            firmware.cpus[cpu.handle] = (configuration, cpu)
            firmware.count_cpus(configuration)
            return Answer(0, UVC_RC_EXECUTED, 0, cpu.handle)

    def destroy_sec_cpu(self, cpu_handle: int) -> Answer:
        """DESTROY_SEC_CPU (0x0121): its storage is cleared and given back."""
        self.count(UVC.DESTROY_SEC_CPU)
        firmware = vault.firmware_of(self)
        with firmware.lock:
            found = firmware.cpus.pop(cpu_handle, None)
            if found is None:
                return refused(UVC_RC_INV_CHANDLE)
            configuration, cpu = found
            sweep.give_back(firmware.storage.contents, firmware.state, firmware.owner, cpu.frames)
            del configuration.cpus[cpu_handle]
            firmware.count_cpus(configuration)
            return EXECUTED

    def set_sec_conf_params(self, handle: int, header: ImageHeader) -> Answer:
        """SET_SEC_CONF_PARAMS (0x0300): what the boot image's header says."""
        self.count(UVC.SET_SEC_CONF_PARAMS)
        configuration = self._configuration(handle)
        if configuration is None:
            return refused(UVC_RC_INV_GHANDLE)
        configuration.image = header
        return EXECUTED

    def verify_img(self, handle: int) -> Answer:
        """VERIFY_IMG (0x0302): all parts of the image are there and whole; CPUs may start."""
        self.count(UVC.VERIFY_IMG)
        configuration = self._configuration(handle)
        if configuration is None:
            return refused(UVC_RC_INV_GHANDLE)
        if configuration.image is None or configuration.unpacked != configuration.image.pages:
            return refused(RC_NOT_COMPLETE)
        configuration.verified = True
        return EXECUTED

    def cpu_set_state(self, cpu_handle: int, operating: bool) -> Answer:
        """CPU_SET_STATE (0x0330): operating-load, or stopped."""
        self.count(UVC.CPU_SET_STATE)
        firmware = vault.firmware_of(self)
        with firmware.lock:
            found = firmware.cpus.get(cpu_handle)
            if found is None:
                return refused(UVC_RC_INV_CHANDLE)
            configuration, cpu = found
            if operating and not configuration.verified:
                return refused(RC_NOT_COMPLETE)
            cpu.operating = operating
            return EXECUTED

    def set_unshare_all(self, handle: int) -> Answer:
        """SET_UNSHARE_ALL (0x0340): every shared page of the configuration is private again; its CPUs are stopped."""
        self.count(UVC.SET_UNSHARE_ALL)
        firmware = vault.firmware_of(self)
        configuration = firmware.admit(handle)
        if configuration is None:
            return refused(UVC_RC_INV_GHANDLE)
        try:
            if any(cpu.operating for cpu in list(configuration.cpus.values())):
                return refused(UVC_RC_INV_STATE)
            counts = self._workers.add_up(
                firmware.state.size,
                lambda first, last, into: sweep.unshare_all(
                    firmware.state, firmware.owner, firmware.guest_page, firmware.directory, configuration.slot, first,
                    last, into,
                ),
            )  # fmt: skip
        finally:
            firmware.dismiss(configuration)
        return BUSY if counts[COUNT_BUSY] else Answer(0, UVC_RC_EXECUTED, 0, 0, int(counts[COUNT_DONE]))
