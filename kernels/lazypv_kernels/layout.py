"""The words of the arrays: page size, dtypes, and what each bit of a frame's bytes means.

A host frame has eight bytes in four arrays. Seven belong to the Ultravisor: state (one byte: page state and claim),
owner (two: slot of the secure configuration), guest page (four). One belongs to the host: two mark bits and the
reference count. The two sides never share a byte, so that compare-and-swap never meets a plain write.
"""

from __future__ import annotations

from typing import Final

import numpy as np

PAGE_SIZE: Final = 4096

# --- the Ultravisor's state byte ---------------------------------------------------------------------------------
# Bits 0-2: page state (semantics 2.1). Bits 3-6: guests and hosts that are touching the frame now. Bit 7: claimed for
# a transition.
NS: Final = 0
SEC: Final = 1
SHR: Final = 2
PSH: Final = 3
DON_UV: Final = 4
DON_CONF: Final = 5
DON_CPU: Final = 6
ASCE: Final = 7

STATE_NAMES: Final = ("NS", "SEC", "SHR", "PSH", "DON_UV", "DON_CONF", "DON_CPU", "ASCE")
STATE_MASK: Final = 0x07
TOUCH_ONE: Final = 0x08
TOUCH_MASK: Final = 0x78
CLAIMED: Final = 0x80

NO_OWNER: Final = 0

# --- the host's byte ---------------------------------------------------------------------------------------------
# Bits 0-5: references; 63 says "look in the side table". A free frame is a byte of zero. A frozen frame has no
# references but keeps its mark, so it is never mistaken for a free one.
MARK_SECURE: Final = 0x80
"""PG_arch_1: the frame may be secure (semantics 2.4)."""
MARK_WRITEBACK: Final = 0x40
"""The frame is being written to a device or to swap: no import meanwhile (invariant 6)."""
MARKS: Final = 0xC0
REFERENCES: Final = 0x3F
REFERENCES_OVERFLOW: Final = 0x3F

# --- page table entries ------------------------------------------------------------------------------------------
NO_FRAME: Final = 0
"""An absent entry; a present one is frame + 1."""
NO_IMAGE: Final = -1
"""First guest page of the boot image where an import is not from one."""

# --- the record of (configuration, guest page) -------------------------------------------------------------------
# Bits 0-1: where the page is. Bit 2: claimed. The rest: version, raised at each export and never taken back. Without
# contents there is no cipher, hence no version, and the record is one byte.
RECORD_NEVER: Final = 0
RECORD_IN: Final = 1
RECORD_OUT: Final = 2
RECORD_OUT_SHARED: Final = 3
RECORD_STATE: Final = 0x03
RECORD_CLAIMED: Final = 0x04
RECORD_VERSION_ONE: Final = 0x08
RECORD_VERSION_SHIFT: Final = 3

# --- the directory of configurations: one row of eight-byte words a slot -----------------------------------------
DIR_RECORDS: Final = 0
DIR_TAGS: Final = 1
DIR_PAGES: Final = 2
DIR_CPUS: Final = 3
DIR_EXPORTED: Final = 4
"""Pages that left the configuration by export, or with their ownership (feature bit 0)."""
DIR_TRACK: Final = 5
"""Address of uint32[pages, 2]: in which generation each page was last written, and last saved; 0 where nobody asks."""
DIR_GENERATION: Final = 6
"""Generation of the guest's stores, above two bits of mode: stores go on, a snapshot is being saved, stores wait."""
DIR_IN_SNAPSHOT: Final = 7
"""Not 0 while pages that were never imported may still be in a snapshot: none of them may come in as a zero page."""
DIR_WORDS: Final = 8
"""A row is a cache line of its own."""

TRACK_WORDS: Final = 2
TRACK_OPEN: Final = 0
TRACK_SAVING: Final = 1
TRACK_CLOSED: Final = 2
TRACK_MODE: Final = 0x03
TRACK_SHIFT: Final = 2

# --- rows of a snapshot (docs/snapshot-format.md) ----------------------------------------------------------------
KIND_ZERO: Final = 0
"""The host may know that the page is zero: the guest never had it."""
KIND_PLAIN: Final = 1
"""Shared with the host, which can read it anyway."""
KIND_SEALED: Final = 2
"""Secure: encrypted."""

TAG_SIZE: Final = 32
KEY_SIZE: Final = 32
NONCE_SIZE: Final = 32
SCRATCH_SIZE: Final = PAGE_SIZE + TAG_SIZE

# --- answers of bulk kernels, one uint16 a page ------------------------------------------------------------------
RC_BUSY: Final = 0
"""Condition code 2: another call or a guest has the page; try again."""
RC_DONE: Final = 0x0001

# Counters that bulk kernels add to: int64[4].
COUNT_DONE: Final = 0
COUNT_NOOP: Final = 1
COUNT_BUSY: Final = 2
COUNT_REFUSED: Final = 3
COUNTS: Final = 4

STATE_DTYPE: Final = np.uint8
OWNER_DTYPE: Final = np.uint16
GUEST_PAGE_DTYPE: Final = np.uint32
HOST_DTYPE: Final = np.uint8
PTE_DTYPE: Final = np.uint32
FRAME_DTYPE: Final = np.int64
RC_DTYPE: Final = np.uint16
