"""The check: whether some order of overlapping operations makes the model answer what the trace says.

Where operations do not overlap there is one order, that of the lines. Where they do, orders are tried depth first, the
one in which each takes effect as late as it can first; a state that was met at the same line is not gone on from
again, and at most `MOST_ORDERS` are tried.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lazypv.explore.scenarios import scenario
from lazypv.trace.replay import Refused, Replay

if TYPE_CHECKING:
    from lazypv.explore.world import World
    from lazypv.trace.file import TraceFile

SCHEMA: Final = "lazypv.check/1"
MOST_ORDERS: Final = 500
HEADER_LINES: Final = 1


class Decision(NamedTuple):
    """What comes next: the next line, or an effect of an actor's operation, or the first part of one."""

    actor: int | None = None
    part: bool = False


Decisions = tuple[Decision, ...]
_LINE: Final = Decision()


@dataclass(frozen=True)
class Refusal:
    """The first line that the model does not allow.

    Attributes
    ----------
    line : int
        Its number in the file.
    says : dict or None
        What it says; None behind the last line.
    allowed : list of (actor, step)
        What could have been there, in the order of the lines that came furthest.
    """

    line: int
    says: dict[str, Any] | None
    why: str
    allowed: list[tuple[str, str]]


@dataclass
class Checked:
    """What a check has found.

    Attributes
    ----------
    orders : int
        Orders of overlapping operations that were tried.
    all_tried : bool
        False when some were left out because there are too many.
    digest : int
        The final state, the same within this process; 0 when the trace is refused.
    """

    lines: int
    actors: int
    orders: int = 0
    all_tried: bool = True
    digest: int = 0
    refusal: Refusal | None = None

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        refusal = self.refusal
        return {
            "schema": SCHEMA,
            "allowed": refusal is None,
            "lines": self.lines,
            "actors": self.actors,
            "orders": self.orders,
            "all_orders_tried": self.all_tried,
            "refusal": None
            if refusal is None
            else {
                "line": refusal.line,
                "says": refusal.says,
                "why": refusal.why,
                "allowed": [{"actor": actor, "step": step} for actor, step in refusal.allowed],
            },
        }

    def as_text(self) -> str:
        """For people."""
        if self.refusal is None:
            return f"The model allows it: {self.lines} lines of {self.actors} actors."
        refusal = self.refusal
        said = [f"  {name}: {value}" for name, value in (refusal.says or {}).items()]
        could = [f"  {actor}: {step}" for actor, step in refusal.allowed] or ["  nobody can go on"]
        lines = [f"The model does not allow line {refusal.line}: {refusal.why}."]
        lines += ["The trace says", *said] if said else []
        lines += ["The model has", *could]
        if not self.all_tried:
            lines.append(f"{self.orders} orders of overlapping operations were tried, and there are more.")
        return "\n".join(lines)


@dataclass
class _Search:
    todo: list[Decisions] = field(default_factory=lambda: [()])
    met: set[tuple[Any, ...]] = field(default_factory=set)
    furthest: Refusal | None = None

    def is_new(self, replay: Replay) -> bool:
        """Whether nobody has been at this line in this state, with as much of each operation done and answered."""
        key = (replay.at, replay.progress(), replay.digest())
        if key in self.met:
            return False
        self.met.add(key)
        return True

    def refused(self, replay: Replay, refused: Refused) -> None:
        """Keep the refusal that came furthest."""
        line = refused.at + HEADER_LINES + 1
        if self.furthest is None or line > self.furthest.line:
            says = replay.lines[refused.at] if refused.at < len(replay.lines) else None
            self.furthest = Refusal(line, says, refused.why, replay.allowed())


def check(trace: TraceFile, world: World | None = None) -> Checked:
    """Whether the model allows a trace.

    Parameters
    ----------
    world : World, optional
        The setting's world, when several traces are checked; it is put back first.
    """
    world = trace.setting.build() if world is None else world
    checked = Checked(len(trace.lines), len({line["actor"] for line in trace.lines}))
    search = _Search()
    while search.todo:
        if checked.orders == MOST_ORDERS:
            checked.all_tried = False
            break
        checked.orders += 1
        if _is_allowed(trace, world, search, checked):
            return checked
    checked.refusal = search.furthest
    return checked


def _is_allowed(trace: TraceFile, world: World, search: _Search, checked: Checked) -> bool:
    """Try the next order; whether it leads to the end. Orders that branch off are put on the list."""
    prefix = search.todo.pop()
    replay = Replay(world, scenario(trace.setting.scenario).scene, trace.lines)
    taken: list[Decision] = []
    try:
        while replay.at < len(replay.lines):
            decision = _decide(replay, search, prefix, taken)
            if decision is None:
                return False
            _do(replay, decision)
        replay.finish()
        checked.digest = world.digest([])
    except Refused as refused:
        search.refused(replay, refused)
        return False
    finally:
        replay.close()
    return True


def _do(replay: Replay, decision: Decision) -> None:
    if decision.actor is None:
        replay.follow()
    elif decision.part:
        replay.prepare(decision.actor)
    else:
        replay.effect(decision.actor)


def _decide(replay: Replay, search: _Search, prefix: Decisions, taken: list[Decision]) -> Decision | None:
    """What comes next; None when somebody was here before."""
    effects = replay.pending_effects()
    options = [*([_LINE] if replay.may_go_on() else []), *map(Decision, effects)]
    if len(options) == 1 and len(replay.open) < 2:
        return options[0]
    options += [Decision(actor, part=True) for actor in effects if replay.can_prepare(actor)]
    at = len(taken)
    if at < len(prefix):
        decision = prefix[at]
    else:
        if not search.is_new(replay):
            return None
        decision = options[0]
        search.todo += [(*taken, other) for other in reversed(options[1:])]
    taken.append(decision)
    return decision
