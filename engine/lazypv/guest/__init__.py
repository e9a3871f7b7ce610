"""The guest side: what a guest does with its memory, through the same exceptions and handlers as a real one."""

from lazypv.guest.patterns import PATTERNS, Workload
from lazypv.guest.run import GuestRun

__all__ = ["PATTERNS", "GuestRun", "Workload"]
