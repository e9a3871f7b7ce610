"""Records of host and Ultravisor: each is told from every other, and says what it holds as soon as it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from tests.host.stepping import Stepper

import lazypv.host
import lazypv.ultravisor
from lazypv.explore.scenarios import SCENARIOS
from lazypv.host import kvm
from lazypv.host.loose_ends import loose_ends
from lazypv.series import Series
from lazypv.steps import Spawn

from .check import Check, NoticedError


def checks() -> Iterator[Check]:
    """All kinds, and the record of a deferred destroy."""
    yield Check("records are told apart", _told_apart)
    for series in (Series(), Series().without("09"), Series().without("09").with_defects("D2")):
        yield Check("a record says what it holds", partial(_holds, series))


def _told_apart() -> None:
    """What changes is one thing of many: two CPUs, tables or configurations that look alike are two all the same."""
    kinds = [kind for kind in _kinds() if not kind.__dataclass_params__.frozen]
    for kind in kinds:
        one, other = (object.__new__(kind) for _ in range(2))
        for field in fields(kind):
            setattr(one, field.name, None)
            setattr(other, field.name, None)
        if one == other or len({one, other}) != 2:
            raise NoticedError(f"two records are taken for one: {kind.__name__}")
    if not kinds:
        raise NoticedError("no kinds of records were found")


def _kinds() -> Iterator[Any]:
    for room in (lazypv.host, lazypv.ultravisor):
        for module in iter_modules(room.__path__, f"{room.__name__}."):
            for thing in vars(import_module(module.name)).values():
                if isinstance(thing, type) and is_dataclass(thing) and thing.__module__ == module.name:
                    yield thing


def _holds(series: Series) -> None:
    """References of an address space add up at each step of a reset, up to where its thread begins (invariant 25)."""
    world = SCENARIOS["reboot-into-normal"].build(series, 4)
    world.restore()
    stepper = Stepper()
    reset = stepper.start(kvm.disable(world.vms[0]))
    broken: list[str] = []
    while not isinstance(reset.pending, Spawn):
        reset.step()
        broken += [f"before {reset.pending!r}: {text}" for number, text in loose_ends(world.host) if number == 25]
    reset.finish()
    for thread in stepper.threads:
        thread.finish()
    if broken:
        raise NoticedError(f"invariant 25, {broken[0]}")
