"""Worlds are made by tests and ended for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .worlds import World


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """Make worlds, with what :class:`World` takes; their threads are joined at the end."""
    made: list[World] = []

    def make(*args: Any, **settings: Any) -> World:
        made.append(World(*args, **settings))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A host with the whole series."""
    return make_world()
