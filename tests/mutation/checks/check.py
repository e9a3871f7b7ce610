"""A check, and what it says when it has found something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class NoticedError(Exception):
    """A check has found something."""


@dataclass(frozen=True)
class Check:
    """One thing to look at; `look` raises :class:`NoticedError`, or whatever a broken engine raises."""

    name: str
    look: Callable[[], None]
