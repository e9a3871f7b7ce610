"""Dumps built byte by byte, so that a test can say what is wrong with one."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PAGE = 4096
EHDR = struct.Struct(">16sHHIQQQIHHHHHH")
PHDR = struct.Struct(">IIQQQQQQ")
PT_LOAD, PT_NOTE = 1, 4


@dataclass
class Load:
    """A segment; what is not given follows from its data, which stands in the file where it comes in the list."""

    address: int
    data: bytes = b""
    memsz: int | None = None
    offset: int | None = None
    filesz: int | None = None
    type: int = PT_LOAD


@dataclass
class Dump:
    """An ELF core with QEMU's oddities: e_ehsize 8, a bad section header index, program headers away from the start."""

    loads: list[Load]
    ident: bytes = b"\x7fELF\x02\x02\x01" + bytes(9)
    type: int = 4
    machine: int = 22
    phoff: int = 192
    phentsize: int = 56
    phnum: int | None = None
    gap: bytes = b""  # between the segments' data
    tail: bytes = b"\0.shstrtab\0"

    def build(self) -> bytes:
        data_start = self.phoff + len(self.loads) * PHDR.size + 24
        body, headers = b"", []
        for load in self.loads:
            offset = data_start + len(body) if load.offset is None else load.offset
            filesz = len(load.data) if load.filesz is None else load.filesz
            memsz = filesz if load.memsz is None else load.memsz
            headers.append(PHDR.pack(load.type, 0, offset, load.address, load.address, filesz, memsz, 0))
            body += load.data + self.gap
        head = self.header().ljust(self.phoff, b"\xee") + b"".join(headers)
        return head.ljust(data_start, b"\xee") + body + self.tail

    def header(self) -> bytes:
        count = len(self.loads) if self.phnum is None else self.phnum
        return EHDR.pack(
            self.ident, self.type, self.machine, 1, 0, self.phoff, 64, 0, 8, self.phentsize, count, 64, 2, 0x0100
        )


def numbered(*numbers: int) -> bytes:
    """One page for each number, filled with it."""
    return b"".join(bytes([number]) * PAGE for number in numbers)


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def entropy(pages: NDArray[np.uint8]) -> NDArray[np.float64]:
    """float64[n]: bits a byte of each page."""
    counts = np.stack([np.bincount(page, minlength=256) for page in pages]) / PAGE
    return -np.sum(counts * np.log2(counts, where=counts > 0, out=np.zeros_like(counts)), axis=1)
