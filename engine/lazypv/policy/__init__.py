"""What an own teardown protocol is written with: everything that a policy may use, in one place.

A policy is a class with the methods of :class:`TeardownPolicy`; most derive from :class:`SeriesTeardown` and write anew
what is to differ. A method is a text: it awaits the steps and texts below, and nothing else.

What it is given
    ``vm.host``, ``vm.mm``, ``vm.gmap``, ``vm.kvm.pv``, ``vm.base``, ``vm.guest_pages``: the VM and what belongs to it;
    ``host.pages`` (:class:`SecurePages`): destroy, export and put pages, in bulk; ``host.series``, ``host.sync_only``,
    ``host.batch``, ``host.throttle``: how the host was set up; ``host.ledger``: its books.
The address space
    ``await mm.get_not_zero()`` and :func:`mmput` (become a user, stop being one), ``await mm.grab()`` and ``drop()``
    (hold the structure), ``await mm.read_users()``, ``await mm.read_protected()``, ``await mm.write_protected()`` (the
    protected counter), ``async with mm.mmap_lock.shared()``, ``await mm.gather(at, end, limit)``, ``mm.unmap(...)``.
Moves that the series is made of
    :func:`destroy_below_limit`, :func:`destroy_range`, :func:`drain_set_aside`, :func:`destroy_configuration`,
    :func:`give_storage_back`, :func:`leak_table`, :func:`set_aside`, :func:`export_unmapped`, :func:`start_thread`,
    :func:`deinit_now`, :func:`deinit_deferred`, :func:`destroy_thread`; ``gmap.replace_asce()``,
    ``gmap.restore_asce(old)``, ``gmap.free_table(table)``; ``host.lost(mm, pv, answer)`` for a configuration that could
    not be destroyed, ``host.recorded(record)`` and ``host.discarded(record)`` for what is on its way.
Steps of its own
    :class:`Touch`, :class:`Bulk`, :class:`Call`, :class:`Alloc`, :class:`Wait`, :class:`Spawn`, :class:`Lock`. Await a
    ``Touch`` before every access to state that others may change and that no held lock protects.

State belongs on the VM, the host, a record, or the policy itself (given its attributes in ``__init__``): the explorer
puts these back before each run, and not the globals of a module. Nor can it see where an asynchronous generator stands.
"""

from lazypv.host.exit import drain_set_aside, export_unmapped, mmput, pass_the_list_over, set_aside
from lazypv.host.host import Host
from lazypv.host.kvm import EIO, Protected, Result
from lazypv.host.mm import Mm, Vma
from lazypv.host.policy import Record, TeardownPolicy
from lazypv.host.secure_pages import SecurePages
from lazypv.host.teardown import (
    DEFERRED,
    MARKED_TABLE,
    Deferred,
    SeriesTeardown,
    deinit_deferred,
    deinit_now,
    destroy_below_limit,
    destroy_configuration,
    destroy_thread,
    give_storage_back,
    leak_table,
    start_thread,
)
from lazypv.host.vm import Vm
from lazypv.host.walk import destroy_range
from lazypv.policy.loading import LoadedPolicy, load_policy
from lazypv.steps import Alloc, Bulk, Call, Lock, Spawn, Text, Touch, Wait
from lazypv.ultravisor import Answer, BulkAnswer

__all__ = [
    "DEFERRED",
    "EIO",
    "MARKED_TABLE",
    "Alloc",
    "Answer",
    "Bulk",
    "BulkAnswer",
    "Call",
    "Deferred",
    "Host",
    "LoadedPolicy",
    "Lock",
    "Mm",
    "Protected",
    "Record",
    "Result",
    "SecurePages",
    "SeriesTeardown",
    "Spawn",
    "TeardownPolicy",
    "Text",
    "Touch",
    "Vm",
    "Vma",
    "Wait",
    "deinit_deferred",
    "deinit_now",
    "destroy_below_limit",
    "destroy_configuration",
    "destroy_range",
    "destroy_thread",
    "drain_set_aside",
    "export_unmapped",
    "give_storage_back",
    "leak_table",
    "load_policy",
    "mmput",
    "pass_the_list_over",
    "set_aside",
    "start_thread",
]
