"""Firmware: secure configurations, CPUs, page states and ownership, integrity records.

It asks the host nothing but the address translation it is given, and gives nothing but answers. Its arrays, keys and
records live in :mod:`lazypv.ultravisor.vault`, out of reach of every object that the host holds; only
:mod:`lazypv.invariants` opens the vault.
"""

from lazypv.ultravisor.answers import Answer, BulkAnswer
from lazypv.ultravisor.calls import Ultravisor
from lazypv.ultravisor.header import ImageHeader

__all__ = ["Answer", "BulkAnswer", "ImageHeader", "Ultravisor"]
