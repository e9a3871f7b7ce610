"""What came of a draw: per module, in all, and every survivor with its reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from .mutants import Mutant
from .survivors import Reasons
from .trial import Verdict

LEAST_KILLED = 0.9
OUTCOMES = ("violation", "exception", "crash", "timeout", "survived")


@dataclass(frozen=True)
class Tried:
    """One mutant and what became of it."""

    mutant: Mutant
    change: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Report:
    """All that was tried.

    Attributes
    ----------
    mutants, places : int
        How many there can be, and at how many places, before anything was drawn.
    budget : int
        Seconds of a core for the checks of one mutant.
    """

    seed: int
    budget: int
    mutants: int
    places: int
    tried: list[Tried]

    @property
    def killed(self) -> int:
        """How many were noticed."""
        return sum(each.verdict.killed for each in self.tried)

    @property
    def is_good(self) -> bool:
        """Nine in ten were noticed."""
        return self.killed >= LEAST_KILLED * len(self.tried)

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": "lazypv.mutation/1",
            "seed": self.seed,
            "budget_seconds": self.budget,
            "mutants": self.mutants,
            "places": self.places,
            "count": len(self.tried),
            "killed": self.killed,
            "modules": {module: dict(counts) for module, counts in self._modules().items()},
            "tried": [
                {**vars(each.mutant.key), "lineno": each.mutant.lineno, "change": each.change, **asdict(each.verdict),
                 "reason": each.reason}
                for each in self.tried
            ],
        }  # fmt: skip

    def as_text(self) -> str:
        """For people."""
        lines = [f"{'module':<28}{'drawn':>6}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES)]
        for module, counts in [*self._modules().items(), ("all", self._counts(self.tried))]:
            drawn = sum(counts.values())
            lines.append(f"{module:<28}{drawn:>6}" + "".join(f"{counts[outcome]:>11}" for outcome in OUTCOMES))
        for each in self.tried:
            if not each.verdict.killed:
                key = each.mutant.key
                lines += ["", f"{key.module}:{each.mutant.lineno} survives: {key.operator}", f"  - {key.line}"]
                lines += [f"  + {each.change}", f"  {each.reason or 'No reason is known: a check is missing.'}"]
        percent = 100 * self.killed / max(1, len(self.tried))
        checks = Counter(_kind(each.verdict.check) for each in self.tried if each.verdict.killed)
        lines += ["", "Noticed by " + ", ".join(f"{kind} {count}" for kind, count in checks.most_common())]
        lines += [
            f"{self.killed} of {len(self.tried)} mutants killed, {percent:.1f} %; drawn by seed {self.seed} from"
            f" {self.mutants} mutants at {self.places} places; {self.budget} seconds of a core for each."
        ]
        return "\n".join(lines)

    def _modules(self) -> dict[str, Counter[str]]:
        modules = sorted({each.mutant.key.module for each in self.tried})
        return {
            module: self._counts([each for each in self.tried if each.mutant.key.module == module])
            for module in modules
        }

    @staticmethod
    def _counts(tried: list[Tried]) -> Counter[str]:
        return Counter(each.verdict.outcome for each in tried)


def tried(mutant: Mutant, change: str, verdict: Verdict, reasons: Reasons) -> Tried:
    """A mutant with its verdict; the reason only if it survived."""
    return Tried(mutant, change, verdict, "" if verdict.killed else reasons.of(mutant.key))


def _kind(check: str) -> str:
    return check.split(" ")[0]
