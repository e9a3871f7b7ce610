"""What each kernel means, in the plainest Python; a kernel may never disagree with its twin.

A twin has its kernel's name and parameters, but for those that reach a configuration's records through addresses: they
take the :class:`World` that holds those records as arrays. Everything runs alone here: no claims, only what is found.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import nacl.bindings
import nacl.exceptions
import numpy as np

from lazypv_kernels.layout import (
    ASCE,
    CLAIMED,
    COUNT_BUSY,
    COUNT_DONE,
    COUNT_NOOP,
    COUNT_REFUSED,
    DIR_CPUS,
    DIR_EXPORTED,
    DIR_PAGES,
    DIR_RECORDS,
    DIR_TAGS,
    DIR_WORDS,
    DON_UV,
    MARK_SECURE,
    MARK_WRITEBACK,
    NO_IMAGE,
    NS,
    PAGE_SIZE,
    PSH,
    RC_BUSY,
    RC_DONE,
    RECORD_CLAIMED,
    RECORD_IN,
    RECORD_NEVER,
    RECORD_OUT,
    RECORD_OUT_SHARED,
    REFERENCES,
    REFERENCES_OVERFLOW,
    SEC,
    SHR,
    STATE_MASK,
    TOUCH_MASK,
    TOUCH_ONE,
)

BUSY = 0xFF
RECORD_BUSY = 2**64 - 1
DOMAIN_LIVE, DOMAIN_IMAGE = 1, 2


@dataclass
class World:
    """Frames of a machine and the records of its configurations, slot 0 being nobody's.

    Attributes
    ----------
    records : list of uint64[pages] (with contents) or uint8[pages]
    tags : list of uint8[pages, 32]
    directory : uint64[slots * DIR_WORDS], whose addresses are those of `records` and `tags`
    """

    state: np.ndarray
    owner: np.ndarray
    guest_page: np.ndarray
    contents: np.ndarray
    keys: np.ndarray
    records: list[np.ndarray]
    tags: list[np.ndarray]
    directory: np.ndarray

    @property
    def wide(self):
        """With contents there is a cipher, hence versions, hence a word a record."""
        return self.contents.shape[0] > 0

    def point(self):
        """Let the directory point at this world's own records."""
        for slot in range(1, len(self.records)):
            self.directory[slot * DIR_WORDS + DIR_RECORDS] = self.records[slot].ctypes.data
            self.directory[slot * DIR_WORDS + DIR_TAGS] = self.tags[slot].ctypes.data
            self.directory[slot * DIR_WORDS + DIR_PAGES] = self.records[slot].size
        return self

    def copy(self):
        """An equal world that shares nothing with this one."""
        twin = copy.deepcopy(self)
        twin.contents = on_lines(self.contents)
        return twin.point()

    def seen(self):
        """All that can differ between two worlds, addresses left out."""
        directory = self.directory.reshape(-1, DIR_WORDS)[:, [DIR_PAGES, DIR_CPUS, DIR_EXPORTED]]
        return [self.state, self.owner, self.guest_page, self.contents, self.keys, directory, *self.records, *self.tags]


def on_lines(pages):
    """A copy of pages, bytes or words, that begins at a cache line as storage does: streaming stores need it."""
    room = np.empty(pages.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copied = room[start : start + pages.nbytes].view(pages.dtype).reshape(pages.shape)
    copied[:] = pages
    return copied


def answer(into, counts, i, code, count):
    into[i] = code
    if counts is not None:
        counts[count] += 1


def is_held(byte):
    """Somebody has a claim on the frame or touches it."""
    return bool(byte & (CLAIMED | TOUCH_MASK))


def cannot_be_touched(byte):
    """Claimed, or touched by as many as the bits can count."""
    return bool(byte & CLAIMED) or byte & TOUCH_MASK == TOUCH_MASK


# --- claims ----------------------------------------------------------------------------------------------------------


def claim(state, frame):
    if is_held(state[frame]):
        return BUSY
    seen = state[frame]
    state[frame] = seen | CLAIMED
    return seen


def eight_from(frames, i, last, array):
    aligned = (array.ctypes.data + int(frames[i])) % 8 == 0
    return bool(i + 8 <= last and aligned and np.all(np.diff(frames[i : i + 8]) == 1))


def claim_eight(state, frame, page_state):
    eight = state[frame : frame + 8]
    if np.any(eight != page_state):
        return False
    eight |= CLAIMED
    return True


def publish(state, frame, page_state):
    state[frame] = page_state


def touch(state, frame):
    if cannot_be_touched(state[frame]):
        return BUSY
    state[frame] += TOUCH_ONE
    return state[frame] & STATE_MASK


def let_go(state, frame):
    state[frame] -= TOUCH_ONE


def has_page(directory, slot, page):
    return 0 <= page < directory[slot * DIR_WORDS + DIR_PAGES]


def claim_record(world, slot, page):
    word = int(world.records[slot][page])
    if word & RECORD_CLAIMED:
        return RECORD_BUSY
    world.records[slot][page] = word | RECORD_CLAIMED
    return word


def publish_record(world, slot, page, word):
    world.records[slot][page] = word


# --- accesses --------------------------------------------------------------------------------------------------------


def verdict(seen, same_owner, same_page, protected):
    """The decision table of semantics 7, row by row; a page that is one's own at another address is a violation."""
    if not protected:
        return 0 if seen in (NS, SHR, PSH, ASCE) else 0x3D
    if seen in (NS, ASCE):
        return 0x3E
    if seen in (SEC, SHR, PSH) and same_owner:
        return 0 if same_page else 0x3F
    return 0x3E if seen in (SHR, PSH) else 0x3F


def stamp_offset(page):
    return ((page * 0x9E3779B97F4A7C15) % 2**64 >> 55) % 512


def hash_words(words, row):
    word = words[row] + np.arange(512, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((32, 0xBF58476D1CE4E5B9), (29, 0x94D049BB133111EB)):
        word = (word ^ word >> np.uint64(shift)) * np.uint64(factor)
    return int(np.sum(word ^ word >> np.uint64(32), dtype=np.uint64))


def entry_of(pte, page):
    return pte[page] if 0 <= page < pte.size else 0


def guest_access(
    words, state, owner, guest_page, _directory, pte, slot, pages, operation, values, source, rows, first, last, code,
    counts,
):  # fmt: skip
    for i in range(first, last):
        page = pages[i]
        if entry_of(pte, page) == 0:
            answer(code, counts, i, 0x11, COUNT_REFUSED)
            continue
        frame = pte[page] - 1
        if cannot_be_touched(state[frame]):
            answer(code, counts, i, RC_BUSY, COUNT_BUSY)
            continue
        seen = state[frame] & STATE_MASK
        why = verdict(seen, owner[frame] == slot, guest_page[frame] == page, slot != 0)
        answer(code, counts, i, why or RC_DONE, COUNT_REFUSED if why else COUNT_DONE)
        if why or not words.size:
            continue
        if operation == 0:
            values[i] = hash_words(words, frame)
        if operation in (2, 3):
            words[frame] = source[rows[i]] if rows[i] >= 0 else 0
        if operation in (1, 2):
            words[frame, stamp_offset(int(page))] = values[i]


def guest_share(state, owner, guest_page, _directory, pte, slot, pages, share, first, last, code, counts):
    for i in range(first, last):
        page = pages[i]
        if entry_of(pte, page) == 0:
            answer(code, counts, i, 0x11, COUNT_REFUSED)
            continue
        frame = pte[page] - 1
        seen = state[frame]
        if is_held(seen):
            answer(code, counts, i, RC_BUSY, COUNT_BUSY)
            continue
        why = verdict(seen, owner[frame] == slot, guest_page[frame] == page, True)
        if not why:
            if not share and seen == PSH:
                why = 0x6C
            state[frame] = {(SEC, True): SHR, (SHR, False): SEC}.get((int(seen), share), seen)
        answer(code, counts, i, why or RC_DONE, COUNT_REFUSED if why else COUNT_DONE)


def pin_pages(state, refused_rc, frames, first, last, rc, counts):
    for i in range(first, last):
        seen = state[frames[i]]
        if is_held(seen):
            answer(rc, counts, i, RC_BUSY, COUNT_BUSY)
        elif seen in (SHR, PSH):
            state[frames[i]] = PSH
            answer(rc, counts, i, RC_DONE, COUNT_DONE)
        else:
            answer(rc, counts, i, refused_rc, COUNT_REFUSED)


def unpin_pages(
    state, owner, guest_page, _directory, pte, slot, not_mapped_rc, refused_rc, pages, first, last, rc, counts
):
    for i in range(first, last):
        if entry_of(pte, pages[i]) == 0:
            answer(rc, counts, i, not_mapped_rc, COUNT_REFUSED)
            continue
        frame = pte[pages[i]] - 1
        if is_held(state[frame]):
            answer(rc, counts, i, RC_BUSY, COUNT_BUSY)
        elif (state[frame], owner[frame], guest_page[frame]) == (PSH, slot, pages[i]):
            state[frame] = SEC
            answer(rc, counts, i, RC_DONE, COUNT_DONE)
        else:
            answer(rc, counts, i, refused_rc, COUNT_REFUSED)


def host_clear(words, state, _owner, _guest_page, _directory, frames, first, last, code, counts):
    for i in range(first, last):
        byte = state[frames[i]]
        if cannot_be_touched(byte):
            answer(code, counts, i, RC_BUSY, COUNT_BUSY)
        elif verdict(byte & STATE_MASK, False, False, False):
            answer(code, counts, i, 0x3D, COUNT_REFUSED)
        else:
            words[frames[i] : frames[i] + 1] = 0
            answer(code, counts, i, RC_DONE, COUNT_DONE)


def host_copy(
    contents, state, _owner, _guest_page, _directory, frames, buffer, write, places, start, end, first, last, code
):  # fmt: skip
    for i in range(first, last):
        byte, row = state[frames[i]], slice(frames[i], frames[i] + 1)
        if cannot_be_touched(byte):
            code[i] = RC_BUSY
        elif verdict(byte & STATE_MASK, False, False, False):
            code[i] = 0x3D
        else:
            code[i] = RC_DONE
            byte = places[i] * 4096 + np.arange(4096)
            inside = (byte >= start) & (byte < end)
            if contents.size and write:
                contents[row, inside] = buffer[i, inside]
            elif contents.size:
                buffer[i, inside] = contents[frames[i], inside]


# --- sweeps ----------------------------------------------------------------------------------------------------------


def clear(contents, frame):
    contents[frame : frame + 1] = 0


def destroy_pages(contents, state, owner, directory, refused_rc, frames, first, last, rc, counts):
    for i in range(first, last):
        frame = frames[i]
        if state[frame] in (NS, ASCE):
            answer(rc, counts, i, RC_DONE, COUNT_NOOP)
        elif is_held(state[frame]):
            answer(rc, counts, i, RC_BUSY, COUNT_BUSY)
        elif state[frame] > PSH or directory[int(owner[frame]) * DIR_WORDS + DIR_CPUS]:
            answer(rc, counts, i, refused_rc, COUNT_REFUSED)
        else:
            clear(contents, frame)
            state[frame], owner[frame] = NS, 0
            answer(rc, counts, i, RC_DONE, COUNT_DONE)


def clean_configuration(contents, state, owner, slot, first, last, counts):
    for frame in range(first, last):
        if owner[frame] != slot:
            continue
        if is_held(state[frame]):
            counts[COUNT_BUSY] += 1
            continue
        if state[frame] != ASCE:
            clear(contents, frame)
        counts[COUNT_DONE if state[frame] <= PSH else COUNT_NOOP] += 1
        state[frame], owner[frame] = NS, 0


def donate(state, owner, frames, page_state, slot):
    taken = set()
    for i, frame in enumerate(frames):
        if state[frame] != NS or frame in taken:
            return i
        taken.add(frame)
    state[frames], owner[frames] = page_state, slot
    return -1


def give_back(contents, state, owner, frames):
    for frame in frames:
        clear(contents, frame)
    unmark(state, owner, frames)


def unmark(state, owner, frames):
    state[frames], owner[frames] = NS, 0


def unshare_all(state, owner, _guest_page, _directory, slot, first, last, counts):
    for frame in range(first, last):
        if owner[frame] != slot:
            continue
        if is_held(state[frame]):
            counts[COUNT_BUSY] += 1
        elif state[frame] in (SHR, PSH):
            state[frame] = SEC
            counts[COUNT_DONE] += 1
        else:
            counts[COUNT_NOOP] += 1


# --- dirty tracking and rows of snapshots ----------------------------------------------------------------------------


def publish_word(directory, at, word):
    directory[at] = word


def note_store(word, track, page):
    """word : of the directory; track : uint32[pages, 2], as a configuration has it; None where nobody asks."""
    now, mode = int(word) >> 2, int(word) & 3
    if track is None:
        return True
    if mode == 2 or (mode == 1 and track[page, 1] != now):
        return False
    track[page, 0] = now
    return True


def choose_pages(track, records, since, now, pages):
    count = 0
    for page in range(len(track)):
        if track[page, 0] >= since or records[page] & np.uint64(3) == RECORD_OUT_SHARED:
            pages[count] = page
            count += 1
        else:
            track[page, 1] = now
    return count


def copy_aside(world, slot, pte, track, now, pages, rows, aside, aside_kind, aside_of, code):
    copied = 0
    for i, page in enumerate(pages):
        code[i] = RC_DONE
        if track[page, 1] == now:
            continue
        record = claim_record(world, slot, page)
        if record == RECORD_BUSY:
            code[i] = RC_BUSY
            continue
        publish_record(world, slot, page, record)
        if record & 3 != RECORD_IN or pte[page] == 0:
            continue
        frame = pte[page] - 1
        if is_held(world.state[frame]):
            code[i] = RC_BUSY
        elif world.owner[frame] == slot and world.guest_page[frame] == page:
            aside[rows[i]] = world.contents[frame]
            aside_kind[rows[i]] = 2 if world.state[frame] == SEC else 1
            aside_of[page], track[page, 1], code[i] = rows[i] + 1, now, 2
            copied += 1
    return copied


def row_data(ad, page, kind, version):
    """Associated data of a row: what is the file's and the batch's, then what is its own."""
    return ad[:6].tobytes() + b"".join(int(word).to_bytes(8, "little") for word in (page, kind, version))


def seal_row(out, at, row, plain, page, kind, version, key, ad):
    data = row_data(ad, page, kind, version)
    text, more = (bytes(plain), b"") if kind == 2 else (b"", bytes(plain) if kind == 1 else b"")
    both = nacl.bindings.crypto_aead_aegis256_encrypt(text, data + more, nonce_of(page, 0, 3), bytes(key))
    shown = both[:-32] if kind == 2 else more or bytes(PAGE_SIZE)
    for start, part in (
        (at[0] + PAGE_SIZE * row, shown),
        (at[1] + 4 * row, int(page).to_bytes(4, "little")),
        (at[2] + row, bytes([kind])),
        (at[3] + 32 * row, both[-32:]),
        (at[4] + 8 * row, int(version).to_bytes(8, "little")),
    ):
        out[start : start + len(part)] = np.frombuffer(part, np.uint8)


def address_row(ad, page, kind, version, own, nonce):
    own[:] = np.frombuffer(row_data(ad, page, kind, version), np.uint64)
    nonce[:] = np.frombuffer(nonce_of(page, 0, 3), np.uint64)


def address_of_row(batch, at, row, ad, own, nonce):
    version = int.from_bytes(batch[at[4] + 8 * row : at[4] + 8 * row + 8].tobytes(), "little")
    address_row(ad, page_of(batch, at, row), int(batch[at[2] + row]), version, own, nonce)


def page_of(batch, at, row):
    return int.from_bytes(batch[at[1] + 4 * row : at[1] + 4 * row + 4].tobytes(), "little")


def write_row(out, at, row, page, kind, version):
    out[at[1] + 4 * row : at[1] + 4 * row + 4] = np.frombuffer(int(page).to_bytes(4, "little"), np.uint8)
    out[at[2] + row] = kind
    out[at[4] + 8 * row : at[4] + 8 * row + 8] = np.frombuffer(int(version).to_bytes(8, "little"), np.uint8)


def open_row(batch, at, row, key, ad):
    """The plain page of a row, or None when it does not verify."""
    page = page_of(batch, at, row)
    version = int.from_bytes(batch[at[4] + 8 * row : at[4] + 8 * row + 8].tobytes(), "little")
    kind = int(batch[at[2] + row])
    shown = batch[at[0] + PAGE_SIZE * row : at[0] + PAGE_SIZE * (row + 1)].tobytes()
    tag = batch[at[3] + 32 * row : at[3] + 32 * row + 32].tobytes()
    if kind > 2 or (kind == 0 and any(shown)):
        return None
    text, more = (shown, b"") if kind == 2 else (b"", shown if kind == 1 else b"")
    try:
        plain = nacl.bindings.crypto_aead_aegis256_decrypt(
            text + tag, row_data(ad, page, kind, version) + more, nonce_of(page, 0, 3), bytes(key)
        )
    except nacl.exceptions.CryptoError:
        return None
    return np.frombuffer(plain if kind == 2 else shown, np.uint8)


def source_of(world, slot, pte, page, record, saved):
    """What a guest's page holds: (code, kind, content); one that was saved meanwhile is asked for again."""
    where, version = record & 3, record >> 3
    if where == RECORD_NEVER:
        return RC_DONE, 0, np.zeros(PAGE_SIZE, np.uint8)
    if entry_of(pte, page) == 0:
        return 0xF10, 0, None
    frame = pte[page] - 1
    seen = int(world.state[frame])
    if is_held(world.state[frame]):
        return RC_BUSY, 0, None
    content = world.contents[frame]
    ours = (world.owner[frame], world.guest_page[frame]) == (slot, page)
    if where == RECORD_IN and ours and seen in (SEC, SHR, PSH):
        return RC_DONE, 2 if seen == SEC else 1, content
    if where == RECORD_OUT_SHARED and seen == NS:
        return RC_DONE, 1, content
    if where == RECORD_OUT and seen == NS:
        if saved:
            return RC_BUSY, 0, None
        plain = opened(content, world.tags[slot][page], page, version, DOMAIN_LIVE, world.keys[slot])
        if plain is not None:
            return RC_DONE, 2, plain
    return 0xF10, 0, None


def seal_rows(world, slot, pte, track, now, aside, aside_kind, aside_of, key, ad, version, pages, out, at, code):
    for i, page in enumerate(pages):
        if code[i] != RC_BUSY:
            continue
        record = claim_record(world, slot, page)
        if record == RECORD_BUSY:
            continue
        publish_record(world, slot, page, record)
        if track[page, 1] == now and aside_of[page]:
            row = aside_of[page] - 1
            code[i], kind, content = RC_DONE, int(aside_kind[row]), aside[row]
        else:
            saved = track[page, 1] == now
            code[i], kind, content = source_of(world, slot, pte, page, record, saved)
            if code[i] == RC_DONE and saved:
                code[i] = RC_BUSY
        if code[i] == RC_DONE:
            seal_row(out, at, i, content, page, kind, version, key, ad)
            track[page, 1] = now
    return np.count_nonzero(code == RC_BUSY)


def seal_buffer(source, kinds, versions, key, ad, pages, out, at):
    for i, page in enumerate(pages):
        seal_row(out, at, i, source[i], page, int(kinds[i]), versions[i], key, ad)


def open_rows(batch, at, first, last, key, ad):
    for row in range(first, last):
        plain = open_row(batch, at, row, key, ad)
        if plain is None:
            return row
        batch[at[0] + PAGE_SIZE * row : at[0] + PAGE_SIZE * (row + 1)] = plain
    return -1


def restore_rows(world, slot, pte, batch, at, rows, whole, key, ad, rc):
    others = np.setdiff1d(np.arange((at[1] - at[0]) // PAGE_SIZE), rows) if whole else []
    for row in others:
        if open_rows(batch, at, row, row + 1, key, ad) >= 0:
            rc[:] = 0xF12
            return row
    pages = [page_of(batch, at, row) for row in rows]
    claimed, fitting = set(), set()
    for page in pages:
        frame = int(entry_of(pte, page)) - 1
        record = claim_record(world, slot, page) if frame >= 0 and page not in claimed else RECORD_BUSY
        if record != RECORD_BUSY:
            claimed.add(page)
        if frame < 0 or (record != RECORD_BUSY and record & 3 != RECORD_NEVER):
            rc[:] = 0xF10
        elif record == RECORD_BUSY or is_held(world.state[frame]):
            rc[:] = RC_BUSY
        elif world.state[frame] != NS:
            rc[:] = 0xF10
        else:
            fitting.add(page)
            continue
        break
    for page in claimed:
        publish_record(world, slot, page, int(world.records[slot][page]) & ~4)
    if len(fitting) < len(pages):
        return -1
    plain = []
    for row in rows:
        plain.append(open_row(batch, at, row, key, ad))
        if plain[-1] is None:
            for page in pages:
                world.contents[pte[page] - 1] = 0
            rc[:] = 0xF12
            return row
    for page, row, content in zip(pages, rows, plain, strict=True):
        frame = pte[page] - 1
        world.contents[frame] = content
        world.owner[frame], world.guest_page[frame] = slot, page
        world.state[frame] = SHR if batch[at[2] + row] == 1 else SEC
        world.records[slot][page] |= np.uint64(RECORD_IN)
    rc[:] = RC_DONE
    return -1


def read_all(file, target, offset):
    piece = file[offset : offset + target.size]
    target[: len(piece)] = np.frombuffer(piece, np.uint8)
    return len(piece) == target.size


def read_packed(file, offset, at, packed):
    for k, into in enumerate(packed):
        batch = np.zeros(at[5], np.uint8)
        if not read_all(file, batch, offset + k * at[5]):
            return k
        into[48:] = np.concatenate([batch[: at[0]], batch[at[1] :]])
    return len(packed)


def restore_batches(world, slot, pte, file, offset, packed, at, rows, bounds, first, key, ad, rc):
    rc[:] = 0xF12
    for k in range(len(packed)):
        batch, whole = np.zeros(at[5], np.uint8), True
        if not read_all(file, batch, offset + k * at[5]):
            return k, -1
        batch[at[1] :] = packed[k][48 + at[0] :]
        words = np.concatenate([ad[:5], [np.uint64(first + k)], ad[6:]])
        part = slice(bounds[k], bounds[k + 1])
        bad = restore_rows(world, slot, pte, batch, at, rows[part], whole, key, words, rc[part])
        if bad >= 0:
            return k, bad
    return -1, -1


def packed(batch, at):
    """What a MAC covers, behind room for a prefix."""
    return np.concatenate([np.zeros(48, np.uint8), batch[: at[0]], batch[at[1] : at[5]]])


def check_packed(packed, digits, rows, file_id, first, macs, key):
    for k, each in enumerate(packed):
        all_of_it = np.array([each.size - 48] * 6)  # as if it were metadata only
        fits = batch_mac(each[48:], all_of_it, digits, rows, file_id, first + k, key, False)
        if not fits or each[48 + digits : 48 + digits + 64].tobytes() != macs[first + k].tobytes().hex().encode():
            return k
    return -1


def choose_rows(packed, at, rows, seen, chosen, pages, bounds):
    count = 0
    bounds[0] = 0
    for k, each in enumerate(packed):
        columns = each[48 + at[0] :]
        for row in range(rows):
            page = int.from_bytes(columns[4 * row : 4 * row + 4].tobytes(), "little")
            if page >= seen.size:
                return k
            if columns[at[2] - at[1] + row] and not seen[page]:
                chosen[count], pages[count] = row, page
                count += 1
            seen[page] = True
        bounds[k + 1] = count
    return len(packed)


def batch_mac(batch, at, digits, rows, file_id, index, key, write):
    before = bytearray(batch[: at[0]].tobytes())
    before[digits : digits + 64] = b"0" * 64
    covered = bytes(file_id) + int(index).to_bytes(8, "little") + int(rows).to_bytes(8, "little")
    covered += bytes(before) + batch[at[1] : at[5]].tobytes()
    tag = nacl.bindings.crypto_aead_aegis256_encrypt(b"", covered, nonce_of(index, 0, 4), bytes(key)).hex().encode()
    if write:
        batch[digits : digits + 64] = np.frombuffer(tag, np.uint8)
    return batch[digits : digits + 64].tobytes() == tag


# --- import and export -----------------------------------------------------------------------------------------------


def nonce_of(page, version, domain):
    """Guest page, version, domain, zero: four little-endian words."""
    return b"".join(int(word).to_bytes(8, "little") for word in (page, version, domain, 0))


def sealed(plain, page, version, domain, key):
    """Ciphertext and tag, as libsodium gives them."""
    both = nacl.bindings.crypto_aead_aegis256_encrypt(bytes(plain), None, nonce_of(page, version, domain), bytes(key))
    return np.frombuffer(both[:PAGE_SIZE], np.uint8), np.frombuffer(both[PAGE_SIZE:], np.uint8)


def opened(cipher, tag, page, version, domain, key):
    """The plain page, or None when it does not verify."""
    try:
        plain = nacl.bindings.crypto_aead_aegis256_decrypt(
            bytes(cipher) + bytes(tag), None, nonce_of(page, version, domain), bytes(key)
        )
    except nacl.exceptions.CryptoError:
        return None
    return np.frombuffer(plain, np.uint8)


def decrypt_bare(contents, frame, tag, nonce, key, into):
    plain = opened(contents[frame], tag, int(nonce[0]), int(nonce[1]), int(nonce[2]), key[0])
    if plain is not None:
        into[:PAGE_SIZE] = plain
    return plain is not None


def clear_scratch(scratch):
    scratch[scratch.size // 2 :] = 0


def write_nonce(nonce, page, version, domain, cipher):
    nonce[:] = (domain << 61 | version, page, 0, 0) if cipher else (page, version, domain, 0)


def seal_page(contents, frame, tag, nonce, keys, row):
    contents[frame], tag[:] = sealed(contents[frame], int(nonce[0]), int(nonce[1]), int(nonce[2]), keys[row])


def open_page(contents, frame, tag, nonce, keys, row):
    plain = opened(contents[frame], tag, int(nonce[0]), int(nonce[1]), int(nonce[2]), keys[row])
    if plain is None:
        return False
    contents[frame] = plain
    return True


def seal_image(contents, image_key, image_tags, image_first, first, last):
    for row in range(first, last):
        contents[row], image_tags[row] = sealed(contents[row], image_first + row, 0, DOMAIN_IMAGE, image_key[0])


def export_pages(world, refused_rc, frames, first, last, rc, counts):
    for i in range(first, last):
        frame = int(frames[i])
        seen, slot, page = int(world.state[frame]), int(world.owner[frame]), int(world.guest_page[frame])
        if seen in (NS, ASCE):
            answer(rc, counts, i, RC_DONE, COUNT_NOOP)
        elif is_held(seen):
            answer(rc, counts, i, RC_BUSY, COUNT_BUSY)
        elif seen >= DON_UV:
            answer(rc, counts, i, refused_rc, COUNT_REFUSED)
        elif int(world.records[slot][page]) & RECORD_CLAIMED:
            answer(rc, counts, i, RC_BUSY, COUNT_BUSY)
        else:
            version = int(world.records[slot][page]) >> 3
            if seen == SEC and world.wide:
                version += 1
                world.contents[frame], world.tags[slot][page] = sealed(
                    world.contents[frame], page, version, DOMAIN_LIVE, world.keys[slot]
                )
            world.records[slot][page] = version << 3 | (RECORD_OUT if seen == SEC else RECORD_OUT_SHARED)
            world.directory[slot * DIR_WORDS + DIR_EXPORTED] += 1
            world.state[frame], world.owner[frame] = NS, 0
            answer(rc, counts, i, RC_DONE, COUNT_DONE)


def import_pages(world, misc, codes, slot, pte, image_key, image_tags, image_first, pages, first, last, rc, counts):
    not_mapped, outside, foreign, _, _, _ = codes
    for i in range(first, last):
        page = int(pages[i])
        if not (0 <= page < pte.size and has_page(world.directory, slot, page)):
            answer(rc, counts, i, outside, COUNT_REFUSED)
            continue
        if pte[page] == 0:
            answer(rc, counts, i, not_mapped, COUNT_REFUSED)
            continue
        frame = int(pte[page]) - 1
        record = int(world.records[slot][page])
        seen, other, other_page = int(world.state[frame]), int(world.owner[frame]), int(world.guest_page[frame])
        take_over = misc and seen == SHR and other != slot
        if (
            record & RECORD_CLAIMED
            or is_held(seen)
            or (take_over and int(world.records[other][other_page]) & RECORD_CLAIMED)
        ):
            answer(rc, counts, i, RC_BUSY, COUNT_BUSY)
            continue
        if (seen, other, other_page) == (SEC, slot, page):
            world.records[slot][page] = record & ~3 | RECORD_IN
            answer(rc, counts, i, RC_DONE, COUNT_NOOP)
            continue
        if seen != NS and not take_over:
            answer(rc, counts, i, foreign, COUNT_REFUSED)
            continue
        code, content, state = content_of(world, slot, page, frame, codes, image_key, image_tags, image_first)
        if code != RC_DONE:
            answer(rc, counts, i, code, COUNT_REFUSED)
            continue
        if take_over:
            world.records[other][other_page] = int(world.records[other][other_page]) & ~3 | RECORD_OUT_SHARED
            world.directory[other * DIR_WORDS + DIR_EXPORTED] += 1
        if content is not None and world.wide:
            world.contents[frame] = content
        world.state[frame], world.owner[frame], world.guest_page[frame] = state, slot, page
        world.records[slot][page] = record & ~3 | RECORD_IN
        answer(rc, counts, i, RC_DONE, COUNT_DONE)


def content_of(world, slot, page, frame, codes, image_key, image_tags, image_first):
    """What a page has to hold for the guest after its import: (code, content or None for what it holds now, state)."""
    _, _, _, already_in, integrity, not_unpackable = codes
    record = int(world.records[slot][page])
    where, version = record & 3, record >> 3
    if image_first != NO_IMAGE:
        if where != RECORD_NEVER or not 0 <= page - image_first < len(image_tags):
            return not_unpackable, None, NS
        if not world.wide:
            return RC_DONE, None, SEC
        plain = opened(world.contents[frame], image_tags[page - image_first], page, 0, DOMAIN_IMAGE, image_key[0])
        return (integrity, None, NS) if plain is None else (RC_DONE, plain, SEC)
    if where == RECORD_NEVER:
        return RC_DONE, np.zeros(PAGE_SIZE, np.uint8), SEC
    if where == RECORD_IN:
        return already_in, None, NS
    if where == RECORD_OUT_SHARED:
        return RC_DONE, None, SHR
    if not world.wide:
        return RC_DONE, None, SEC
    plain = opened(world.contents[frame], world.tags[slot][page], page, version, DOMAIN_LIVE, world.keys[slot])
    return (integrity, None, NS) if plain is None else (RC_DONE, plain, SEC)


# --- references ------------------------------------------------------------------------------------------------------


def get_reference(host, frame):
    """0 taken, 1 nobody has it, 2 left to the side table. A frozen frame (mark, no references) is waited for."""
    if host[frame] == 0:
        return 1
    if host[frame] & REFERENCES >= REFERENCES_OVERFLOW - 1:
        return 2
    host[frame] += 1
    return 0


def drop_reference(host, frame):
    """The last one takes the marks along; a count in the side table is left to Python."""
    if host[frame] & REFERENCES == REFERENCES:
        return False
    host[frame] = host[frame] - 1 if host[frame] & REFERENCES > 1 else 0
    return True


def hold_mapped(pte, entry, host):
    """The frame that is mapped, with one reference more."""
    value = int(entry_of(pte, entry))
    return (get_reference(host, value - 1), value - 1) if value else (1, -1)


def get_references(host, frames, first, last):
    for i in range(first, last):
        if get_reference(host, frames[i]) != 0:
            return i
    return last


def hold_eight(pte, entry, host, frames, at):
    eight = pte[entry : entry + 8].astype(np.int64) - 1
    if eight[0] < 0 or np.any(np.diff(eight) != 1) or (host.ctypes.data + eight[0]) % 8:
        return 0
    counts = host[eight] & REFERENCES
    if np.any((counts == 0) | (counts > 61)):
        return 0
    host[eight] += 1
    frames[at : at + 8] = eight
    return 8


def gather(pte, at, end, host, limit, frames):
    count = 0
    for entry in range(at, end):
        if count == limit:
            return count, entry, 0
        if pte[entry]:
            taken = get_reference(host, pte[entry] - 1)
            if taken == 2:
                return count, entry, -1
            if taken == 0:
                frames[count] = pte[entry] - 1
                count += 1
    return count, end, 0


def look_up(pte, pages, host, frames, first, last):
    for i in range(first, last):
        frames[i] = -1
        if entry_of(pte, pages[i]):
            taken = get_reference(host, pte[pages[i]] - 1)
            if taken == 2:
                return i
            if taken == 0:
                frames[i] = pte[pages[i]] - 1
    return last


def settle(host, frames, first, last, rc, clear_mark, drop):
    freed = 0
    for i in range(first, last):
        byte = int(host[frames[i]])
        if drop and byte & REFERENCES == REFERENCES_OVERFLOW:
            return freed, i, False
        if drop and byte & REFERENCES == 0:
            return freed, i, True
        if clear_mark and rc[i] == RC_DONE:
            byte &= ~MARK_SECURE
        if drop:
            byte = byte - 1 if byte & REFERENCES > 1 else 0
            freed += byte == 0
        host[frames[i]] = byte
    return freed, last, False


def exchange_byte(host, frame, seen, after):
    if host[frame] != seen:
        return False
    host[frame] = after
    return True


def mark_frames(host, frames, mark, on, first, last):
    for i in range(first, last):
        host[frames[i]] = host[frames[i]] | mark if on else host[frames[i]] & ~np.uint8(mark)


def freeze(host, frames, expected, absent, held, first, last, rc):
    frozen = 0
    for i in range(first, last):
        if frames[i] < 0:
            rc[i] = absent
            continue
        byte = host[frames[i]]
        fits = not byte & MARK_WRITEBACK and byte & REFERENCES == expected != 0
        rc[i] = RC_DONE if fits else held
        if fits:
            host[frames[i]] = MARK_SECURE
            frozen += 1
    return frozen


def unfreeze(host, frames, expected, first, last, rc):
    for i in range(first, last):
        if rc[i] == RC_DONE:
            host[frames[i]] = MARK_SECURE | expected


def marked(host, frames, mark, first, last, answer):
    answer[first:last] = (host[frames[first:last]] & mark) != 0


def allocate(host, start, want, frames):
    count, at = 0, start
    for _ in range(host.size):
        if count == want:
            break
        at = 0 if at >= host.size else at
        if host[at] == 0:
            host[at] = 1
            frames[count] = at
            count += 1
        at += 1
    return count, at


def allocate_run(host, start, align, want):
    for at in range(-(-start // align) * align, host.size - want + 1, align):
        if not host[at : at + want].any():
            host[at : at + want] = 1
            return at
    return -1


def allocate_blocks(host, size, blocks):
    free = [first for first in range(0, host.size - size + 1, size) if not host[first : first + size].any()]
    for count, first in enumerate(free):
        host[first : first + size] = 1
        blocks[count] = first
    return len(free)


def map_pages(pte, pages, frames, first, last, mapped):
    for i in range(first, last):
        mapped[i] = pte[pages[i]] == 0
        if mapped[i]:
            pte[pages[i]] = frames[i] + 1


def unmap(pte, at, end, limit, frames):
    count = 0
    for entry in range(at, end):
        if count == limit:
            return count, entry
        if pte[entry]:
            frames[count] = pte[entry] - 1
            pte[entry] = 0
            count += 1
    return count, end


# --- scans -----------------------------------------------------------------------------------------------------------


def _guest_pages_of(state, owner, slot, first, last):
    seen = state[first:last] & STATE_MASK
    return (owner[first:last] == slot) & (seen >= SEC) & (seen <= PSH)


def wanted(state, owner, host, page_state, slot, mark, first, last):
    match = ((state & STATE_MASK) == page_state) & ((host & mark) == mark)
    if slot != 0xFFFF:
        match &= owner == slot
    return first + np.flatnonzero(match[first:last])


def find_frames(state, owner, host, page_state, slot, mark, first, last, frames):
    found = wanted(state, owner, host, page_state, slot, mark, first, last)
    count = min(found.size, frames.size)
    frames[:count] = found[:count]
    return count, (max(first, last) if count == found.size else found[count])


def count_frames(state, owner, host, page_state, slot, mark, first, last):
    return wanted(state, owner, host, page_state, slot, mark, first, last).size


def find_free_run(host, start, align, want):
    for at in range(-(-start // align) * align, host.size - want + 1, align):
        if not host[at : at + want].any():
            return at
    return -1


def census(state, owner, first, last, counts):
    np.add.at(counts, (owner[first:last], state[first:last] & STATE_MASK), 1)


def first_outside(frames, size):
    outside = np.flatnonzero((frames < 0) | (frames >= size))
    return int(outside[0]) if outside.size else -1


def count_owned(state, owner, slot, first, last):
    return int(np.count_nonzero(_guest_pages_of(state, owner, slot, first, last)))


def count_owned_below(state, owner, guest_page, slot, limit, first, last):
    return int(np.count_nonzero(_guest_pages_of(state, owner, slot, first, last) & (guest_page[first:last] < limit)))


def count_broken_frames(state, owner, host, first, last, counts):
    for byte, whose, kept in zip(state[first:last], owner[first:last], host[first:last], strict=True):
        seen = byte & STATE_MASK
        guest_page = seen in (SEC, SHR, PSH)
        counts[0] += kept == 0 and seen != NS
        counts[1] += seen == SEC and not kept & MARK_SECURE
        counts[2] += (guest_page and whose == 0) or (seen == NS and whose != 0)
        counts[3] += seen <= PSH and is_held(byte)


def count_double_owned(state, owner, guest_page, slot, seen_pages, first, last):
    pages = guest_page[first:last][_guest_pages_of(state, owner, slot, first, last)]
    twice = pages.size - np.unique(pages).size + int(np.count_nonzero(seen_pages[np.unique(pages)]))
    seen_pages[pages] = 1
    return twice


def count_references(host, pte, expected, first, last):
    mapped = pte[first:last][pte[first:last] != 0].astype(np.int64) - 1
    np.add.at(expected, mapped, 1)
    return 0


def compare_references(host, expected, first, last, wrong):
    bad = first + np.flatnonzero(host[first:last] & REFERENCES != expected[first:last])
    wrong[: bad.size] = bad[: wrong.size]
    return bad.size


def find_words(words, stamps, first, last, found):
    hits = [frame for frame in range(first, last) if np.isin(words[frame], stamps).any()]
    found[: len(hits)] = hits[: found.size]
    return len(hits)


def hash_frames(words, first, last, hashes):
    for frame in range(first, last):
        hashes[frame] = hash_words(words, frame)
    return 0


def find_hashes(words, table, first, last, found):
    members = set(table.tolist()) - {0}
    hits = [frame for frame in range(first, last) if hash_words(words, frame) in members]
    found[: len(hits)] = hits[: found.size]
    return len(hits)


def fill_hash_table(table, values):
    """Where a value lies in the table is the kernel's own business: only the set of members counts."""
    members = sorted(set(table.tolist()) | set(values.tolist()) - {0})
    table[:] = 0
    table[: len(members)] = members
    return 0


# --- page tables below segment tables: (segment, entry) says for each page what one flat array would ------------------


def flat_table(segment, entry):
    """The whole table as a flat one; a segment in one piece says its entries in one word."""
    pte = entry.copy()
    for number, word in enumerate(segment.tolist()):
        if not word >> 63:
            part = slice(number * 256, number * 256 + 256)
            first = word & 0xFFFFFFFF
            pte[part] = np.arange(first, first + pte[part].size) if first else 0
    return pte


def load_segment_entry(segment, entry, page):
    return int(flat_table(segment, entry)[page])


def split_segment(segment, entry, number):
    entry[number * 256 : number * 256 + 256] = flat_table(segment, entry)[number * 256 : number * 256 + 256]
    segment[number] = 1 << 63


def map_segment(segment, entry, pages, frames, i, last):
    page = int(pages[i])
    fits = page % 256 == 0 and i + 256 <= last and page + 256 <= entry.size
    if not fits or segment[page // 256] or np.any(np.diff(pages[i : i + 256]) != 1):
        return 0
    if np.any(np.diff(frames[i : i + 256]) != 1):
        return 0
    segment[page // 256] = frames[i] + 1
    return 256


def unmap_segment(segment, page, end, room):
    if page % 256 or page + 256 > end or room < 256 or segment[page // 256] in (0, 1 << 63):
        return -1
    first = int(segment[page // 256]) - 1
    segment[page // 256] = 0
    return first


def load_entries(pte, pages, shift, values):
    values[:] = [entry_of(pte, page + shift) for page in pages]


def frames_between(pte, first, last, frames):
    frames[:] = pte[first:last].astype(np.int64) - 1


def count_mapped(pte, first, last):
    return int(np.count_nonzero(pte[first:last]))


# --- batches ---------------------------------------------------------------------------------------------------------


def destroy_batches(
    contents, state, owner, directory, refused_rc, host, pte, at, end, limit, clear_mark, refused_stay, stop, gate,
    frames, rc, counts, tally,
):  # fmt: skip
    """The calls of a batch by their own twins, one after the other."""
    while at < end and tally[1] + frames.size <= limit and not stop[0] and not gate[0]:
        count, at, overflow = gather(pte, at, end, host, frames.size, frames)
        if count < frames.size:
            return (1 if count or overflow else 0), at, count, 0
        busy, refused = counts[COUNT_BUSY], counts[COUNT_REFUSED]
        destroy_pages(contents, state, owner, directory, refused_rc, frames, 0, count, rc, counts)
        tally[:] = tally[0] + 1, tally[1] + count, max(tally[2], count)
        if counts[COUNT_BUSY] > busy or (counts[COUNT_REFUSED] > refused and not refused_stay):
            return 2, at, count, 0
        settled = settle(host, frames, 0, count, rc, clear_mark, True)[1]
        if settled < count:
            return 2, at, count, settled
    return 0, at, 0, 0
