"""Rows of snapshots and dirty tracking against their twins."""

from __future__ import annotations

import numpy as np
import pytest
import twins

from lazypv.snapshot.store import LocalSource, Reader
from lazypv_kernels import reading, snapshots, tracking
from lazypv_kernels import rows as row_kernels
from lazypv_kernels.ciphers import AEGIS256
from lazypv_kernels.layout import (
    DIR_GENERATION,
    DIR_TRACK,
    DIR_WORDS,
    NS,
    RC_BUSY,
    RC_DONE,
    RECORD_IN,
    RECORD_OUT,
    SCRATCH_SIZE,
    SEC,
    SHR,
)

from .worlds import GUEST_PAGES, agree, assert_same_world, every_size, random_world, seeds

ROWS = 6
METADATA = 128
DIGITS = 40


def layout(rows=ROWS):
    """Where the columns of a small batch are."""
    ends = np.cumsum([METADATA, 4096 * rows, 8 * -(-4 * rows // 8), 8 * -(-rows // 8), 32 * rows, 8 * rows])
    return ends.astype(np.int64)


def a_key(rng):
    return rng.integers(0, 256, 32).astype(np.uint8)


def row_words(rng):
    return rng.integers(0, 2**63, 9).astype(np.uint64)


def a_sealed_batch(rng, kinds=None):
    """A batch of different pages under a key: (batch, at, key, ad, source, pages, kinds)."""
    at, key, ad = layout(), a_key(rng), row_words(rng)
    pages = np.sort(rng.choice(GUEST_PAGES, ROWS, replace=False))
    kinds = rng.integers(0, 3, ROWS).astype(np.uint8) if kinds is None else kinds
    source = rng.integers(0, 256, (ROWS, 4096)).astype(np.uint8)
    source[kinds == 0] = 0
    batch = rng.integers(0, 256, at[5]).astype(np.uint8)
    versions = rng.integers(0, 2**40, ROWS).astype(np.uint64)
    twins.seal_buffer(source, kinds, versions, key, ad, pages, batch, at)
    return batch, at, key, ad, source, pages, kinds


def scratch(pages=4):
    return np.zeros(pages * SCRATCH_SIZE, np.uint8)


@seeds(6)
def test_rows_of_a_buffer_are_sealed_as_the_twin_seals_them(seed):
    """Format: nonce, associated data and place of every column; nothing else of the batch is touched."""
    rng = np.random.default_rng(seed)
    batch, at, key, ad, source, pages, kinds = a_sealed_batch(rng)
    versions = rng.integers(0, 2**40, ROWS).astype(np.uint64)
    ours, theirs, spare = batch.copy(), batch.copy(), scratch(2)
    row_kernels.seal_buffer(source, kinds, versions, key, ad.copy(), pages, ours, at, spare)
    twins.seal_buffer(source, kinds, versions, key, ad, pages, theirs, at)
    np.testing.assert_array_equal(ours, theirs)
    assert not spare.any()


@pytest.mark.parametrize("rows", range(1, 6))
def test_a_batch_of_few_rows_keeps_all_of_its_columns(rows):
    """What libsodium writes behind the last page lies on other columns; with one row on that row's own tag."""
    rng = np.random.default_rng(rows)
    at, key, ad, pages = layout(rows), a_key(rng), row_words(rng), np.arange(rows)
    source = rng.integers(0, 256, (rows, 4096)).astype(np.uint8)
    kinds, versions = np.full(rows, 2, np.uint8), np.arange(rows).astype(np.uint64)
    ours, theirs = np.zeros(at[5], np.uint8), np.zeros(at[5], np.uint8)
    row_kernels.seal_buffer(source, kinds, versions, key, ad.copy(), pages, ours, at, scratch(2))
    twins.seal_buffer(source, kinds, versions, key, ad, pages, theirs, at)
    np.testing.assert_array_equal(ours, theirs)
    assert row_kernels.open_rows(ours, at, 0, rows, key, ad, scratch(2)) == -1
    np.testing.assert_array_equal(ours[at[0] : at[1]].reshape(rows, 4096), source)
    ours[at[0] : at[1]] = theirs[at[0] : at[1]]
    np.testing.assert_array_equal(ours, theirs)


@seeds(6)
def test_rows_are_opened_in_place_as_the_twin_opens_them(seed):
    rng = np.random.default_rng(seed)
    batch, at, key, ad, source, _, _ = a_sealed_batch(rng)
    ours, theirs = batch.copy(), batch.copy()
    assert row_kernels.open_rows(ours, at, 0, ROWS, key, ad.copy(), scratch(2)) == -1
    assert twins.open_rows(theirs, at, 0, ROWS, key, ad) == -1
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours[at[0] : at[1]].reshape(ROWS, 4096), source)


@pytest.mark.parametrize("column", range(5), ids=["page bytes", "guest page", "kind", "tag", "version"])
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["zero", "plain", "sealed"])
@seeds(4)
def test_a_bit_that_flips_in_any_column_of_any_kind_is_found_in_its_row(seed, kind, column):
    """Format: associated data covers what the cipher does not, so plain and elided rows cannot be forged either."""
    rng = np.random.default_rng(seed)
    batch, at, key, ad, _, _, _ = a_sealed_batch(rng, np.full(ROWS, kind, np.uint8))
    width = (4096, 4, 1, 32, 8)[column]
    row = int(rng.integers(0, ROWS))
    at_byte = at[column] + width * row + int(rng.integers(0, width))
    batch[at_byte] ^= np.uint8(1 << rng.integers(0, 8))
    assert row_kernels.open_rows(batch, at, 0, ROWS, key, ad, scratch(2)) == row


@seeds(2)
def test_a_row_does_not_open_under_another_batch_file_or_key(seed):
    rng = np.random.default_rng(seed)
    batch, at, key, ad, _, _, _ = a_sealed_batch(rng)
    for word in range(6):
        other = ad.copy()
        other[word] += np.uint64(1)
        assert row_kernels.open_rows(batch.copy(), at, 0, ROWS, key, other, scratch(2)) == 0
    other_key = key.copy()
    other_key[31] ^= 1
    assert row_kernels.open_rows(batch.copy(), at, 0, ROWS, other_key, ad, scratch(2)) == 0


@seeds(3)
def test_the_mac_of_a_batch_is_its_twin_and_covers_all_but_the_page_bytes(seed):
    rng = np.random.default_rng(seed)
    batch, at, key, *_ = a_sealed_batch(rng)
    file_id, index, spare = a_key(rng), int(rng.integers(0, 2**40)), scratch(4)
    theirs = batch.copy()
    assert row_kernels.batch_mac(batch, at, DIGITS, ROWS, file_id, index, key, spare, True)
    assert twins.batch_mac(theirs, at, DIGITS, ROWS, file_id, index, key, True)
    np.testing.assert_array_equal(batch, theirs)
    assert row_kernels.batch_mac(batch, at, DIGITS, ROWS, file_id, index, key, spare, False)
    assert not row_kernels.batch_mac(batch, at, DIGITS, ROWS, file_id, index + 1, key, spare, False)
    assert not row_kernels.batch_mac(batch, at, DIGITS, ROWS - 1, file_id, index, key, spare, False)
    outside = np.concatenate([np.arange(at[0]), np.arange(at[1], at[5])])
    for byte in rng.choice(outside, 60):
        batch[byte] ^= 1
        assert not row_kernels.batch_mac(batch, at, DIGITS, ROWS, file_id, index, key, spare, False)
        batch[byte] ^= 1
    batch[at[0]] ^= 1
    assert row_kernels.batch_mac(batch, at, DIGITS, ROWS, file_id, index, key, spare, False)


def a_guest_with_pages(rng, size, held):
    """A world whose guest 1 has pages in, exported and shared, as records say: (world, pte)."""
    world = random_world(rng, size, held=held)
    pte, some = np.zeros(GUEST_PAGES, np.uint32), rng.permutation(size)[:GUEST_PAGES]
    pte[: some.size] = np.where(rng.random(some.size) < 0.2, 0, some + 1)
    for page in np.flatnonzero(pte):
        frame = pte[page] - 1
        where = rng.integers(0, 4)
        if where == 1:
            world.records[1][page] = RECORD_IN
            world.state[frame], world.owner[frame], world.guest_page[frame] = rng.integers(1, 4), 1, page
        elif where == 2:
            world.records[1][page] = RECORD_OUT | 5 << 3
            world.state[frame] = NS
            world.contents[frame], world.tags[1][page] = twins.sealed(world.contents[frame], page, 5, 1, world.keys[1])
    return world, pte


@every_size
@seeds(5)
def test_rows_of_a_guest_are_sealed_as_the_twin_seals_them(seed, size):
    """Every record and frame state, held and torn ones; what was copied aside is taken from there."""
    rng = np.random.default_rng(seed)
    ours, pte = a_guest_with_pages(rng, size, held=0.2 if seed % 2 else 0.0)
    theirs = ours.copy()
    at, key, ad = layout(GUEST_PAGES), a_key(rng), row_words(rng)
    track = rng.integers(0, 3, (GUEST_PAGES, 2)).astype(np.uint32)
    aside, aside_kind = rng.integers(0, 256, (3, 4096)).astype(np.uint8), np.array([1, 2, 2], np.uint8)
    aside_of = rng.integers(0, 4, GUEST_PAGES).astype(np.uint32)
    out, pages = rng.integers(0, 256, at[5]).astype(np.uint8), np.arange(GUEST_PAGES)
    code = np.full(GUEST_PAGES, RC_BUSY, np.uint16)
    out2, code2, track2, spare = out.copy(), code.copy(), track.copy(), scratch()
    busy = snapshots.seal_rows(
        ours.contents, ours.state, ours.owner, ours.guest_page, ours.directory, ours.keys, AEGIS256, 1, pte, track, 2,
        aside, aside_kind, aside_of, key, ad.copy(), 7, pages, out, at, spare, code,
    )  # fmt: skip
    expected = twins.seal_rows(
        theirs, 1, pte, track2, 2, aside, aside_kind, aside_of, key, ad, 7, pages, out2, at, code2
    )
    assert busy == expected
    for mine, other in ((code, code2), (track, track2), (out, out2)):
        np.testing.assert_array_equal(mine, other)
    assert_same_world(ours, theirs)
    assert not spare.any()


@seeds(3)
def test_a_row_is_addressed_and_written_as_its_twin_is(seed):
    """Format: associated data, nonce, and the columns beside the page bytes and the tag."""
    rng = np.random.default_rng(seed)
    batch, at, _, ad, *_ = a_sealed_batch(rng)
    for row in range(ROWS):
        ours, theirs = np.zeros(13, np.uint64), np.zeros(13, np.uint64)
        row_kernels.address_of_row(batch, at, row, ad, ours[:9], ours[9:])
        twins.address_of_row(batch, at, row, ad, theirs[:9], theirs[9:])
        np.testing.assert_array_equal(ours, theirs)
        assert row_kernels.page_of(batch, at, row) == twins.page_of(batch, at, row)
    theirs = batch.copy()
    row_kernels.write_row(batch, at, 3, 77, 2, 2**40)
    twins.write_row(theirs, at, 3, 77, 2, 2**40)
    np.testing.assert_array_equal(batch, theirs)


@seeds(4)
def test_packed_batches_are_checked_as_the_twin_checks_them(seed):
    """Of one that is altered, moved, or not the one in the list the number is told."""
    rng = np.random.default_rng(seed)
    file_id, first = a_key(rng), int(rng.integers(0, 3))
    macs, key, packed = rng.integers(0, 256, (first + 4, 32)).astype(np.uint8), a_key(rng), []
    for k in range(4):
        batch, at, *_ = a_sealed_batch(rng)
        twins.batch_mac(batch, at, DIGITS, ROWS, file_id, first + k, key, True)
        macs[first + k] = np.frombuffer(bytes.fromhex(batch[DIGITS : DIGITS + 64].tobytes().decode()), np.uint8)
        packed.append(twins.packed(batch, at))
    packed = np.array(packed)

    def agreed(altered, listed):
        before = altered.copy()
        found = row_kernels.check_packed(altered, DIGITS, ROWS, file_id, first, listed, key)
        np.testing.assert_array_equal(altered[:, 48:], before[:, 48:])
        assert found == twins.check_packed(before, DIGITS, ROWS, file_id, first, listed, key)
        return found

    assert agreed(packed.copy(), macs) == -1
    assert agreed(packed[[0, 2, 1, 3]], macs) == 1
    for byte in rng.integers(48, packed.shape[1], 30):
        altered, where = packed.copy(), int(rng.integers(0, 4))
        altered[where, byte] ^= 1
        assert agreed(altered, macs) == where
    macs[first + 2, 31] ^= 1
    assert agreed(packed.copy(), macs) == 2


@seeds(4)
def test_what_a_restore_wants_is_chosen_as_the_twin_chooses_it(seed):
    """Not what is zero, not what a newer file has; a page beyond the guest ends it before it is looked up."""
    rng = np.random.default_rng(seed)
    batches = [a_sealed_batch(rng) for _ in range(3)]
    at = batches[0][1]
    packed = np.array([twins.packed(batch, at) for batch, *_ in batches])
    size = GUEST_PAGES if seed else int(max(pages.max() for *_, pages, _ in batches[1:2]))
    ours = [rng.random(size) < 0.3, *(np.zeros(n, np.int64) for n in (3 * ROWS, 3 * ROWS, 4))]
    theirs = [each.copy() for each in ours]
    good = row_kernels.choose_rows(packed, at, ROWS, *ours)
    assert good == twins.choose_rows(packed, at, ROWS, *theirs)
    assert (good == 3) == bool(seed)
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, its)


def a_guest_to_restore(rng, size, seed):
    """A world in which guest 1 has had no page, and where its pages will be; in one of them something is in the way."""
    world, pte = random_world(rng, size, held=0.0), np.zeros(GUEST_PAGES, np.uint32)
    if size:
        some = rng.permutation(size)[:GUEST_PAGES]
        pte[: some.size] = some + 1
        world.state[some] = NS
        world.records[1][:] = 0
        if seed == 4:
            world.state[some[0]], world.records[1][3] = SEC, 4
    return world, pte


@every_size
@pytest.mark.parametrize("whole", [False, True], ids=["rows", "whole"])
@pytest.mark.parametrize("flip", [False, True], ids=["as sealed", "altered"])
@seeds(5)
def test_rows_are_restored_as_the_twin_restores_them(seed, flip, whole, size):
    """All rows become the guest's, or none does and the frames are clear: no page of a damaged batch is the guest's."""
    rng = np.random.default_rng(seed)
    batch, at, key, ad, *_ = a_sealed_batch(rng)
    ours, pte = a_guest_to_restore(rng, size, seed)
    if flip:
        batch[at[0] + int(rng.integers(0, 4096 * ROWS))] ^= 1
    theirs, rows = ours.copy(), np.sort(rng.permutation(ROWS)[:5])
    rc, rc2, mine, its = np.zeros(5, np.uint16), np.zeros(5, np.uint16), batch.copy(), batch.copy()
    bad = snapshots.restore_rows(
        ours.contents, ours.state, ours.owner, ours.guest_page, ours.directory, 1, pte, mine, at, rows, whole, key,
        ad.copy(), scratch(2), rc,
    )  # fmt: skip
    assert bad == twins.restore_rows(theirs, 1, pte, its, at, rows, whole, key, ad, rc2)
    np.testing.assert_array_equal(rc, rc2)
    assert_same_world(ours, theirs)


@pytest.fixture
def reader(tmp_path):
    """Makes of bytes a file, and what kernels read it with."""
    opened = []

    def make(content):
        path = tmp_path / str(len(opened))
        path.write_bytes(content)
        opened.append(LocalSource(path))
        return Reader(opened[-1]).arguments

    yield make
    for source in opened:
        source.close()


@pytest.mark.parametrize("missing", [0, 1, 9, 24000])
@seeds(2)
def test_batches_are_read_without_their_page_bytes_as_the_twin_reads_them(reader, seed, missing):
    """Of a file that is too short the number of whole batches is told."""
    rng = np.random.default_rng(seed)
    at = layout()
    file = rng.integers(0, 256, 40 + 3 * at[5] - missing).astype(np.uint8).tobytes()
    ours, theirs = (np.zeros((3, 48 + at[0] + at[5] - at[1]), np.uint8) for _ in range(2))
    whole = reading.read_packed(*reader(file), 40, at, ours)
    assert whole == twins.read_packed(file, 40, at, theirs) == (2 if missing else 3)
    np.testing.assert_array_equal(ours[:whole], theirs[:whole])


@pytest.mark.parametrize("short", [1, 2, 7])
def test_what_reads_a_little_at_a_time_is_asked_again(short):
    """As pread may; and an error of what reads is told, not spun on."""
    content = np.random.default_rng(short).integers(0, 256, 50).astype(np.uint8)

    class Slow:
        def read_into(self, buffer, offset):
            piece = content[offset : offset + min(short, buffer.size)]
            buffer[: piece.size] = piece
            return piece.size

    class Broken:
        def read_into(self, buffer, offset):
            raise OSError(5, "Input/output error")

    kept, broken, ours = Reader(Slow()), Reader(Broken()), np.zeros(20, np.uint8)
    assert reading.read_all(*kept.arguments, ours, 10)
    theirs = np.zeros(20, np.uint8)
    assert twins.read_all(content.tobytes(), theirs, 10)
    np.testing.assert_array_equal(ours, theirs)
    assert not reading.read_all(*kept.arguments, ours, 40)
    assert not reading.read_all(*broken.arguments, ours, 0)
    assert "Input/output error" in str(broken.problem("a.arrow", 3))


@every_size
@pytest.mark.parametrize("damage", ["none", "flip", "end"])
@seeds(5)
def test_batches_are_restored_as_the_twin_restores_them(reader, seed, damage, size):
    """One by one: those before a damaged one are the guest's, nothing behind it is touched."""
    rng = np.random.default_rng(seed)
    first, key, ad, at = 3, a_key(rng), row_words(rng), layout(2)
    pages = rng.permutation(GUEST_PAGES)[:6].reshape(3, 2)
    batches = np.zeros((3, at[5]), np.uint8)
    for k in range(3):
        words = ad.copy()
        words[5] = first + k
        source, kinds = rng.integers(0, 256, (2, 4096)).astype(np.uint8), np.full(2, 1 + k % 2, np.uint8)
        twins.seal_buffer(source, kinds, np.arange(2), key, words, np.sort(pages[k]), batches[k], at)
    packed = np.array([twins.packed(batch, at) for batch in batches])
    if damage == "flip":
        batches[int(rng.integers(0, 3)), at[0] + int(rng.integers(0, 8192))] ^= 1
    file = bytes(16) + batches.tobytes()[: at[5] * 2 + 99 if damage == "end" else None]
    ours, pte = a_guest_to_restore(rng, size, seed)
    theirs, rows, bounds = ours.copy(), np.array([0, 1, 1, 0]), np.array([0, 2, 3, 4])
    rc, rc2 = np.zeros(4, np.uint16), np.zeros(4, np.uint16)
    bad = snapshots.restore_batches(
        ours.contents, ours.state, ours.owner, ours.guest_page, ours.directory, 1, pte, *reader(file), 16,
        np.zeros(at[5], np.uint8), packed, at, rows, bounds, first, key, ad.copy(), scratch(2), rc,
    )  # fmt: skip
    assert bad == twins.restore_batches(theirs, 1, pte, file, 16, packed, at, rows, bounds, first, key, ad, rc2)
    np.testing.assert_array_equal(rc, rc2)
    assert_same_world(ours, theirs)


# --- dirty tracking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["open", "saving", "closed"])
@seeds(3)
def test_a_store_notes_itself_or_waits(seed, mode):
    """While a snapshot is saved a store waits unless its page has been saved; closed, every store waits."""
    rng = np.random.default_rng(seed)
    track = rng.integers(0, 4, (GUEST_PAGES, 2)).astype(np.uint32)
    theirs, word = track.copy(), np.uint64(3 << 2 | mode)
    directory = np.zeros(2 * DIR_WORDS, np.uint64)
    directory[DIR_WORDS + DIR_TRACK], directory[DIR_WORDS + DIR_GENERATION] = track.ctypes.data, word
    answers = [tracking.note_store(directory, 1, page) for page in range(GUEST_PAGES)]
    assert answers == [twins.note_store(word, theirs, page) for page in range(GUEST_PAGES)]
    np.testing.assert_array_equal(track, theirs)
    assert tracking.note_store(directory, 0, 5)
    assert twins.note_store(word, None, 5)


def test_a_published_word_is_there():
    agree(tracking.publish_word, twins.publish_word, np.zeros(4, np.uint64), 2, 7 << 2 | 1)


@seeds(5)
def test_pages_are_chosen_by_generation(seed):
    """Incremental: pages written since, and shared ones that the host holds; all others may be written at once."""
    rng = np.random.default_rng(seed)
    track = rng.integers(0, 5, (GUEST_PAGES, 2)).astype(np.uint32)
    records = rng.integers(0, 64, GUEST_PAGES).astype(np.uint64)
    agree(tracking.choose_pages, twins.choose_pages, track, records, seed, 9, np.zeros(GUEST_PAGES, np.int64))


@every_size
@seeds(4)
def test_pages_are_copied_aside_as_the_twin_copies_them(seed, size):
    """Copy-on-write: content and kind of what the guest has now; what has been saved is left alone."""
    rng = np.random.default_rng(seed)
    ours, pte = a_guest_with_pages(rng, size, held=0.2 if seed % 2 else 0.0)
    theirs = ours.copy()
    pages, rows = np.arange(GUEST_PAGES), rng.permutation(GUEST_PAGES)
    mine = [
        rng.integers(1, 3, (GUEST_PAGES, 2)).astype(np.uint32), np.zeros((GUEST_PAGES, 4096), np.uint8),
        np.zeros(GUEST_PAGES, np.uint8), np.zeros(GUEST_PAGES, np.uint32), np.zeros(GUEST_PAGES, np.uint16),
    ]  # fmt: skip
    other = [array.copy() for array in mine]
    copied = tracking.copy_aside(
        ours.contents, ours.state, ours.owner, ours.guest_page, ours.directory, 1, pte, mine[0], 2, pages, rows,
        *mine[1:],
    )  # fmt: skip
    assert copied == twins.copy_aside(theirs, 1, pte, other[0], 2, pages, rows, *other[1:])
    for one, two in zip(mine, other, strict=True):
        np.testing.assert_array_equal(one, two)
    assert_same_world(ours, theirs)


def test_what_is_shared_is_kept_as_shared():
    """A page that the guest shares is a plain row, also when it was copied aside."""
    rng = np.random.default_rng(1)
    world = random_world(rng, 2, held=0.0)
    world.state[:], world.owner[:], world.guest_page[:] = SHR, 1, [0, 1]
    world.records[1][:2] = RECORD_IN
    kinds, code, of = np.zeros(2, np.uint8), np.zeros(2, np.uint16), np.zeros(GUEST_PAGES, np.uint32)
    tracking.copy_aside(
        world.contents, world.state, world.owner, world.guest_page, world.directory, 1,
        np.array([1, 2] + [0] * 10, np.uint32), np.zeros((GUEST_PAGES, 2), np.uint32), 1, np.arange(2), np.arange(2),
        np.zeros((2, 4096), np.uint8), kinds, of, code,
    )  # fmt: skip
    assert kinds.tolist() == [1, 1]
    assert code.tolist() == [tracking.RC_COPIED] * 2
    assert RC_DONE not in code
