"""Pages taken out of a dying address space, to be cleaned when their configuration has lost its CPUs (patch 09).

A node is one page of the host: a list head, a count, and room for 509 frame numbers. Each frame on it has one reference
that the list owns. Source: semantics 4.9; invariants 26, 27.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.steps import Lock, Touch
from lazypv_kernels.layout import FRAME_DTYPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.machine import HostFrames
    from lazypv.steps import Holding

PV_MAX_LAZY_COUNT: Final = 509
"""Frame numbers that fit into a page behind 24 bytes of list head and count."""


class Node:
    """One page of the list.

    Attributes
    ----------
    page : int64[1]
        The frame that the node itself is.
    """

    __slots__ = ("_frames", "count", "page")

    def __init__(self, page: NDArray[np.int64], capacity: int) -> None:
        self.page = page
        self.count = 0
        self._frames = np.zeros(capacity, FRAME_DTYPE)

    @property
    def frames(self) -> NDArray[np.int64]:
        """Frames on this node: int64[count]."""
        return self._frames[: self.count]

    @property
    def room(self) -> int:
        """How many more it can take."""
        return self._frames.size - self.count

    def append(self, frames: NDArray[np.int64]) -> None:
        """Write `frames` down, in order."""
        self._frames[self.count : self.count + frames.size] = frames
        self.count += frames.size


class _Unlocked:
    """The list as posted: whoever comes takes it (D19)."""

    def __init__(self, aside: SetAsideList) -> None:
        self._aside = aside

    def __aenter__(self) -> Touch:
        return Touch(self._aside, "deferred_list", write=True)

    async def __aexit__(self, *_raised: object) -> None:
        pass


class SetAsideList:
    """The list of one address space; `lock` protects it, for several cleaners may work it off (D19).

    Attributes
    ----------
    has_lock : bool
        False as posted.
    """

    def __init__(self, frames: HostFrames, node_capacity: int, has_lock: bool) -> None:
        self.lock = Lock("deferred_list")
        self.has_lock = has_lock
        self.nodes: deque[Node] = deque()
        self.node_capacity = node_capacity
        self._frames = frames

    def held(self) -> Holding | _Unlocked:
        """Hold the list alone, if it has a lock, or use it all the same: ``async with aside.held():``."""
        return self.lock.exclusive() if self.has_lock else _Unlocked(self)

    @property
    def room(self) -> int:
        """How many pages the first node can still take."""
        return self.nodes[0].room if self.nodes else 0

    @property
    def pages(self) -> int:
        """Pages on the list."""
        return sum(node.count for node in self.nodes)

    def new_node(self) -> Node | None:
        """A node in a page of its own, or None when no page is free. It is on no list yet."""
        page = self._frames.allocate(1)
        return None if page is None else Node(page, self.node_capacity)

    def new_nodes(self, count: int) -> list[Node] | None:
        """As many nodes as that, or None."""
        pages = self._frames.allocate(count)
        return None if pages is None else [Node(pages[at : at + 1], self.node_capacity) for at in range(count)]

    def free_node(self, node: Node) -> None:
        """Give the node's own page back."""
        self._frames.put(node.page)
