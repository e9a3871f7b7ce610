"""A guest made up from a seed, for those who have no dump at hand: its pages are distributed like a real guest's.

The model is a 256 MiB Linux guest, 3 s after boot: 71.35 % zero pages, 215 runs of other pages (median 3, some above
1000), 1.6 % of these all 0xff, 29 % of them sharing their content with another, 3.78 bits of entropy a byte.

Every byte is a hash of a counter in 64-bit integer arithmetic, so that a seed means the same bytes on every platform
and with every NumPy, whose own generators keep their bit streams but not what is drawn from them.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lazypv.errors import SizeError
from lazypv.image.guest_image import MAX_SIZE, GuestImage
from lazypv.sizes import PAGE_SIZE

DEFAULT_SIZE = 256 << 20


class _Kind(NamedTuple):
    """A sort of non-zero page: `zeros` of 256 bytes are 0, the others are drawn from `symbols`."""

    share: int
    zeros: int
    symbols: bytes


_ONES = _Kind(4, 0, b"\xff")
_RANDOM = _Kind(6, 0, b"")  # every byte anew, 7.95 bits
_KINDS = (  # shares of 256, from the real guest's histogram of entropy
    _ONES,
    _Kind(16, 238, bytes(range(1, 17))),  # nearly empty: 0.6 bits a byte
    _Kind(38, 210, bytes(range(1, 33))),  # tables: 1.6
    _Kind(54, 182, bytes(range(1, 65))),  # records with pointers: 2.6
    _Kind(10, 128, bytes(range(1, 33))),  # 3.5
    _Kind(48, 0, b" etaoinshrdlcumwfgypbvk,\n"),  # text: 4.6
    _Kind(60, 51, bytes(range(1, 65))),  # program code: 5.5
    _Kind(20, 13, bytes(range(1, 129))),  # packed data: 6.9
    _RANDOM,
)
_ZERO_PAGES = 7135  # of 10000
_PAGES_A_RUN = 305  # a run of data and the run of zero pages behind it
_DATA_RUNS = (1, 1, 1, 1, 2, 2, 2, 3, 4, 6, 10, 20, 40, 80, 210, 1024)
_ZERO_RUNS = (1, 1, 2, 3, 4, 8, 12, 24, 40, 64, 100, 160, 300, 500, 785, 1500)
_BLOCK = 8  # neighbouring data pages of one kind; also what is copied
_COPIES = (True,) * 11 + (False,) * 39
_BLOCKS_AN_ORIGINAL = 20  # only the first of so many blocks are ever copied, each several times

_WORD = 8
_WORDS = PAGE_SIZE // _WORD
_DICTIONARY = 256  # words that a kind's pages are put together from: one random byte, eight bytes of page


def synthetic(seed: int = 0, size: int = DEFAULT_SIZE) -> GuestImage:
    """A guest of `size` bytes, all of whose pages, zero pages too, are stored.

    Parameters
    ----------
    seed : int
        Another seed gives other bytes with the same statistics.
    size : int
        Bytes, whole pages.

    Raises
    ------
    SizeError
        `size` is not in whole pages, zero, or beyond what an image can hold.
    """
    if size % PAGE_SIZE or not 0 < size <= MAX_SIZE:
        raise SizeError(f"a synthetic guest of {size} bytes: must be a multiple of {PAGE_SIZE}, at most {MAX_SIZE}")
    count = size // PAGE_SIZE
    pages = np.zeros((count, PAGE_SIZE), dtype=np.uint8)
    data = _data_pages(seed, count)
    kind, content = _contents(seed, data.size)
    for number in range(len(_KINDS)):
        chosen = kind == number
        pages[data[chosen]] = _page_bytes(seed, number, content[chosen])
    pages.flags.writeable = False
    return GuestImage("synthetic", pages, np.arange(count, dtype=np.uint32), size)


def _data_pages(seed: int, count: int) -> NDArray[np.int64]:
    """int64[k]: which of `count` pages are not zero."""
    zero = count * _ZERO_PAGES // 10000
    runs = max(1, count // _PAGES_A_RUN)
    data_runs = _stretch(_deal(seed, "data runs", _DATA_RUNS, runs), count - zero)
    zero_runs = _stretch(_deal(seed, "zero runs", _ZERO_RUNS, runs), zero)
    lengths = np.stack([data_runs, zero_runs], axis=1).reshape(-1)
    return np.flatnonzero(np.repeat(np.tile([True, False], runs), lengths)).astype(np.int64)


def _stretch(lengths: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Lengths in the same proportions with exactly this sum."""
    ends = np.cumsum(lengths)
    stretched: NDArray[np.int64] = np.diff(ends * total // ends[-1], prepend=0)
    return stretched


def _contents(seed: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Kind (int64) and content number (uint64) of `count` data pages; the same number means the same bytes."""
    blocks = -(-count // _BLOCK)
    kinds = _deal(seed, "kinds", np.repeat(np.arange(len(_KINDS)), [kind.share for kind in _KINDS]), blocks)
    originals = max(1, blocks // _BLOCKS_AN_ORIGINAL)
    copy = _deal(seed, "copies", _COPIES, blocks).astype(np.bool_)
    copy[:originals] = False
    original = (_hash(seed, "originals", np.arange(blocks)) % np.uint64(originals)).astype(np.int64)
    block = np.where(copy, original, np.arange(blocks))
    at = np.arange(count)
    content = block[at // _BLOCK] * _BLOCK + at % _BLOCK
    return kinds[block][at // _BLOCK], content.astype(np.uint64)


def _page_bytes(seed: int, number: int, content: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """uint8[k, PAGE_SIZE]: pages of one kind with these content numbers."""
    kind = _KINDS[number]
    if kind is _ONES:
        return np.full((content.size, PAGE_SIZE), 0xFF, dtype=np.uint8)
    if kind is _RANDOM:
        return _random_bytes(seed, "random", content, PAGE_SIZE)
    symbol = np.array([0] * kind.zeros + _fill(kind.symbols, 256 - kind.zeros), dtype=np.uint8)
    dictionary = symbol[_random_bytes(seed, f"dictionary {number}", np.arange(_DICTIONARY), _WORD)]
    words = _random_bytes(seed, f"words {number}", content, _WORDS)
    # as whole words: one lookup for eight bytes
    return dictionary.view(np.uint64)[:, 0][words].view(np.uint8)


def _fill(symbols: bytes, count: int) -> list[int]:
    """`count` values that take the symbols in turn."""
    return [symbols[i % len(symbols)] for i in range(count)]


def _deal(seed: int, what: str, deck: ArrayLike, count: int) -> NDArray[np.int64]:
    """int64[count]: cards at even distances in the deck, shuffled: the deck's shares at any count."""
    cards = np.asarray(deck, dtype=np.int64)
    cards = cards[(2 * np.arange(count) + 1) * cards.size // (2 * count)]
    return cards[np.argsort(_hash(seed, what, np.arange(count)), kind="stable")]


def _random_bytes(seed: int, what: str, row: ArrayLike, width: int) -> NDArray[np.uint8]:
    """uint8[rows, width]: random bytes, the same for the same row number."""
    first = np.asarray(row, dtype=np.uint64) * np.uint64(width // 8)
    words = _hash(seed, what, first[:, None] + np.arange(width // 8, dtype=np.uint64))
    return words.astype("<u8", copy=False).view(np.uint8)


def _hash(seed: int, what: str, counter: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each counter: SplitMix64, started from the seed and what the numbers are for."""
    start = int.from_bytes(hashlib.sha256(f"{seed} {what}".encode()).digest()[:8], "big")
    bits = np.asarray(counter, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
