"""Reasons why mutants survive: written down once, and out of date as soon as they do not."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path

from .mutants import Key

FILE = Path(__file__).with_name("survivors.toml")


class StaleReasonError(Exception):
    """A reason for the survival of a mutant that there is not, or that did not survive."""


class Reasons:
    """What `survivors.toml` says."""

    def __init__(self, path: Path = FILE) -> None:
        self._of: dict[Key, str] = {}
        for row in tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", []):
            reason = " ".join(str(row.pop("reason")).split())
            key = Key(**{"function": "", "occurrence": 0, **row})
            if key in self._of or not reason:
                raise StaleReasonError(f"{key}: there are two reasons, or an empty one")
            self._of[key] = reason

    def of(self, key: Key) -> str:
        """The reason, or nothing."""
        return self._of.get(key, "")

    def require_in(self, keys: Collection[Key]) -> None:
        """Raise unless every reason is about one of `keys`.

        Raises
        ------
        StaleReasonError
            It is not.
        """
        for key in self._of:
            if key not in keys:
                raise StaleReasonError(f"{key}: a reason why it survives, but there is no such mutant")

    def require_none_of(self, killed: Collection[Key]) -> None:
        """Raise if a reason is about one of `killed`.

        Raises
        ------
        StaleReasonError
            It is.
        """
        for key in self._of:
            if key in killed:
                raise StaleReasonError(f"{key}: a reason why it survives, but it was noticed")
