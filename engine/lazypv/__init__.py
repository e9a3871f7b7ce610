"""An executable model of IBM Z protected guests on Linux/KVM and of the lazy destruction of their memory.

The names below are loaded when they are first used, so that ``lazypv --help`` costs no more than Python itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lazypv._version import __version__

if TYPE_CHECKING:
    from lazypv.errors import LazyPVError, ProgramInterruption
    from lazypv.guest import Workload
    from lazypv.hardware import Machine
    from lazypv.image import GuestImage, open_image
    from lazypv.scenario import VM, Host, Report
    from lazypv.series import Series

_HOME = {
    "GuestImage": "lazypv.image",
    "Host": "lazypv.scenario",
    "LazyPVError": "lazypv.errors",
    "Machine": "lazypv.hardware",
    "ProgramInterruption": "lazypv.errors",
    "Report": "lazypv.scenario",
    "Series": "lazypv.series",
    "VM": "lazypv.scenario",
    "Workload": "lazypv.guest",
    "open_image": "lazypv.image",
}

__all__ = [
    "VM",
    "GuestImage",
    "Host",
    "LazyPVError",
    "Machine",
    "ProgramInterruption",
    "Report",
    "Series",
    "Workload",
    "__version__",
    "open_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
