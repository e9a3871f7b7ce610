"""The switchboard: the eleven patches of the series, and the defects of the series as posted that can be had back.

Each is a switch that is consulted where its behaviour lives. Patches are in force and defects repaired unless said
otherwise.

Source: semantics 4, 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from lazypv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Patch(NamedTuple):
    """One patch of the series: the switch it is, and where its behaviour lives."""

    number: str
    switch: str
    title: str
    place: str


class Defect(NamedTuple):
    """One defect of the series as posted: the switch it is, where it is made, and the patches that brought it."""

    number: str
    switch: str
    title: str
    place: str
    needs: tuple[str, ...]


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

_TEARDOWN: Final = "lazypv.host.teardown:"
DEFECTS: Final = (
    Defect("D1", "destroyed_twice", "destroyed twice for want of a return", _TEARDOWN + "deinit_deferred",
           ("08", "10")),
    Defect("D2", "mm_not_held", "the thread uses an address space that may be gone", _TEARDOWN + "deinit_deferred",
           ("08",)),
    Defect("D3", "mm_dropped_early", "the structure is dropped before the counter goes down",
           _TEARDOWN + "destroy_thread", ("08", "09")),
    Defect("D4", "references_forgotten", "references stay behind when handing over fails",
           _TEARDOWN + "deinit_deferred", ("08",)),
    Defect("D5", "old_table_forgotten", "the old table is lost when no thread can be had", _TEARDOWN + "_hand_over",
           ("08",)),
    Defect("D9", "stray_index", "the new top table has a stray index", "lazypv.host.gmap:Gmap.replace_asce",
           ("01", "08")),
    Defect("D10", "segment_table_replaced", "guests too small for a table of their own above the segments",
           "lazypv.host.gmap:Gmap.must_keep_table", ("01", "08")),
    Defect("D11", "untranslatable_retried", "an address that is gone is tried for ever",
           "lazypv.host.faults:guest_access", ("04",)),
    Defect("D12", "neighbour_taken", "a neighbour's mapping is taken for the right one",
           "lazypv.host.vm:Vm.has_mapping", ("03",)),
    Defect("D15", "sida_freed_again", "the instruction data area is freed twice", "lazypv.host.kvm:destroy_cpus", ()),
    Defect("D17", "last_user_guessed", "the cleaner turns out to be the last user",
           "lazypv.host.exit:knows_who_drains", ("08", "09")),
    Defect("D18", "list_forgotten", "the immediate path forgets the list", _TEARDOWN + "deinit_now", ("09",)),
    Defect("D19", "list_without_lock", "one list, two cleaners, no lock", "lazypv.host.exit:drain_set_aside",
           ("09",)),
    Defect("D20", "refused_page_freed", "a refused page is freed all the same",
           "lazypv.host.exit:export_refused", ("09",)),
    Defect("D22", "result_hidden", "nobody learns how the destruction ended", _TEARDOWN + "destroy_thread", ("08",)),
    Defect("D27", "record_leaked", "the record leaks when the thread fails", _TEARDOWN + "destroy_thread", ("08",)),
)  # fmt: skip

NOT_SWITCHED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "D6": "documented by the series and not repaired: the table is in the books of what is leaked",
        "D7": "the table's pointers change between two steps here, so their lock has no gap to leave open",
        "D8": "both masks have the same value, so nothing would change",
        "D11b": "no table that is walked before the lock is taken is freed while the guest exists here",
        "D13": "nothing that outlives a configuration lies in the structure that is zeroed",
        "D14": "a busy call is a step of its own here, and no step is spent in a loop",
        "D16": "part of the design and not repaired: the pages that are held back are a number in every report",
        "D21": "not repaired: the calls made in vain for pages that never were the guest's are counted",
        "D23": "part of the design and not repaired: the threads, and what they hold back, are numbers in every report",
        "D24": "a comment, no behaviour",
        "D25": "names and commit texts, no behaviour",
        "D26": "a name, no behaviour",
        "D28": "a defect of later versions, which have a cleanup that the series has not",
        "D29": "a defect of later versions: there is no fast destroy here",
        "D30": "a defect of later versions: there is no notifier here",
        "D31": "the page is looked up with its lock held here, as it was later in Linux",
    }
)
"""Known defects that are no switches, and why."""


@dataclass(frozen=True)
class Series:
    """Which patches are in force, and which defects are not repaired. All patches and no defect, unless said otherwise.

    Raises
    ------
    UsageError
        A defect without a patch that brought it.
    """

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

    destroyed_twice: bool = False
    mm_not_held: bool = False
    mm_dropped_early: bool = False
    references_forgotten: bool = False
    old_table_forgotten: bool = False
    stray_index: bool = False
    segment_table_replaced: bool = False
    untranslatable_retried: bool = False
    neighbour_taken: bool = False
    sida_freed_again: bool = False
    last_user_guessed: bool = False
    list_forgotten: bool = False
    list_without_lock: bool = False
    refused_page_freed: bool = False
    result_hidden: bool = False
    record_leaked: bool = False

    def __post_init__(self) -> None:
        for each in DEFECTS:
            missing = [number for number in each.needs if not getattr(self, patch(number).switch)]
            if getattr(self, each.switch) and missing:
                raise UsageError(
                    f"defect {each.number} ({each.title}) cannot be had without patch {' and '.join(missing)}, "
                    "which brought it"
                )

    @classmethod
    def repaired(cls) -> Series:
        """All patches, and no defect that has a switch."""
        return cls()

    @classmethod
    def posted(cls) -> Series:
        """Version 1 as it was mailed: all patches, and every defect that has a switch."""
        return cls().with_defects(*(each.number for each in DEFECTS))

    def without(self, *numbers: str) -> Series:
        """The series less some patches, named by their numbers.

        Raises
        ------
        UsageError
            No patch has that number, or a defect of it is switched on.
        """
        return replace(self, **{patch(number).switch: False for number in numbers})

    def with_defects(self, *numbers: str) -> Series:
        """The series with some defects as they were posted, named by their numbers.

        Raises
        ------
        UsageError
            No switch has that number, or a patch that the defect belongs to is missing.
        """
        return replace(self, **{defect(number).switch: True for number in numbers})


def patch(number: str) -> Patch:
    """The patch of that number, such as ``"07"``."""
    for candidate in PATCHES:
        if candidate.number == number:
            return candidate
    raise UsageError(f"{number!r} is not a patch of the series: they are numbered 01 to {PATCHES[-1].number}")


def defect(number: str) -> Defect:
    """The defect of that number, such as ``"D17"``.

    Raises
    ------
    UsageError
        It is no switch, and why; or no defect has that number.
    """
    for candidate in DEFECTS:
        if candidate.number == number:
            return candidate
    if number in NOT_SWITCHED:
        raise UsageError(f"defect {number} cannot be switched: {NOT_SWITCHED[number]}")
    valid = ", ".join(candidate.number for candidate in DEFECTS)
    raise UsageError(f"{number!r} is not a defect of the series: those that can be switched are {valid}")


PRESETS: Final[Mapping[str, Series]] = MappingProxyType({"repaired": Series.repaired(), "posted": Series.posted()})
