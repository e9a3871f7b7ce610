"""Sweeps: destroy many frames, clean what a configuration has left, donate and give back storage."""

from __future__ import annotations

import numpy as np

from lazypv_kernels.arrays import I64, U8, U16, U32, U64, Integer
from lazypv_kernels.claims import BUSY, EIGHT, claim, claim_eight, eight_from, publish
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import (
    ASCE,
    COUNT_BUSY,
    COUNT_DONE,
    COUNT_NOOP,
    COUNT_REFUSED,
    DIR_CPUS,
    DIR_WORDS,
    NO_OWNER,
    NS,
    PSH,
    RC_BUSY,
    RC_DONE,
    SEC,
)
from lazypv_kernels.native import fence, load_acquire, relax, stream_zero_page
from lazypv_kernels.tracking import note_store

CHUNK = 256
"""Frames claimed, then cleared, then published together: a locked instruction drains the streaming stores.

Of a bare fill's speed 16 reach 0.87, 64 reach 0.91, 256 reach 0.92, 512 reach 0.95; a guest that touches a claimed
frame waits for its chunk, hence not more.
"""


@kernel
def _clear_and_publish(contents: U8, state: U8, owner: U16, held: I64, taken: Integer) -> None:
    """Clear the claimed frames ``held[:taken]``; only then let anybody see them as non-secure."""
    if contents.shape[0] > 0:
        for k in range(taken):
            stream_zero_page(contents, held[k])
        fence()
    for k in range(taken):
        owner[held[k]] = NO_OWNER
        publish(state, held[k], NS)


@kernel
def destroy_pages(
    contents: U8, state: U8, owner: U16, directory: U64, refused_rc: Integer, frames: I64, first: Integer,
    last: Integer, rc: U16, counts: I64,
) -> None:  # fmt: skip
    """DESTR_SEC_STOR for ``frames[first:last]``.

    contents : uint8[n, 4096], or uint8[0, 4096] in a machine without contents; state : uint8[n]; owner : uint16[n];
    directory : uint64[slots * DIR_WORDS]; frames : int64[k]; rc : uint16[k], written; counts : int64[4], added to.
    """
    held = np.empty(CHUNK, np.int64)
    taken = 0
    i = np.int64(first) - 1
    while i + 1 < last:
        i += 1
        frame = frames[i]
        seen = load_acquire(state, frame)
        if seen == NS or seen == ASCE:
            rc[i] = RC_DONE
            counts[COUNT_NOOP] += 1
            continue
        if seen == SEC and eight_from(frames, i, last, state) and _take_eight(state, owner, directory, frame):
            if taken + EIGHT > CHUNK:
                _clear_and_publish(contents, state, owner, held, taken)
                taken = 0
            for k in range(EIGHT):
                held[taken + k] = frame + k
                rc[i + k] = RC_DONE
            taken += EIGHT
            counts[COUNT_DONE] += EIGHT
            i += EIGHT - 1
            continue
        seen = claim(state, frame)
        if seen == BUSY and taken > 0:
            # It may be one of ours: a frame that stands twice in the batch is answered like two calls.
            _clear_and_publish(contents, state, owner, held, taken)
            taken = 0
            seen = claim(state, frame)
        if seen == BUSY:
            rc[i] = RC_BUSY
            counts[COUNT_BUSY] += 1
        elif seen == NS or seen == ASCE:
            publish(state, frame, seen)
            rc[i] = RC_DONE
            counts[COUNT_NOOP] += 1
        elif seen > PSH or load_acquire(directory, np.int64(owner[frame]) * DIR_WORDS + DIR_CPUS) != 0:
            publish(state, frame, seen)
            rc[i] = refused_rc
            counts[COUNT_REFUSED] += 1
        else:
            if taken == CHUNK:
                _clear_and_publish(contents, state, owner, held, taken)
                taken = 0
            held[taken] = frame
            taken += 1
            rc[i] = RC_DONE
            counts[COUNT_DONE] += 1
    _clear_and_publish(contents, state, owner, held, taken)


@kernel
def _take_eight(state: U8, owner: U16, directory: U64, frame: Integer) -> bool:
    """Claim `frame` and its seven neighbours, all of them secure, of one owner, which has no CPUs; or none."""
    if not claim_eight(state, frame, SEC):
        return False
    slot = owner[frame]
    fits = load_acquire(directory, np.int64(slot) * DIR_WORDS + DIR_CPUS) == 0
    for k in range(1, EIGHT):
        fits &= owner[frame + k] == slot
    if not fits:
        for k in range(EIGHT):
            publish(state, frame + k, SEC)
    return bool(fits)


@kernel
def clean_configuration(
    contents: U8, state: U8, owner: U16, slot: Integer, first: Integer, last: Integer, counts: I64
) -> None:
    """Clear and release every frame of ``[first, last)`` that belongs to `slot`, donated storage included.

    counts : int64[4], added to: done = guest pages, no-op = donated frames and marks, busy = claimed by somebody else.
    The configuration is dying: no frame can become its own meanwhile, so an unclaimed look at `owner` misses nothing.
    """
    held = np.empty(CHUNK, np.int64)
    taken = 0
    for frame in range(first, last):
        if owner[frame] != slot:
            continue
        seen = claim(state, frame)
        if seen == BUSY:
            counts[COUNT_BUSY] += 1
            continue
        if owner[frame] != slot:
            publish(state, frame, seen)
            continue
        if seen == ASCE:
            # The table itself is the host's: the mark goes, the content stays.
            owner[frame] = NO_OWNER
            publish(state, frame, NS)
            counts[COUNT_NOOP] += 1
            continue
        counts[COUNT_DONE if seen <= PSH else COUNT_NOOP] += 1
        held[taken] = frame
        taken += 1
        if taken == CHUNK:
            _clear_and_publish(contents, state, owner, held, taken)
            taken = 0
    _clear_and_publish(contents, state, owner, held, taken)


@kernel
def donate(state: U8, owner: U16, frames: I64, page_state: Integer, slot: Integer) -> int:
    """Take all `frames` from the host as `page_state` of `slot`, or none; index of the first that cannot, or -1.

    Donated frames must be non-secure, unmarked and held by nobody.
    """
    for i in range(frames.size):
        seen = claim(state, frames[i])
        if seen != NS:
            if seen != BUSY:
                publish(state, frames[i], seen)
            for k in range(i):
                publish(state, frames[k], NS)
            return i
    for i in range(frames.size):
        owner[frames[i]] = slot
        publish(state, frames[i], page_state)
    return -1


@kernel
def give_back(contents: U8, state: U8, owner: U16, frames: I64) -> None:
    """Clear donated `frames` and hand them to the host again; a call or access that looks at one is waited for."""
    for i in range(frames.size):
        _claim_own(state, frames[i])
        if contents.shape[0] > 0:
            stream_zero_page(contents, frames[i])
            fence()
        owner[frames[i]] = NO_OWNER
        publish(state, frames[i], NS)


@kernel
def unmark(state: U8, owner: U16, frames: I64) -> None:
    """Take the mark from the tables `frames`: they are plain pages of the host again."""
    for i in range(frames.size):
        _claim_own(state, frames[i])
        owner[frames[i]] = NO_OWNER
        publish(state, frames[i], NS)


@kernel
def _claim_own(state: U8, frame: Integer) -> None:
    """Claim a `frame` that nobody else can take: others only look at it, and let go again without waiting."""
    while claim(state, frame) == BUSY:
        relax()


@kernel
def unshare_all(
    state: U8, owner: U16, guest_page: U32, directory: U64, slot: Integer, first: Integer, last: Integer, counts: I64
) -> None:
    """SET_UNSHARE_ALL over frames ``[first, last)``: every shared page of `slot` is private again."""
    for frame in range(first, last):
        if owner[frame] != slot:
            continue
        seen = claim(state, frame)
        if seen == BUSY:
            counts[COUNT_BUSY] += 1
        elif owner[frame] == slot and SEC < seen <= PSH:
            if note_store(directory, slot, guest_page[frame]):
                publish(state, frame, SEC)
                counts[COUNT_DONE] += 1
            else:
                publish(state, frame, seen)
                counts[COUNT_BUSY] += 1
        else:
            publish(state, frame, seen)
            counts[COUNT_NOOP] += 1
