"""The switchboard: the eleven patches of the series, each a switch that is consulted where its behaviour lives.

Source: semantics 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from lazypv.errors import UsageError


class Patch(NamedTuple):
    """One patch of the series: the switch it is, and where its behaviour lives."""

    number: str
    switch: str
    title: str
    place: str


PATCHES: Final = (
    Patch("01", "leak_asce", "leak the ASCE page when destroy fails", "lazypv.host.gmap:Gmap.replace_asce"),
    Patch("02", "clear_marks", "page flags", "lazypv.host.secure_pages:SecurePages"),
    Patch("03", "handle_violations", "storage violations of protected guests", "lazypv.host.faults:violation"),
    Patch("04", "handle_guest_access", "storage exceptions of normal guests", "lazypv.host.faults:guest_access"),
    Patch("05", "batched_walk", "the refactored reset walk", "lazypv.host.walk:destroy_range"),
    Patch("06", "count_configurations", "a counter instead of a flag", "lazypv.host.mm:ProtectedCounter"),
    Patch("07", "export_before_import", "export before import", "lazypv.host.secure_pages:SecurePages.make_secure"),
    Patch("08", "lazy_reboot", "lazy destroy for reboot", "lazypv.host.teardown:deinit_deferred"),
    Patch("09", "lazy_shutdown", "lazy destroy for shutdown", "lazypv.host.set_aside:SetAsideList"),
    Patch("10", "lazy_destroy_parameter", "a parameter to fence it off", "lazypv.host.teardown:deinit_deferred"),
    Patch("11", "feature_bits", "Ultravisor feature bits", "lazypv.host.secure_pages:SecurePages.must_export_first"),
)


@dataclass(frozen=True)
class Series:
    """Which patches are in force. All of them, unless said otherwise."""

    leak_asce: bool = True
    clear_marks: bool = True
    handle_violations: bool = True
    handle_guest_access: bool = True
    batched_walk: bool = True
    count_configurations: bool = True
    export_before_import: bool = True
    lazy_reboot: bool = True
    lazy_shutdown: bool = True
    lazy_destroy_parameter: bool = True
    feature_bits: bool = True

    def without(self, *numbers: str) -> Series:
        """The series less some patches, named by their numbers.

        Raises
        ------
        UsageError
            No patch has that number.
        """
        return replace(self, **{patch(number).switch: False for number in numbers})


def patch(number: str) -> Patch:
    """The patch of that number, such as ``"07"``."""
    for candidate in PATCHES:
        if candidate.number == number:
            return candidate
    raise UsageError(f"{number!r} is not a patch of the series: they are numbered 01 to {PATCHES[-1].number}")
