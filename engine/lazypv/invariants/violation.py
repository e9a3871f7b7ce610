"""A broken invariant."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """Number as in semantics 9 (41: the accounts balance), and what was seen."""

    number: int
    text: str
