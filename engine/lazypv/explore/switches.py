"""Which series is explored: a preset, less some patches, with some defects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lazypv.errors import UsageError
from lazypv.series import PRESETS, Series


@dataclass(frozen=True)
class Switches:
    """A choice of switches as a person makes it."""

    preset: str = "repaired"
    without: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()

    def series(self) -> Series:
        """The series.

        Raises
        ------
        UsageError
            Unknown names, or a combination that cannot be.
        """
        if self.preset not in PRESETS:
            raise UsageError(f"{self.preset!r} is not a preset: choose one of {', '.join(PRESETS)}")
        return PRESETS[self.preset].without(*self.without).with_defects(*self.defects)

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {"preset": self.preset, "without": list(self.without), "defects": list(self.defects)}

    @classmethod
    def from_object(cls, found: dict[str, Any]) -> Switches:
        """From JSON."""
        return cls(str(found["preset"]), tuple(found["without"]), tuple(found["defects"]))
