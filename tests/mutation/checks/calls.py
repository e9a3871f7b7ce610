"""Ultravisor calls, drawn at random and compared with the dictionary model of tests/ultravisor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests.ultravisor.test_model import run

from .check import Check, NoticedError

SEQUENCES = 12
"""Random sequences of calls, for a machine without and with feature bit 0 each."""


def checks() -> Iterator[Check]:
    """Sequences of a few hundred calls."""
    for features in ((), (0,)):
        name = f"random calls, feature bits {list(features)}"
        yield Check(name, partial(_random_calls, features))


def _random_calls(features: tuple[int, ...]) -> None:
    for seed in range(SEQUENCES):
        try:
            run(features, seed)
        except AssertionError as error:
            raise NoticedError(f"not what the dictionary model says: {error}") from error
