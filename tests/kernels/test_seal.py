"""Import, export and the cipher: against their twins, against libsodium, and against a host that forges."""

from __future__ import annotations

import numpy as np
import pytest
import twins

from lazypv_kernels import ciphers, seal
from lazypv_kernels.ciphers import AEGIS256
from lazypv_kernels.layout import (
    DIR_TAGS,
    DIR_WORDS,
    NO_IMAGE,
    NS,
    PAGE_SIZE,
    RC_DONE,
    RECORD_IN,
    RECORD_NEVER,
    RECORD_OUT,
    SCRATCH_SIZE,
    SEC,
    SHR,
    TAG_SIZE,
)

from .worlds import (
    CODES,
    GUEST_PAGES,
    SLOTS,
    assert_same_world,
    codes_and_counts,
    every_size,
    random_frames,
    random_pte,
    random_world,
    seeds,
    with_and_without_contents,
)

RC_INTEGRITY = int(CODES[4])
NO_KEY, NO_TAGS = np.zeros((1, 32), np.uint8), np.zeros((0, 32), np.uint8)


def new_scratch():
    return np.zeros(2 * SCRATCH_SIZE, np.uint8)


def export(world, frames, scratch=None, cipher=AEGIS256):
    """The kernel on `world`: (rc, counts)."""
    frames = np.asarray(frames, np.int64)
    rc, counts = codes_and_counts(frames.size)
    seal.export_pages(
        world.contents, world.state, world.owner, world.guest_page, world.directory, world.keys, world.wide, cipher,
        0xF08, new_scratch() if scratch is None else scratch, frames, 0, frames.size, rc, counts,
    )  # fmt: skip
    return rc, counts


def bring_in(world, slot, pte, pages, misc=False, image=(NO_KEY, NO_TAGS, NO_IMAGE), scratch=None, cipher=AEGIS256):
    """The kernel on `world`: (rc, counts)."""
    pages = np.asarray(pages, np.int64)
    rc, counts = codes_and_counts(pages.size)
    seal.import_pages(
        world.contents, world.state, world.owner, world.guest_page, world.directory, world.keys, world.wide, cipher,
        misc, CODES, new_scratch() if scratch is None else scratch, slot, pte, *image, pages, 0, pages.size, rc, counts,
    )  # fmt: skip
    return rc, counts


def assert_same_answers(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


@with_and_without_contents
@every_size
@seeds(3)
def test_exporting_is_its_twin(seed, size, contents):
    """Semantics 2.2, 2.3: secure pages sealed, shared ones released as they are, held and donated ones left."""
    rng = np.random.default_rng(seed)
    ours = random_world(rng, size, contents)
    theirs = ours.copy()
    frames = random_frames(rng, size, 2 * size)
    rc, counts = codes_and_counts(frames.size)
    twins.export_pages(theirs, 0xF08, frames, 0, frames.size, rc, counts)
    assert_same_answers(export(ours, frames), (rc, counts))
    assert_same_world(ours, theirs)


@with_and_without_contents
@pytest.mark.parametrize("misc", [False, True], ids=["", "feature bit 0"])
@every_size
@seeds(5)
def test_importing_is_its_twin(seed, size, misc, contents):
    """Semantics 2.2, 2.3: first import, import after an export, foreign, moved, altered and held pages."""
    rng = np.random.default_rng(seed)
    ours = random_world(rng, size, contents, held=0.1)
    export(ours, np.flatnonzero(rng.random(size) < 0.4))
    for frame in np.flatnonzero((ours.state == NS) & (rng.random(size) < 0.1)):
        ours.contents[frame : frame + 1, 17] ^= 1
    theirs = ours.copy()
    for slot in range(1, SLOTS + 1):
        pte = random_pte(rng, size, GUEST_PAGES + 3)
        where = np.flatnonzero((ours.state == NS) & (rng.random(size) < 0.6))
        pte[ours.guest_page[where]] = where + 1
        pages = rng.integers(-2, GUEST_PAGES + 5, 3 * GUEST_PAGES)
        rc, counts = codes_and_counts(pages.size)
        twins.import_pages(theirs, misc, CODES, slot, pte, NO_KEY, NO_TAGS, NO_IMAGE, pages, 0, pages.size, rc, counts)
        assert_same_answers(bring_in(ours, slot, pte, pages, misc), (rc, counts))
        assert_same_world(ours, theirs)


@with_and_without_contents
@seeds(4)
def test_unpacking_an_image_is_its_twin(seed, contents):
    """Semantics 2.3, UNPACK_IMG: pages of the image, once each, unaltered; nothing else."""
    rng = np.random.default_rng(seed)
    ours = random_world(rng, 40, contents, held=0.0)
    ours.state[:], ours.owner[:] = NS, 0
    ours.records[2][:] = RECORD_NEVER
    first, pte = 3, np.arange(1, GUEST_PAGES + 1, dtype=np.uint32)
    key, tags = rng.integers(0, 256, (1, 32)).astype(np.uint8), np.zeros((6, TAG_SIZE), np.uint8)
    if contents:
        image = ours.contents[first : first + 6]
        expected, expected_tags = image.copy(), tags.copy()
        seal.seal_image(image, key, tags, first, np.empty(SCRATCH_SIZE, np.uint8), 0, 6)
        twins.seal_image(expected, key, expected_tags, first, 0, 6)
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(tags, expected_tags)
        ours.contents[first + 4, 99] ^= 1
    theirs = ours.copy()
    pages = np.arange(GUEST_PAGES).repeat(2)
    rc, counts = codes_and_counts(pages.size)
    twins.import_pages(theirs, False, CODES, 2, pte, key, tags, first, pages, 0, pages.size, rc, counts)
    assert_same_answers(bring_in(ours, 2, pte, pages, image=(key, tags, first)), (rc, counts))
    assert_same_world(ours, theirs)
    assert counts.tolist()[:2] == ([5, 5] if contents else [6, 6])


@with_and_without_contents
def test_of_an_image_without_pages_nothing_can_be_unpacked(contents):
    """Semantics 2.3: UNPACK_IMG brings in pages of the image, and no others as if they were imported."""
    ours = random_world(np.random.default_rng(1), 40, contents, held=0.0)
    theirs, pte, pages = ours.copy(), np.arange(1, GUEST_PAGES + 1, dtype=np.uint32), np.arange(GUEST_PAGES)
    rc, counts = codes_and_counts(pages.size)
    twins.import_pages(theirs, False, CODES, 2, pte, NO_KEY, NO_TAGS, 0, pages, 0, pages.size, rc, counts)
    assert_same_answers(bring_in(ours, 2, pte, pages, image=(NO_KEY, NO_TAGS, 0)), (rc, counts))
    assert_same_world(ours, theirs)
    assert CODES[5] in rc


# --- one configuration, slot 1, whose guest page g lies in frame g ----------------------------------------------------

PTE = np.arange(1, GUEST_PAGES + 1, dtype=np.uint32)


@pytest.fixture
def world():
    """Every guest page secure in the frame of its own number, with random content; all other frames the host's."""
    made = random_world(np.random.default_rng(7), 2 * GUEST_PAGES, held=0.0)
    made.state[:], made.owner[:], made.guest_page[:] = NS, 0, 0
    made.state[:GUEST_PAGES], made.owner[:GUEST_PAGES], made.guest_page[:GUEST_PAGES] = SEC, 1, np.arange(GUEST_PAGES)
    made.records[1][:] = RECORD_IN
    return made


def assert_refused(world, page, frame):
    """The import fails with an integrity error and leaves what the host has, and the record, as they were."""
    before = world.copy()
    pte = PTE.copy()
    pte[page] = frame + 1
    scratch = new_scratch()
    rc, counts = bring_in(world, 1, pte, [page], scratch=scratch)
    assert rc[0] == RC_INTEGRITY
    assert counts.tolist() == [0, 0, 0, 1]
    assert_same_world(world, before)
    assert not scratch[SCRATCH_SIZE:].any()


def test_exported_bytes_and_tag_are_what_libsodium_gives_under_the_documented_nonce(world):
    """Design, cryptography: AEGIS-256; nonce = guest page, version, domain 1, 0."""
    plain = world.contents.copy()
    export(world, range(GUEST_PAGES))
    for page in range(GUEST_PAGES):
        cipher, tag = twins.sealed(plain[page], page, 1, 1, world.keys[1])
        np.testing.assert_array_equal(world.contents[page], cipher)
        np.testing.assert_array_equal(world.tags[1][page], tag)


def test_an_exported_page_comes_back_as_the_guest_left_it(world):
    """Invariant 31, wherever the host has put the ciphertext meanwhile."""
    plain = world.contents[5].copy()
    export(world, [5])
    assert not np.array_equal(world.contents[5], plain)
    world.contents[20], world.contents[5] = world.contents[5], 0
    pte = PTE.copy()
    pte[5] = 21
    rc, _ = bring_in(world, 1, pte, [5])
    assert rc[0] == RC_DONE
    np.testing.assert_array_equal(world.contents[20], plain)


@pytest.mark.parametrize("byte", [0, 1, 2047, 4095])
@pytest.mark.parametrize("bit", [0, 7])
def test_altered_content_is_refused(world, byte, bit):
    """Semantics 2.3: decrypted and integrity-checked."""
    export(world, [5])
    world.contents[5, byte] ^= 1 << bit
    assert_refused(world, 5, 5)


@pytest.mark.parametrize("byte", [0, 15, 16, 31])
def test_an_altered_tag_is_refused(world, byte):
    """The integrity record is the whole tag."""
    export(world, [5])
    world.tags[1][5, byte] ^= 1
    assert_refused(world, 5, 5)


def test_two_exported_pages_in_each_others_place_are_refused(world):
    """The nonce names the guest page; content and tag swapped together do not help either."""
    world.contents[6] = world.contents[5]
    export(world, [5, 6])
    assert_refused(world, 5, 6)
    assert_refused(world, 6, 5)
    world.tags[1][[5, 6]] = world.tags[1][[6, 5]]
    assert_refused(world, 5, 6)
    assert_refused(world, 6, 5)


def test_an_older_version_of_a_page_is_refused(world):
    """A replay: what the host kept from an earlier export, even with the tag of that time."""
    export(world, [5])
    old_content, old_tag = world.contents[5].copy(), world.tags[1][5].copy()
    bring_in(world, 1, PTE, [5])
    export(world, [5])
    world.contents[5] = old_content
    assert_refused(world, 5, 5)
    world.tags[1][5] = old_tag
    assert_refused(world, 5, 5)


def test_another_configurations_page_is_refused(world):
    """Every configuration has a key of its own."""
    export(world, [5])
    world.records[2][5], world.tags[2][5] = world.records[1][5], world.tags[1][5]
    before = world.contents[5].copy()
    rc, _ = bring_in(world, 2, PTE, [5])
    assert rc[0] == RC_INTEGRITY
    np.testing.assert_array_equal(world.contents[5], before)


def test_scratch_holds_no_plain_text_afterwards(world):
    """Design: decrypts into a scratch page, verifies, copies on success, clears the scratch."""
    scratch = new_scratch()
    plain = world.contents[:GUEST_PAGES].copy()
    export(world, range(GUEST_PAGES), scratch)
    assert not scratch[SCRATCH_SIZE:].any()
    assert bytes(plain[-1, :16]) not in scratch.tobytes()
    rc, _ = bring_in(world, 1, PTE, range(GUEST_PAGES), scratch=scratch)
    assert (rc == RC_DONE).all()
    np.testing.assert_array_equal(world.contents[:GUEST_PAGES], plain)
    assert not scratch[SCRATCH_SIZE:].any()
    assert all(bytes(page[:16]) not in scratch.tobytes() for page in plain)


def test_the_version_rises_with_each_export_and_never_falls(world):
    """Design: raised before the call and never taken back, also on failure; so no nonce comes twice under a key."""
    rng = np.random.default_rng(3)
    nonces = set()
    version = np.zeros(GUEST_PAGES, np.int64)
    for _ in range(60):
        frames = rng.permutation(GUEST_PAGES)[:5]
        was_secure = frames[world.state[frames] == SEC]
        export(world, frames)
        now = (world.records[1] >> np.uint64(3)).astype(np.int64)
        for page in was_secure:
            assert now[page] == version[page] + 1
            nonce = twins.nonce_of(page, now[page], 1)
            assert nonce not in nonces
            nonces.add(nonce)
            np.testing.assert_array_equal(
                world.tags[1][page],
                twins.sealed(twins.opened(world.contents[page], world.tags[1][page], page, now[page], 1, world.keys[1]),
                             page, now[page], 1, world.keys[1])[1],
            )  # fmt: skip
        version = now
        again = rng.permutation(GUEST_PAGES)[:5]
        broken = again[:1]
        world.contents[broken] ^= np.uint8(world.state[broken] == NS)[:, None]
        bring_in(world, 1, PTE, again)
        world.contents[broken] ^= np.uint8(world.state[broken] == NS)[:, None]
        np.testing.assert_array_equal((world.records[1] >> np.uint64(3)).astype(np.int64), version)
    assert len(nonces) > 100


def test_a_refused_take_over_leaves_a_shared_page_with_its_owner(world):
    """Feature bit 0: ownership passes with a successful import, and only with one."""
    world.state[3], world.owner[3], world.guest_page[3] = SHR, 2, 8
    world.records[1][4], world.records[2][8] = RECORD_OUT | 1 << 3, RECORD_IN
    before = world.copy()
    pte = PTE.copy()
    pte[4] = 4
    rc, _ = bring_in(world, 1, pte, [4], misc=True)
    assert rc[0] == RC_INTEGRITY
    assert_same_world(world, before)
    world.records[1][4] = RECORD_NEVER
    rc, _ = bring_in(world, 1, pte, [4], misc=True)
    assert rc[0] == RC_DONE
    assert (world.state[3], world.owner[3], world.guest_page[3]) == (SEC, 1, 4)
    assert not world.contents[3].any()


@seeds(3)
def test_sealing_and_opening_one_page_are_their_twins(seed):
    """Everything that depends on the cipher depends on these two."""
    rng = np.random.default_rng(seed)
    ours = random_world(rng, 3)
    theirs = ours.copy()
    nonce = rng.integers(0, 2**64, 4, np.uint64)
    nonce[3] = 0
    tag_address = ours.directory[DIR_WORDS + DIR_TAGS]
    seal.seal_page(ours.contents, 1, tag_address, nonce, ours.keys, 2, new_scratch(), AEGIS256)
    twins.seal_page(theirs.contents, 1, theirs.tags[1][0], nonce, theirs.keys, 2)
    assert_same_world(ours, theirs)
    if ciphers.DETACHED:
        into = np.zeros(SCRATCH_SIZE, np.uint8)
        assert ciphers.decrypt_bare(ours.contents, 1, tag_address, nonce, ours.keys[2:3], into)
        expected = np.zeros(SCRATCH_SIZE, np.uint8)
        assert twins.decrypt_bare(theirs.contents, 1, theirs.tags[1][0], nonce, theirs.keys[2:3], expected)
        np.testing.assert_array_equal(into, expected)
        assert not ciphers.decrypt_bare(ours.contents, 1, tag_address, nonce, ours.keys[1:2], into)
    for key in (1, 2):
        assert seal.open_page(
            ours.contents, 1, tag_address, nonce, ours.keys, key, new_scratch(), AEGIS256
        ) == twins.open_page(theirs.contents, 1, theirs.tags[1][0], nonce, theirs.keys, key)
        assert_same_world(ours, theirs)


# --- AES-256-GCM -------------------------------------------------------------------------------------------------

needs_gcm = pytest.mark.skipif(not ciphers.HAS_AES256GCM, reason="libsodium has no AES-256-GCM on this CPU")


@needs_gcm
@seeds(3)
def test_a_page_under_aes_256_gcm_is_what_another_library_makes_of_it(seed):
    """For people who must: version and domain, then the guest page, are the 12 bytes of the nonce; the tag has 16."""
    aead = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead")
    rng = np.random.default_rng(seed)
    world = random_world(rng, 2, held=0.0)
    world.state[:], world.owner[:], world.guest_page[:] = SEC, (1, 2), (5, 7)
    world.records[1][5] = world.records[2][7] = RECORD_IN | 41 << 3
    plain = world.contents.copy()
    rc, _ = export(world, [0, 1], cipher=ciphers.AES256GCM)
    assert (rc == RC_DONE).all()
    for frame, slot, page in ((0, 1, 5), (1, 2, 7)):
        nonce = (1 << 61 | 42).to_bytes(8, "little") + page.to_bytes(4, "little")
        sealed = aead.AESGCM(world.keys[slot].tobytes()).encrypt(nonce, plain[frame].tobytes(), None)
        tag = world.tags[slot][page]
        assert world.contents[frame].tobytes() + tag[:16].tobytes() == sealed
        assert not tag[16:].any()


@needs_gcm
def test_under_aes_256_gcm_only_the_very_page_of_the_last_export_comes_back():
    """Invariants 30, 31: altered, swapped, replayed and moved pages are refused and left as they are."""
    rng = np.random.default_rng(5)
    world = random_world(rng, 2, held=0.0)
    world.state[:], world.owner[:], world.guest_page[:] = SEC, 1, (4, 6)
    world.records[1][:] = RECORD_IN
    plain = world.contents.copy()
    pte = np.zeros(GUEST_PAGES, np.uint32)
    pte[[4, 6]] = 1, 2
    gcm = {"cipher": ciphers.AES256GCM}
    export(world, [0, 1], **gcm)
    old = world.contents.copy()
    scratch = new_scratch()
    assert (bring_in(world, 1, pte, [4, 6], scratch=scratch, **gcm)[0] == RC_DONE).all()
    assert not scratch.any()
    np.testing.assert_array_equal(world.contents, plain)
    export(world, [0, 1], **gcm)
    new = world.contents.copy()
    assert (new != old).any(axis=1).all()
    for forged in (old, new[::-1], new ^ np.uint8(1)):
        world.contents[:] = forged
        assert (bring_in(world, 1, pte, [4, 6], **gcm)[0] == RC_INTEGRITY).all()
        np.testing.assert_array_equal(world.contents, forged)
    world.contents[:] = new
    assert (bring_in(world, 1, pte, [4, 6])[0] == RC_INTEGRITY).all(), "the other cipher"
    assert (bring_in(world, 1, pte, [4, 6], **gcm)[0] == RC_DONE).all()
    np.testing.assert_array_equal(world.contents, plain)


def test_no_two_versions_domains_or_pages_have_a_nonce_in_common():
    """Design, cryptography: guest page and version; live export and images are separate domains."""
    for cipher in ciphers.CIPHERS.values():
        seen = set()
        for page in (0, 1, 2**32 - 1):
            for version in (0, 1, 2**61 - 1):
                for domain in (1, 2, 3):
                    nonce = np.full(4, 7, np.uint64)
                    ciphers.write_nonce(nonce, page, version, domain, cipher)
                    expected = np.zeros(4, np.uint64)
                    twins.write_nonce(expected, page, version, domain, cipher)
                    np.testing.assert_array_equal(nonce, expected)
                    seen.add(nonce.tobytes()[: 32 if cipher == ciphers.AEGIS256 else 12])
        assert len(seen) == 27


def test_a_page_is_4096_bytes():
    """The real page size: sealed pages and tags are laid out for it."""
    assert (PAGE_SIZE, TAG_SIZE, SCRATCH_SIZE) == (4096, 32, 4128)
