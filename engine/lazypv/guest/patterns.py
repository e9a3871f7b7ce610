"""Access patterns: which pages a guest touches, in which order, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pages = NDArray[np.int64]

GUEST_BATCH: Final = 1024
"""Accesses of one bulk step: what a guest does between two looks at the rest of the world."""
ZIPF_EXPONENT: Final = 1.2


@dataclass(frozen=True)
class Workload:
    """What a guest does once it runs.

    Parameters
    ----------
    pattern : str
        "sequential", "uniform", "zipf" or "boot" (the image first, then ever more memory).
    touches : int or None
        Page accesses in all; None for one for each page of the guest.
    writes : bool
        Whether accesses write; otherwise each reads all of its page.
    """

    pattern: str = "boot"
    touches: int | None = None
    writes: bool = True

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise UsageError(f"{self.pattern!r} is not a workload: choose one of {', '.join(PATTERNS)}")
        if self.touches is not None and self.touches < 0:
            raise UsageError(f"a workload of {self.touches} accesses is refused")

    def batches(self, usable: Pages, seed: int, image_pages: int) -> Iterator[Pages]:
        """Guest pages in batches.

        Parameters
        ----------
        usable : int64[n]
            Pages that the guest may touch, ascending.
        image_pages : int
            How many of them, from the first on, hold the boot image.
        """
        total = usable.size if self.touches is None else self.touches
        if usable.size:
            yield from PATTERNS[self.pattern](usable, total, np.random.default_rng(seed), image_pages)


def _sequential(usable: Pages, total: int, _random: np.random.Generator, _image: int) -> Iterator[Pages]:
    for at in range(0, total, GUEST_BATCH):
        yield usable[np.arange(at, min(at + GUEST_BATCH, total)) % usable.size]


def _uniform(usable: Pages, total: int, random: np.random.Generator, _image: int) -> Iterator[Pages]:
    for at in range(0, total, GUEST_BATCH):
        yield usable[random.integers(0, usable.size, min(GUEST_BATCH, total - at))]


def _zipf(usable: Pages, total: int, random: np.random.Generator, _image: int) -> Iterator[Pages]:
    """Few pages take most accesses; which ones are the favourites is drawn once."""
    favourites = random.permutation(usable)
    for at in range(0, total, GUEST_BATCH):
        rank = random.zipf(ZIPF_EXPONENT, min(GUEST_BATCH, total - at)) - 1
        yield favourites[rank % usable.size]


def _boot(usable: Pages, total: int, random: np.random.Generator, image: int) -> Iterator[Pages]:
    """A system that comes up: its image first, then each batch half new memory in order and half old at random."""
    grown = max(1, min(image, usable.size))
    for at in range(0, min(grown, total), GUEST_BATCH):
        yield usable[at : min(at + GUEST_BATCH, grown, total)]
    done = min(grown, total)
    while done < total:
        batch = min(GUEST_BATCH, total - done)
        fresh = min((batch + 1) // 2, usable.size - grown)
        old = usable[random.integers(0, grown, batch - fresh)]
        yield np.concatenate([usable[grown : grown + fresh], old])
        grown += fresh
        done += batch


PATTERNS: Final[dict[str, Callable[[Pages, int, np.random.Generator, int], Iterator[Pages]]]] = {
    "sequential": _sequential,
    "uniform": _uniform,
    "zipf": _zipf,
    "boot": _boot,
}
