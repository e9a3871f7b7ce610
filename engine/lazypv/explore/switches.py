"""Which series is explored: a preset, less some patches, with some defects, or with somebody's own teardown policy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lazypv.errors import UsageError
from lazypv.policy import LoadedPolicy, load_policy
from lazypv.series import PRESETS, Series
from lazypv.ultravisor.interface import BIT_UVC_FEAT_MISC

if TYPE_CHECKING:
    from lazypv.explore.scenarios import Scenario
    from lazypv.explore.world import World


@dataclass(frozen=True)
class Switches:
    """A choice of switches as a person makes it.

    Attributes
    ----------
    policy : LoadedPolicy or None
        How guests end, if not in the series' way.
    misread : bool
        The host takes feature bit 0 for on although the Ultravisor has it off: patch 11 used wrongly.
    """

    preset: str = "repaired"
    without: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()
    policy: LoadedPolicy | None = None
    misread: bool = False

    def series(self) -> Series:
        """The series.

        Raises
        ------
        UsageError
            Unknown names, or a combination that cannot be.
        """
        if self.preset not in PRESETS:
            raise UsageError(f"{self.preset!r} is not a preset: choose one of {', '.join(PRESETS)}")
        series = PRESETS[self.preset].without(*self.without).with_defects(*self.defects)
        if self.misread and not series.feature_bits:
            raise UsageError("a feature bit is not misread without patch 11, which reads it")
        return series

    def build(self, of: Scenario, pages: int) -> World:
        """A world of that scenario under these switches, ready to be explored.

        Raises
        ------
        UsageError
            Unknown names, or a combination that cannot be.
        """
        world = of.build(self.series(), pages, self.policy)
        if self.misread:
            world.machine.ultravisor.feature_bits = frozenset({BIT_UVC_FEAT_MISC})
        return world

    def blamed(self) -> AbstractContextManager[None]:
        """Within this, whatever a policy of somebody's own breaks down with is reported as its error."""
        return nullcontext() if self.policy is None else self.policy.blamed()

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        policy = None if self.policy is None else {"name": self.policy.spelling, "source": self.policy.source}
        return {
            "preset": self.preset,
            "without": list(self.without),
            "defects": list(self.defects),
            "policy": policy,
            "misread": self.misread,
        }

    @classmethod
    def from_object(cls, found: dict[str, Any], policy: str | None = None) -> Switches:
        """From JSON; `policy` says where the policy is now, if not where it was.

        Raises
        ------
        UsageError
            The policy is not there, or its source is another one: then it is not run.
        """
        misread = found.get("misread", False)
        if not isinstance(misread, bool):
            raise ValueError(f"misread is {misread!r}, neither true nor false")
        chosen = cls(str(found["preset"]), tuple(found["without"]), tuple(found["defects"]), misread=misread)
        recorded = found.get("policy")
        if recorded is None:
            if policy is not None:
                raise UsageError(f"policy {policy}: the series' own way was explored, no other policy")
            return chosen
        return replace(chosen, policy=load_policy(policy or str(recorded["name"]), str(recorded["source"])))
