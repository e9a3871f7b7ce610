"""Export and import of a guest's pages, one core, against the cipher alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import ModelError
from lazypv.scenario import VM, Host
from lazypv.sizes import PAGE_SIZE
from lazypv.ultravisor import vault
from lazypv_bench.harness import Limit, Work, benchmark
from lazypv_bench.limits import cipher
from lazypv_bench.rig import Rig, frames_of
from lazypv_bench.rivals import SLOW_RIVAL_PAGES, contents_of
from lazypv_kernels import scan
from lazypv_kernels.arrays import U8, U64
from lazypv_kernels.ciphers import AEGIS256, DETACHED, decrypt_bare, open_page, seal_page, write_nonce
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import KEY_SIZE, NS, SCRATCH_SIZE, SEC, TAG_SIZE
from lazypv_kernels.native import address_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from numpy.typing import NDArray

GCM_NONCE_SIZE: Final = 12
OPENSSL: Final = shutil.which("openssl")


def pyca_aes256gcm(_rig: Rig, subject: Work) -> Work:
    """`cryptography`'s AES-256-GCM, page by page."""
    pages, sealer = _pages_of(subject), _pyca()

    def run() -> None:
        for row, page in enumerate(pages):
            sealer.encrypt(row.to_bytes(GCM_NONCE_SIZE, "little"), page, None)

    return Work(run=run, bytes=len(pages) * PAGE_SIZE)


def pyca_aes256gcm_opened(_rig: Rig, subject: Work) -> Work:
    """The same, verified and decrypted."""
    sealer = _pyca()
    nonces = [row.to_bytes(GCM_NONCE_SIZE, "little") for row in range(len(_pages_of(subject)))]
    sealed = [sealer.encrypt(nonce, page, None) for nonce, page in zip(nonces, _pages_of(subject), strict=True)]

    def run() -> None:
        for nonce, page in zip(nonces, sealed, strict=True):
            sealer.decrypt(nonce, page, None)

    return Work(run=run, bytes=len(sealed) * PAGE_SIZE)


def _pyca() -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(bytes(KEY_SIZE))


def _pages_of(subject: Work) -> list[memoryview]:
    """The first of the subject's pages."""
    return [page.data for page in contents_of(subject)[:SLOW_RIVAL_PAGES]]


def openssl_speed(_rig: Rig, _subject: Work) -> Work:
    """`openssl speed` of AES-256-GCM on 4 KiB: its own loop, its own clock."""
    command = [str(OPENSSL), "speed", "-mr", "-seconds", "1", "-bytes", str(PAGE_SIZE), "-evp", "aes-256-gcm"]

    def run() -> float:
        said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        found = re.search(r"^\+F:\d+:[^:]*:([\d.]+)", said, re.MULTILINE)
        if found is None:
            raise ModelError(f"`openssl speed` said nothing that can be read: {said[-200:]!r}")
        return PAGE_SIZE / float(found[1])

    return Work(run=run, bytes=PAGE_SIZE, warm=True)


def decipher(rig: Rig, subject: Work) -> Work:
    """The same bytes verified and decrypted by libsodium's AEGIS-256, page by page, and thrown away."""
    contents = contents_of(subject)
    if not DETACHED:
        return cipher(rig, subject)
    rows = contents.shape[0]
    key, tags = (
        np.frombuffer(os.urandom(KEY_SIZE), np.uint8).reshape(1, -1).copy(),
        np.zeros((rows, TAG_SIZE), np.uint8),
    )
    nonce, scratch = np.zeros(4, np.uint64), np.zeros(2 * SCRATCH_SIZE, np.uint8)

    def run() -> None:
        if _decrypt_rows(contents, tags, nonce, key, scratch) != rows:
            raise ModelError("libsodium refuses what it has sealed itself")

    return Work(
        run=run,
        bytes=contents.nbytes,
        prepare=lambda: _change_rows(contents, tags, nonce, key, scratch, True),
        finish=lambda: _change_rows(contents, tags, nonce, key, scratch, False),
    )


@kernel
def _decrypt_rows(contents: U8, tags: U8, nonce: U64, key: U8, scratch: U8) -> int:
    good = 0
    for row in range(contents.shape[0]):
        write_nonce(nonce, row, 0, 0, AEGIS256)
        good += decrypt_bare(contents, row, address_of(tags, row), nonce, key, scratch)
    return good


@kernel
def _change_rows(contents: U8, tags: U8, nonce: U64, key: U8, scratch: U8, seal: bool) -> None:
    """Seal all rows in place, or open them again."""
    for row in range(contents.shape[0]):
        write_nonce(nonce, row, 0, 0, AEGIS256)
        if seal:
            seal_page(contents, row, address_of(tags, row), nonce, key, 0, scratch, AEGIS256)
        else:
            open_page(contents, row, address_of(tags, row), nonce, key, 0, scratch, AEGIS256)


_PYCA: Final = find_spec("cryptography") is not None
RIVALS: Final[tuple[Limit, ...]] = (
    *((pyca_aes256gcm,) if _PYCA else ()),
    *((openssl_speed,) if OPENSSL else ()),
)


@benchmark("export", limit=cipher, rivals=RIVALS, bar=0.9)
def export(rig: Rig) -> Work:
    """All pages of a guest sealed in place."""
    return Sealed(rig, 1).export()


@benchmark("import", limit=decipher, rivals=(pyca_aes256gcm_opened,) if _PYCA else (), bar=0.85)
def import_(rig: Rig) -> Work:
    """All of them verified and opened again."""
    return Sealed(rig, 1).import_()


class Sealed:
    """A protected guest whose pages go out and come in again."""

    def __init__(self, rig: Rig, threads: int) -> None:
        self._machine = rig.make_machine(rig.size, threads=threads)
        self._threads = threads
        host = Host(self._machine)
        rig.closing.callback(host.close)
        self.vm: VM = host.create_vm(rig.size, vcpus=1, image=rig.image(rig.size))
        self.vm.protect()
        self.vm.populate()
        self._frames = frames_of(self.vm)
        # The limit only reads: a few frames among these that are somebody else's are no matter.
        first = int(self._frames.min())
        self._contents = vault.firmware_of(self._machine.ultravisor).storage.contents[first : first + self.vm.pages]
        self._pages: NDArray[np.int64] = np.arange(self.vm.pages, dtype=np.int64)
        self._handle = self.vm.kernel_vm.kvm.pv.handle
        self._plain = self._hashes()

    def export(self) -> Work:
        """Out; and in again where nobody looks at the clock."""
        return self._work(self._out, prepare=lambda: None, finish=self._back)

    def import_(self) -> Work:
        """In."""
        return self._work(self._in, prepare=self._out, finish=self._expect_plain)

    def _work(self, run: object, **around: object) -> Work:
        return Work(
            run=run,  # type: ignore[arg-type]
            bytes=self.vm.pages * PAGE_SIZE,
            contents=self._contents,
            threads=self._threads,
            **around,  # type: ignore[arg-type]
        )

    def _out(self) -> None:
        answer = self._machine.ultravisor.export_pages(self._frames)
        if answer.done != self._frames.size:
            raise ModelError(f"{answer} of {self._frames.size} pages that were all to be exported")

    def _in(self) -> None:
        answer = self._machine.ultravisor.import_pages(self._handle, self._pages)
        if answer.done != self._pages.size:
            raise ModelError(f"{answer} of {self._pages.size} pages that were all to be imported")

    def _back(self) -> None:
        """Not one page was left as it was, and all come back as they were."""
        self._expect_state(NS)
        same = int(np.count_nonzero(self._hashes() == self._plain))
        if same:
            raise ModelError(f"{same} of {self._frames.size} pages are the same after they were sealed")
        self._in()
        self._expect_plain()

    def _expect_plain(self) -> None:
        self._expect_state(SEC)
        changed = int(np.count_nonzero(self._hashes() != self._plain))
        if changed:
            raise ModelError(f"{changed} of {self._frames.size} pages came back changed")

    def _expect_state(self, state: int) -> None:
        left = int(np.count_nonzero(vault.firmware_of(self._machine.ultravisor).state[self._frames] != state))
        if left:
            raise ModelError(f"{left} of {self._frames.size} pages are in another state than they were to be")

    def _hashes(self) -> NDArray[np.uint64]:
        words = vault.firmware_of(self._machine.ultravisor).storage.words
        hashes = np.zeros(words.shape[0], np.uint64)
        scan.hash_frames(words, 0, words.shape[0], hashes)
        found: NDArray[np.uint64] = hashes[self._frames]
        return found
