"""The Ultravisor as host and guest see it: all calls, nothing else."""

from lazypv.ultravisor.lifecycle import LifecycleCalls
from lazypv.ultravisor.pages import PageCalls
from lazypv.ultravisor.snapshots import SnapshotCalls


class Ultravisor(LifecycleCalls, PageCalls, SnapshotCalls):
    """Everything that host and guest can ask of the firmware; codes are the interface's (:mod:`.interface`)."""
