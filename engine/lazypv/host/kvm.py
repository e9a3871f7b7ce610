"""KVM's side of a protected guest: its configuration, its CPUs, and the ioctls that make and end them.

Source: semantics 3.5, 3.6, 4.12.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from lazypv.host.uvc import uv_call
from lazypv.sizes import PAGE_SIZE
from lazypv.steps import Alloc, Lock
from lazypv.ultravisor import Answer
from lazypv.ultravisor.interface import (
    UVC_CC_ERROR,
    UVC_RC_NEED_DESTROY,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.vm import Vm
    from lazypv.ultravisor import ImageHeader

EINVAL, ENOMEM, EIO = -22, -12, -5
KVM_LOCK: Final = "kvm->lock"
"""Held through an ioctl; whoever gives it up comes back from one."""


@dataclass(frozen=True)
class StorageSizes:
    """Pages to donate: machine-specific values of QUI; real ones are not public.

    Attributes
    ----------
    base : int
        ``conf_base_phys_stor_len``, contiguous.
    variable, variable_per_mib : int
        ``conf_base_virt_stor_len``, and ``conf_virt_var_stor_len`` for each MiB of the guest.
    cpu : int
        ``cpu_stor_len``.
    """

    base: int = 16
    variable: int = 16
    variable_per_mib: int = 1
    cpu: int = 4

    def variable_for(self, guest_pages: int) -> int:
        """Pages of variable storage for a guest."""
        return self.variable + self.variable_per_mib * (-(-guest_pages * PAGE_SIZE // (1 << 20)))

    def total(self, guest_pages: int, cpus: int) -> int:
        """All pages that a protected guest costs the host beside its own."""
        return self.base + self.variable_for(guest_pages) + cpus * (self.cpu + 1)


class Result(NamedTuple):
    """What an ioctl gives back: errno (0 or negative) and the codes of the first failing call, or 1 and 42."""

    errno: int
    rc: int
    rrc: int


@dataclass(eq=False)
class Vcpu:
    """A virtual CPU of KVM.

    Attributes
    ----------
    sida : int64[1] or None
        Secure instruction data area, a normal page of the host. Its address shares its bytes with another field, so
        it counts only while `handle` is not 0.
    stale_sida : int64[1] or None
        What the field still says after that, as posted (D15).
    """

    number: int
    handle: int = 0
    storage: NDArray[np.int64] | None = None
    sida: NDArray[np.int64] | None = None
    stale_sida: NDArray[np.int64] | None = None


@dataclass(eq=False)
class Protected:
    """``kvm->arch.pv``: the protected configuration of a VM, all zero when there is none.

    Attributes
    ----------
    cpu_failure : Answer or None
        How DESTROY_SEC_CPU failed; then the configuration can never be destroyed (invariant 8).
    """

    handle: int = 0
    base: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    variable: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    guest_pages: int = 0
    cpu_failure: Answer | None = None


class Kvm:
    """``struct kvm``: one VM of the host's kernel."""

    def __init__(self, vcpus: int) -> None:
        self.lock = Lock(KVM_LOCK)
        self.vcpus = [Vcpu(number) for number in range(vcpus)]
        self.pv = Protected()


async def enable(vm: Vm) -> Result:
    """KVM_PV_ENABLE: donate storage, create the configuration and its CPUs."""
    kvm, host = vm.kvm, vm.host
    async with kvm.lock.exclusive():
        if kvm.pv.handle:
            return Result(EINVAL, 0, 0)
        result = await _create_configuration(vm)
        if result.errno:
            return result
        for vcpu in kvm.vcpus:
            answer = await _create_cpu(vm, vcpu)
            if not answer.ok:
                if await destroy_cpus(vm) is None:
                    await host.teardown.reset(vm)
                return Result(EIO if answer.rc else ENOMEM, answer.rc, answer.rrc)
        await host.teardown.enabled(vm)
        return result


async def _create_configuration(vm: Vm) -> Result:
    """Base and variable storage, CREATE_SEC_CONF; the counter goes up before the answer is looked at (patch 06)."""
    kvm, host, frames = vm.kvm, vm.host, vm.host.machine.frames
    sizes = host.storage_sizes
    base = await Alloc("base storage", lambda: frames.allocate_run(sizes.base, 4))
    if base is None:
        return Result(ENOMEM, 0, 0)
    variable = await Alloc("variable storage", lambda: frames.allocate(sizes.variable_for(vm.guest_pages)))
    if variable is None:
        frames.put(base)
        return Result(ENOMEM, 0, 0)
    gmap = vm.gmap
    answer = await uv_call(
        "CREATE_SEC_CONF",
        lambda: host.machine.ultravisor.create_sec_conf(
            np.concatenate([base, variable]), vm.guest_pages, gmap.asce, gmap.table.frames, gmap.pte.arrays
        ),
        vm,
    )
    (await vm.mm.write_protected()).created()
    if not answer.ok and not answer.rc & UVC_RC_NEED_DESTROY:
        (await vm.mm.write_protected()).gone()
        frames.put(base)
        frames.put(variable)
        return Result(EIO, answer.rc, answer.rrc)
    kvm.pv = Protected(answer.handle, base, variable, vm.guest_pages)
    gmap.guest_handle = answer.handle
    async with vm.mm.set_aside.held():
        vm.mm.to_drain += 1
    host.created(vm, answer.handle)
    if not answer.ok:
        await host.teardown.immediate(vm)
        return Result(EIO, answer.rc, answer.rrc)
    return Result(0, answer.rc, answer.rrc)


async def _create_cpu(vm: Vm, vcpu: Vcpu) -> Answer:
    """CREATE_SEC_CPU with storage and an instruction data area of its own."""
    frames = vm.host.machine.frames
    storage = await Alloc("CPU storage", lambda: frames.allocate_run(vm.host.storage_sizes.cpu))
    sida = None if storage is None else await Alloc("SIDA", lambda: frames.allocate(1))
    if storage is None or sida is None:
        if storage is not None:
            frames.put(storage)
        return Answer(UVC_CC_ERROR, 0)
    answer = await uv_call(
        "CREATE_SEC_CPU",
        lambda: vm.host.machine.ultravisor.create_sec_cpu(vm.kvm.pv.handle, vcpu.number, storage),
        vcpu,
    )
    if answer.ok:
        vcpu.handle, vcpu.storage, vcpu.sida = answer.handle, storage, sida
    else:
        frames.put(storage)
        frames.put(sida)
    return answer


async def destroy_cpus(vm: Vm, *, closing: bool = False) -> Answer | None:
    """DESTROY_SEC_CPU for all; goes on after a failure, whose CPU storage is leaked; the first bad answer, or None.

    The data area is freed once, with its handle, whatever the answer was. As posted its address stays where it was, and
    only the closing of a VM looks for a handle first: who comes twice frees the area twice (D15). A CPU that failed is
    asked no more, but its failure is not forgotten: the next call gives it back too.
    """
    frames, pv = vm.host.machine.frames, vm.kvm.pv
    for vcpu in vm.kvm.vcpus:
        if not vcpu.handle:
            if vcpu.stale_sida is not None and not closing:
                frames.put(vcpu.stale_sida)
            continue
        destroy = partial(vm.host.machine.ultravisor.destroy_sec_cpu, vcpu.handle)
        answer = await uv_call("DESTROY_SEC_CPU", destroy, vcpu)
        if answer.ok and vcpu.storage is not None:
            frames.put(vcpu.storage)
        elif vcpu.storage is not None:
            vm.host.ledger.leak("storage of a CPU that was not destroyed", vcpu.storage)
            pv.cpu_failure = pv.cpu_failure or answer
        if vcpu.sida is not None:
            frames.put(vcpu.sida)
        vcpu.stale_sida = vcpu.sida if vm.host.series.sida_freed_again else None
        vcpu.handle, vcpu.storage, vcpu.sida = 0, None, None
    return pv.cpu_failure


async def disable(vm: Vm) -> Result:
    """KVM_PV_DISABLE: CPUs first; if one fails the configuration is left alone."""
    async with vm.kvm.lock.exclusive():
        if not vm.kvm.pv.handle:
            return Result(EINVAL, 0, 0)
        bad = await destroy_cpus(vm)
        if bad is not None:
            return Result(EIO, bad.rc, bad.rrc)
        return await vm.host.teardown.reset(vm)


async def close_vm(vm: Vm) -> Result:
    """The last reference to the VM's file goes: vCPUs, then the configuration, then the gmap and its tables.

    A VM that is closed already is left alone. Until then it holds a reference to the address space.
    """
    result = Result(0, 0, 0)
    if vm.closed:
        return result
    vm.closed = True
    async with vm.kvm.lock.exclusive():
        bad = await destroy_cpus(vm, closing=True)
        if bad is not None:
            result = Result(EIO, bad.rc, bad.rrc)
            await vm.host.teardown.abandoned(vm, bad)
        elif vm.kvm.pv.handle:
            result = await vm.host.teardown.closed(vm)
    for table in list(vm.gmap.crst_list):
        vm.gmap.free_table(table)
    vm.gmap.crst_list.clear()
    vm.mm.gmaps.remove(vm.gmap)
    await vm.mm.drop()
    return result


async def set_parameters(vm: Vm, header: ImageHeader) -> Result:
    """KVM_PV_SET_SEC_PARMS."""
    answer = await uv_call(
        "SET_SEC_CONF_PARAMS",
        lambda: vm.host.machine.ultravisor.set_sec_conf_params(vm.kvm.pv.handle, header),
        vm,
    )
    (await vm.mm.write_protected()).parameters_set()
    return Result(0 if answer.ok else EINVAL, answer.rc, answer.rrc)


async def verify(vm: Vm) -> Result:
    """KVM_PV_VERIFY."""
    answer = await uv_call("VERIFY_IMG", lambda: vm.host.machine.ultravisor.verify_img(vm.kvm.pv.handle), vm)
    return Result(0 if answer.ok else EINVAL, answer.rc, answer.rrc)


async def start_cpus(vm: Vm) -> Result:
    """CPU_SET_STATE operating-load for every CPU."""
    for vcpu in vm.kvm.vcpus:
        load = partial(vm.host.machine.ultravisor.cpu_set_state, vcpu.handle, True)
        answer = await uv_call("CPU_SET_STATE", load, vcpu)
        if not answer.ok:
            return Result(EINVAL, answer.rc, answer.rrc)
    return Result(0, 1, 0)
