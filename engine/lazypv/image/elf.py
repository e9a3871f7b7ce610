"""ELF cores of a guest, as QEMU's ``dump-guest-memory`` writes them: PT_LOAD is memory, p_paddr its absolute address.

Only the ELF header and the program headers are looked at. QEMU 7.2 writes an e_ehsize of 8 and a section header in the
byte order of its host, so that e_shstrndx leads to garbage; pyelftools' ELFFile follows it while it is constructed.
Hence its structure definitions are used here, not its ELFFile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from elftools.elf.structs import ELFStructs
from numpy.typing import NDArray

from lazypv.errors import ImageError
from lazypv.image.guest_image import MAX_SIZE, GuestImage
from lazypv.sizes import PAGE_SIZE

_MAGIC = b"\x7fELF"
_CLASS, _DATA, _IDENT_SIZE = 4, 5, 16  # e_ident
_CLASS_64, _DATA_BIG = 2, 2
_MANY_HEADERS = 0xFFFF  # PN_XNUM: the number of program headers stands in a section header


@dataclass(frozen=True)
class _Segment:
    """A PT_LOAD: guest memory [address, end), of which [address, address + stored) is in the file, the rest zero."""

    number: int
    address: int
    size: int
    offset: int
    stored: int

    @property
    def end(self) -> int:
        return self.address + self.size

    @property
    def stored_end(self) -> int:
        """Byte of the file behind the segment; only where something is stored does p_offset mean anything."""
        return self.offset + self.stored


def is_elf(content: NDArray[np.uint8]) -> bool:
    return content[: len(_MAGIC)].tobytes() == _MAGIC


def read(path: str, content: NDArray[np.uint8]) -> GuestImage:
    """Guest image of an ELF core.

    Parameters
    ----------
    content : uint8[n]
        The file; where the segments stand in it one behind the other in order of address, as QEMU writes them, the
        image is a view of it, else a copy.

    Raises
    ------
    ImageError
        Not a core of a big-endian s390 guest, or a segment that is out of pages, out of the file, or in another's way.
    """
    segments = sorted(_load_segments(path, content), key=lambda segment: segment.address)
    if not segments:
        raise ImageError(path, "has no PT_LOAD segment: there is no memory in it")
    for segment in segments:
        _check_segment(path, segment, content.size)
    stored = [segment for segment in segments if segment.stored]
    _check_overlap(path, segments, stored)
    return GuestImage(
        name=os.path.basename(path),
        pages=_pages(content, stored),
        guest_page=_guest_pages(stored),
        size=segments[-1].end,
    )


def _load_segments(path: str, content: NDArray[np.uint8]) -> Iterator[_Segment]:
    """The PT_LOADs in the order of the program headers, unchecked; empty ones are left out."""
    for number, header in enumerate(_program_headers(path, content)):
        if header["p_type"] == "PT_LOAD" and (header["p_memsz"] or header["p_filesz"]):
            yield _Segment(
                number, header["p_paddr"], header["p_memsz"], offset=header["p_offset"], stored=header["p_filesz"]
            )


def _program_headers(path: str, content: NDArray[np.uint8]) -> Iterator[Any]:
    structs = _structs(path, content)
    header = structs.Elf_Ehdr.parse(_part(path, content, "ELF header", 0, structs.Elf_Ehdr.sizeof()))
    _check_header(path, header)
    structs.create_advanced_structs(header["e_type"], header["e_machine"], header["e_ident"]["EI_OSABI"])
    count, size = header["e_phnum"], structs.Elf_Phdr.sizeof()
    if count and header["e_phentsize"] != size:
        raise ImageError(path, f"program headers have {header['e_phentsize']} bytes each, expected {size}")
    if count == _MANY_HEADERS:
        raise ImageError(path, f"has {_MANY_HEADERS} program headers or more, which is not supported")
    table = _part(path, content, "program header table", header["e_phoff"], count * size)
    for at in range(0, len(table), size):
        yield structs.Elf_Phdr.parse(table[at : at + size])


def _structs(path: str, content: NDArray[np.uint8]) -> ELFStructs:
    """ELF's structures for 64-bit big-endian, which is all an s390x guest can be."""
    ident = _part(path, content, "ELF identification", 0, _IDENT_SIZE)
    if ident[_CLASS] != _CLASS_64:
        raise ImageError(path, f"is not a 64-bit ELF file: byte {_CLASS} is {ident[_CLASS]}, expected {_CLASS_64}")
    if ident[_DATA] != _DATA_BIG:
        raise ImageError(path, f"is not a big-endian ELF file: byte {_DATA} is {ident[_DATA]}, expected {_DATA_BIG}")
    structs = ELFStructs(little_endian=False, elfclass=64)
    structs.create_basic_structs()
    return structs


def _check_header(path: str, header: Any) -> None:
    if header["e_machine"] != "EM_S390":
        raise ImageError(path, f"is of machine {header['e_machine']}, expected EM_S390")
    if header["e_type"] != "ET_CORE":
        raise ImageError(path, f"is not a dump: ELF type {header['e_type']}, expected ET_CORE")


def _part(path: str, content: NDArray[np.uint8], name: str, start: int, size: int) -> bytes:
    end = start + size
    if end > content.size:
        raise ImageError(path, f"{name} ends at byte {end}, but the file has {content.size}")
    return content[start:end].tobytes()


def _check_segment(path: str, segment: _Segment, file_size: int) -> None:
    name = f"segment {segment.number}"
    for field, value in (("p_paddr", segment.address), ("p_memsz", segment.size), ("p_filesz", segment.stored)):
        if value % PAGE_SIZE:
            raise ImageError(path, f"{name}: {field} {value:#x} is not a multiple of {PAGE_SIZE}")
    if segment.stored > segment.size:
        raise ImageError(path, f"{name}: p_filesz {segment.stored:#x} is larger than p_memsz {segment.size:#x}")
    if segment.end > MAX_SIZE:
        raise ImageError(path, f"{name} ends at address {segment.end:#x}, but an image ends at {MAX_SIZE:#x} at most")
    if segment.stored and segment.stored_end > file_size:
        raise ImageError(path, f"{name} ends at byte {segment.stored_end}, but the file has {file_size}")


def _check_overlap(path: str, segments: list[_Segment], stored: list[_Segment]) -> None:
    """No address twice, and no byte of the file either: a small file must not blow up to terabytes of pages."""
    for low, high in pairwise(segments):
        if high.address < low.end:
            raise ImageError(path, f"segments {low.number} and {high.number} both have address {high.address:#x}")
    for low, high in pairwise(sorted(stored, key=lambda segment: segment.offset)):
        if high.offset < low.stored_end:
            raise ImageError(path, f"segments {low.number} and {high.number} both have byte {high.offset} of the file")


def _pages(content: NDArray[np.uint8], stored: list[_Segment]) -> NDArray[np.uint8]:
    """uint8[n, PAGE_SIZE]: the stored pages in order of address, not writeable."""
    if all(low.stored_end == high.offset for low, high in pairwise(stored)):
        data = content[stored[0].offset : stored[-1].stored_end] if stored else content[:0]
    else:
        data = np.concatenate([content[segment.offset : segment.stored_end] for segment in stored])
        data.flags.writeable = False
    return data.reshape(-1, PAGE_SIZE)


def _guest_pages(stored: list[_Segment]) -> NDArray[np.uint32]:
    """uint32[n]: guest page of each stored page."""
    ranges = [
        np.arange(segment.address // PAGE_SIZE, (segment.address + segment.stored) // PAGE_SIZE, dtype=np.uint32)
        for segment in stored
    ]
    return np.concatenate([np.empty(0, dtype=np.uint32), *ranges])
