"""Sizes as people write them ("8GiB") and as the model counts them (bytes, pages)."""

from __future__ import annotations

import re

from lazypv.errors import SizeError

PAGE_SIZE = 4096
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(size: int | str) -> int:
    """Bytes of a size given as int or as a string such as ``"8GiB"`` or ``"512 MiB"``.

    Raises
    ------
    SizeError
        The text is not a size, or not a whole number of bytes.
    """
    if isinstance(size, int):
        if size < 0:
            raise SizeError(f"size {size} is negative")
        return size
    match = _SIZE.fullmatch(size)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise SizeError(f"{size!r} is not a size: write bytes or a number with KiB, MiB, GiB or TiB, such as 8GiB")
    value = float(match[1]) * unit
    if value != int(value):
        raise SizeError(f"{size!r} is not a whole number of bytes")
    return int(value)


def parse_pages(size: int | str) -> int:
    """Whole 4 KiB pages of a size; anything else is a :class:`SizeError`."""
    parsed = parse_size(size)
    if parsed % PAGE_SIZE:
        raise SizeError(f"size {size!r} is not a multiple of {PAGE_SIZE} bytes")
    return parsed // PAGE_SIZE


def format_size(size: int) -> str:
    """A size as a person reads it: the largest unit in which it has at least one whole part."""
    for name, unit in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= unit:
            text = f"{size / unit:.2f}".rstrip("0").rstrip(".")
            return f"{text} {name}"
    return f"{size} B"
