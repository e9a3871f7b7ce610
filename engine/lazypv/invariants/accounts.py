"""The accounts of pages: what an old run owned at its last instruction, and how each page became clean.

Source: design, "Accounts must balance"; the model's own invariant 41.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Final

from lazypv.host.ledger import Ledger
from lazypv.invariants.violation import Violation
from lazypv.ultravisor import vault
from lazypv_kernels import scan

if TYPE_CHECKING:
    from lazypv.hardware import Machine
    from lazypv.host.host import Host

ACCOUNTS_INVARIANT: Final = 41
_BY_TEXT = ("destroyed_sync", "destroyed_background", "destroyed_on_fault")


@dataclass(frozen=True)
class LastInstruction:
    """A run at its last instruction: what the configuration owned, and what the books said."""

    handle: int
    owned: int
    exported: int
    books: dict[str, int]

    @classmethod
    def of(cls, host: Host, handle: int) -> LastInstruction:
        """Take it now; the guest's CPUs have stopped."""
        firmware = vault.firmware_of(host.machine.ultravisor)
        configuration = firmware.configurations[handle]
        return cls(handle, owned_pages(host.machine, handle), firmware.exported(configuration), dict(host.ledger.pages))

    def so_far(self, host: Host) -> OldRun:
        """How its pages became clean until now; no other configuration died meanwhile."""
        return OldRun.since(host, self)


@dataclass(frozen=True)
class OldRun:
    """How the pages of an old run became clean, once all of it is over.

    Attributes
    ----------
    set_aside : int
        Pages that passed through the list; each is counted under another account too.
    """

    owned: int
    destroyed_sync: int
    destroyed_background: int
    destroyed_on_fault: int
    exported: int
    set_aside: int
    cleaned_by_configuration: int
    leaked: int

    @classmethod
    def since(cls, host: Host, start: LastInstruction) -> OldRun:
        """Read the books again; no other configuration died meanwhile."""
        firmware = vault.firmware_of(host.machine.ultravisor)
        configuration = firmware.configurations.get(start.handle)
        if configuration is None:
            exported, cleaned = firmware.history[start.handle]
            leaked = 0
        else:
            exported, cleaned = firmware.exported(configuration), configuration.cleaned
            leaked = owned_pages(host.machine, start.handle)
        now: Ledger = host.ledger
        by_text = {name: now.pages[name] - start.books.get(name, 0) for name in (*_BY_TEXT, "set_aside")}
        return cls(
            owned=start.owned,
            exported=exported - start.exported,
            cleaned_by_configuration=cleaned,
            leaked=leaked,
            **by_text,
        )

    def check(self) -> list[Violation]:
        """Every page that was owned is in exactly one account."""
        sources = (
            self.destroyed_sync,
            self.destroyed_background,
            self.destroyed_on_fault,
            self.exported,
            self.cleaned_by_configuration,
            self.leaked,
        )
        if sum(sources) == self.owned:
            return []
        return [
            Violation(
                ACCOUNTS_INVARIANT,
                f"{self.owned} pages were owned at the last instruction, {sum(sources)} are accounted for: {self}",
            )
        ]


@dataclass(frozen=True)
class Balance:
    """Pages of all configurations of a machine, since it was made: those that came in, and where they are or went.

    Attributes
    ----------
    booked : int
        Destroyed pages by the host's own books.
    """

    came_in: int
    destroyed: int
    exported: int
    cleaned: int
    owned: int
    booked: int

    @classmethod
    def of(cls, host: Host) -> Balance:
        """As it is now; nothing may be running."""
        firmware, done = vault.firmware_of(host.machine.ultravisor), host.machine.ultravisor.done
        alive = list(firmware.configurations.values())
        return cls(
            came_in=done["CONV_TO_SEC_STOR"] + done["UNPACK_IMG"],
            destroyed=done["DESTR_SEC_STOR"],
            exported=sum(gone for gone, _ in firmware.history.values()) + sum(map(firmware.exported, alive)),
            cleaned=sum(gone for _, gone in firmware.history.values()) + sum(each.cleaned for each in alive),
            owned=sum(owned_pages(host.machine, each.handle) for each in alive),
            booked=sum(host.ledger.pages[name] for name in _BY_TEXT),
        )

    def check_since(self, start: Balance) -> list[Violation]:
        """No page came in or went since `start` that is not in one account, and the host's books know of each."""
        came_in, destroyed, exported, cleaned, owned, booked = (
            now - then for now, then in zip(astuple(self), astuple(start), strict=True)
        )
        found = []
        if came_in != destroyed + exported + cleaned + owned:
            text = (
                f"{came_in} pages came in, but {destroyed} were destroyed, {exported} exported, {cleaned} cleaned with"
            )
            text += f" their configuration, and {owned} more are owned"
            found.append(Violation(ACCOUNTS_INVARIANT, text))
        if destroyed != booked:
            text = f"{destroyed} pages were destroyed, but the host has booked {booked}"
            found.append(Violation(ACCOUNTS_INVARIANT, text))
        return found


def unbalanced(host: Host) -> tuple[int, int]:
    """What decides whether the accounts balance in the end, beside the state of frames and texts.

    Pages that came in and did not go, owned or lost; destroyed ones that are not booked, not yet or not at all.
    """
    now = host.machine.ultravisor.done
    firmware = vault.firmware_of(host.machine.ultravisor)
    gone = sum([exported + cleaned for exported, cleaned in firmware.history.values()])
    gone += sum([firmware.exported(each) + each.cleaned for each in firmware.configurations.values()])
    destroyed = now["DESTR_SEC_STOR"]
    here = now["CONV_TO_SEC_STOR"] + now["UNPACK_IMG"] - destroyed - gone
    return here, destroyed - sum([host.ledger.pages[name] for name in _BY_TEXT])


def owned_pages(machine: Machine, handle: int) -> int:
    """Guest pages that the configuration owns now; 0 if it is gone."""
    firmware = vault.firmware_of(machine.ultravisor)
    configuration = firmware.configurations.get(handle)
    if configuration is None:
        return 0
    pieces = machine.workers.run(
        machine.pages,
        lambda first, last: scan.count_owned(firmware.state, firmware.owner, configuration.slot, first, last),
        chunk=1 << 20,
    )
    return int(sum(pieces))


def owned_below(machine: Machine, handle: int, limit: int) -> int:
    """The same, guest pages below `limit` only (invariant 22)."""
    firmware = vault.firmware_of(machine.ultravisor)
    configuration = firmware.configurations.get(handle)
    if configuration is None:
        return 0
    return int(
        scan.count_owned_below(
            firmware.state, firmware.owner, firmware.guest_page, configuration.slot, limit, 0, machine.pages
        )
    )
