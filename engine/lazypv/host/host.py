"""The host: Linux with the series applied, on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from lazypv.errors import LifetimeError, UsageError
from lazypv.host.gmap import CRST_ALLOC_PAGES
from lazypv.host.kvm import Protected, StorageSizes
from lazypv.host.ledger import Ledger
from lazypv.host.policy import Guarded, Record, TeardownPolicy
from lazypv.host.secure_pages import SecurePages
from lazypv.host.set_aside import PV_MAX_LAZY_COUNT
from lazypv.host.teardown import SeriesTeardown
from lazypv.host.vm import Process, Vm
from lazypv.host.walk import LIVE_BATCH, Throttle
from lazypv.series import Series
from lazypv.sizes import parse_pages

if TYPE_CHECKING:
    from lazypv.hardware import Machine
    from lazypv.host.mm import Mm
    from lazypv.ultravisor import Answer

R = TypeVar("R", bound=Record)

SYNC_BELOW = "2GiB"
PRIVATE_SIZE = "32MiB"
SHARED_FILE_SIZE = "16MiB"
SPECIAL_SIZE = "64KiB"


def frames_for(guest_pages: int, vcpus: int, sizes: StorageSizes, node_capacity: int = PV_MAX_LAZY_COUNT) -> int:
    """Frames that a protected guest takes: its own, its process's, twice the donated storage, nodes, tables."""
    process = parse_pages(PRIVATE_SIZE) + parse_pages(SHARED_FILE_SIZE) + parse_pages(SPECIAL_SIZE)
    nodes = (guest_pages + process) // (node_capacity + 1) + 2
    return guest_pages + process + 2 * sizes.total(guest_pages, vcpus) + nodes + 4 * CRST_ALLOC_PAGES


class Host:
    """State of the host's kernel that outlives a VM.

    Parameters
    ----------
    lazy_destroy : bool
        The module parameter (patch 10).
    series : Series
        Which patches are in force.
    sync_below : int or str
        Guest memory below this is never destroyed lazily (patch 08); it also stands for the reach of a segment table.
    batch : int
        Pages that a walk gathers with one hold of the lock.
    node_capacity : int
        Frame numbers on one page of the set-aside list.
    nodes_at_once : int
        Nodes that are filled with one hold of the list.
    policy : TeardownPolicy
        How protected guests end; the series' way, unless said otherwise.

    Raises
    ------
    UsageError
        A batch of no pages, or `policy` is none.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        lazy_destroy: bool = True,
        series: Series | None = None,
        sync_below: int | str = SYNC_BELOW,
        batch: int = LIVE_BATCH,
        throttle: Throttle | None = None,
        node_capacity: int = PV_MAX_LAZY_COUNT,
        nodes_at_once: int = 1,
        storage_sizes: StorageSizes | None = None,
        policy: TeardownPolicy | None = None,
    ) -> None:
        if batch < 1:
            raise UsageError(f"a batch of {batch} pages is refused: it has to be 1 or more")
        self.machine = machine
        self.series = series or Series()
        self.lazy_destroy = lazy_destroy
        self.sync_below_pages = parse_pages(sync_below)
        self.batch = batch
        self.node_capacity = node_capacity
        self.nodes_at_once = nodes_at_once
        self.throttle = throttle or Throttle()
        self.storage_sizes = storage_sizes or StorageSizes()
        self.ledger = Ledger()
        self.pages = SecurePages(machine, self.series, self.ledger)
        self.teardown: TeardownPolicy = SeriesTeardown() if policy is None else Guarded(policy)
        self.processes: list[Process] = []
        self.threads = 0
        self.records: list[Record] = []
        self.configurations: dict[int, Mm] = {}
        self.leaked: dict[int, tuple[Mm, Protected, Answer]] = {}
        self.put_off_pages = 0

    @property
    def sync_only(self) -> bool:
        """``lazy_destroy=0``, and a kernel that has the parameter (patch 10)."""
        return self.series.lazy_destroy_parameter and not self.lazy_destroy

    def create_process(
        self,
        *,
        private: int | str = PRIVATE_SIZE,
        shared_file: int | str = SHARED_FILE_SIZE,
        special: int | str = SPECIAL_SIZE,
    ) -> Process:
        """A process with pages of its own: private, of a shared file, and special ones."""
        process = Process(self, parse_pages(private), parse_pages(shared_file), parse_pages(special))
        self.processes.append(process)
        return process

    def create_vm(self, process: Process, slots: list[range], vcpus: int) -> Vm:
        """A VM in `process` with guest memory at `slots` (ranges of guest pages, ascending)."""
        return Vm(self, process, slots, vcpus)

    # --- books of configurations ---------------------------------------------------------------------------------

    def created(self, vm: Vm, handle: int) -> None:
        """A configuration exists."""
        self.configurations[handle] = vm.mm

    def destroyed(self, handle: int) -> None:
        """A configuration is gone, and its storage back."""
        self.configurations.pop(handle, None)

    async def lost(self, mm: Mm, pv: Protected, answer: Answer) -> None:
        """A configuration could not be destroyed: its storage and its handle count as leaked (D22, invariant 34)."""
        self.leaked[pv.handle] = (mm, pv, answer)
        self.configurations.pop(pv.handle, None)
        self.ledger.leak("storage of a configuration that was not destroyed", pv.base)
        self.ledger.leak("storage of a configuration that was not destroyed", pv.variable)

    def recorded(self, record: R) -> R:
        """Memory for a record was had."""
        self.records.append(record)
        return record

    def discarded(self, record: Record) -> None:
        """It was given back (D27)."""
        if record not in self.records:
            raise LifetimeError(25, "a record was given back twice")
        self.records.remove(record)

    def put_off(self, pv: Protected) -> None:
        """A configuration was handed to a thread."""
        self.threads += 1
        self.put_off_pages += pv.base.size + pv.variable.size

    def taken_up(self, pv: Protected) -> None:
        """Its thread is through with it, or never came to be."""
        self.threads -= 1
        self.put_off_pages -= pv.base.size + pv.variable.size

    def reap(self) -> None:
        """Forget processes whose address space is gone."""
        self.processes = [process for process in self.processes if not process.mm.freed]
