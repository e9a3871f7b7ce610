"""The entries, and how a reader's way to name one leads to it."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from lazypv.errors import UsageError

_SPELLINGS: Final = (
    (re.compile(r"(?:patch )?0*(\d+)"), "{:0>2}"),
    (re.compile(r"(?:defect )?d0*(\d+b?)"), "D{}"),
    (re.compile(r"(?:exception )?(?:0x)?(3[c-f])"), "0x{}"),
    (re.compile(r"(?:invariant|i) ?0*(\d+)"), "invariant {}"),
)
"""What a reader may write, in lower case, and the id that it stands for."""
_TOPICS: Final = "01 to 11, D1 to D31, 0x3c to 0x3f, 'invariant 1' to 'invariant 42'"


@dataclass(frozen=True)
class Entry:
    """One explanation.

    Attributes
    ----------
    id : str
        ``"07"``, ``"D17"``, ``"0x3f"`` or ``"invariant 22"``.
    text : str
        One paragraph, without line breaks.
    place : str
        ``module.path:Qualname`` of where it lives; empty for what the model does not have.
    see : tuple of str
        Ids of related entries.
    """

    id: str
    title: str
    text: str
    place: str
    see: tuple[str, ...]

    @property
    def kind(self) -> str:
        """``"patch"``, ``"defect"``, ``"exception"`` or ``"invariant"``."""
        if self.id.startswith("invariant "):
            return "invariant"
        if self.id.startswith("0x"):
            return "exception"
        return "defect" if self.id.startswith("D") else "patch"

    @property
    def name(self) -> str:
        """The id with its kind in front: ``"patch 07"``."""
        return self.id if self.kind == "invariant" else f"{self.kind} {self.id}"


@cache
def entries() -> tuple[Entry, ...]:
    """All entries: patches, defects, exceptions, invariants, each kind in its order."""
    text = resources.files("lazypv.explain").joinpath("entries.toml").read_text(encoding="utf-8")
    return tuple(
        Entry(row["id"], row["title"], " ".join(row["text"].split()), row["place"], tuple(row["see"]))
        for row in tomllib.loads(text)["entry"]
    )


def lookup(topic: str) -> Entry:
    """The entry that `topic` names, such as ``07``, ``patch 7``, ``D17``, ``0x3f``, ``invariant 22``, ``i22``.

    Upper and lower case are the same.

    Raises
    ------
    UsageError
        Nothing has that name; the message says what comes nearest.
    """
    plain = " ".join(topic.lower().split())
    by_id = {entry.id: entry for entry in entries()}
    for spelling, pattern in _SPELLINGS:
        found = spelling.fullmatch(plain)
        if found and (entry := by_id.get(pattern.format(found[1]))):
            return entry
    raise UsageError(f"{topic!r} is not explained: {_nearest(plain, list(by_id))}topics are {_TOPICS}")


def _nearest(plain: str, ids: list[str]) -> str:
    """The ids with the same number; without any, those that are spelt most alike."""
    number = _number(plain)
    chosen = [each for each in ids if number and _number(each) == number]
    if not chosen:
        alike = difflib.get_close_matches(plain, [each.lower() for each in ids])
        chosen = [each for each in ids if each.lower() in alike]
    if not chosen:
        return ""
    *others, last = (repr(each) if " " in each else each for each in chosen)
    return f"nearest are {', '.join(others)} and {last}; " if others else f"nearest is {last}; "


def _number(text: str) -> str:
    """The decimal number in `text` without leading zeroes; empty if there is none."""
    found = None if "0x" in text else re.search(r"[1-9]\d*", text)
    return found[0] if found else ""
