"""Calls on pages, one or a million at once.

Each bulk call leaves what a sequence of single calls in array order leaves, each atomic, other CPUs' calls in between;
the single call is the bulk call with one page.

Source: semantics 2.2, 2.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.ultravisor import vault
from lazypv.ultravisor.answers import BulkAnswer
from lazypv.ultravisor.door import Door, all_refused
from lazypv.ultravisor.interface import (
    BIT_UVC_FEAT_MISC,
    CONV_TO_RC_NOT_MAPPED,
    RC_ALREADY_IN,
    RC_CPUS_ALIVE,
    RC_DONATED,
    RC_FOREIGN,
    RC_INTEGRITY,
    RC_NOT_SHARED,
    RC_NOT_UNPACKABLE,
    RC_OUTSIDE,
    UVC,
    UVC_RC_INV_GHANDLE,
    UVC_RC_INV_STATE,
)
from lazypv_kernels import access, claims, seal, sweep
from lazypv_kernels.layout import KEY_SIZE, NO_IMAGE, RC_DTYPE, TAG_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypv.ultravisor.header import ImageHeader

    Frames = NDArray[np.int64]
    Pages = NDArray[np.int64]

_IMPORT_CODES = np.array(
    [CONV_TO_RC_NOT_MAPPED, RC_OUTSIDE, RC_FOREIGN, RC_ALREADY_IN, RC_INTEGRITY, RC_NOT_UNPACKABLE], RC_DTYPE
)
_FROM_NO_IMAGE = (np.zeros((1, KEY_SIZE), np.uint8), np.zeros((0, TAG_SIZE), np.uint8), NO_IMAGE)


class PageCalls(Door):
    """Import, unpack, export, destroy, pin, unpin, share."""

    def import_pages(self, handle: int, pages: Pages) -> BulkAnswer:
        """Convert to Secure Storage (CONV_TO_SEC_STOR, 0x0200) for many guest pages.

        Parameters
        ----------
        pages : int64[k]
            Guest page numbers.

        Returns
        -------
        BulkAnswer
            0x0001 the page is secure: zero on its first import, else what the guest last wrote; 0 busy; 0x010a not
            mapped; 0x0020 no such configuration; the model's own for foreign, moved, altered or replayed pages, which
            are left as they were.

        Source: semantics 2.3, invariants 5, 30, 31.
        """
        return self._import(UVC.CONV_TO_SEC_STOR, handle, pages, None)

    def unpack_pages(self, handle: int, pages: Pages) -> BulkAnswer:
        """Unpack image pages (UNPACK_IMG, 0x0301): like an import, but the content is the boot image's, decrypted."""
        configuration = self._configuration(handle)
        image = configuration.image if configuration else None
        if configuration is None or image is None:
            code = UVC_RC_INV_GHANDLE if configuration is None else UVC_RC_INV_STATE
            self.count(UVC.UNPACK_IMG, pages.size)
            return all_refused(pages.size, code)
        answer = self._import(UVC.UNPACK_IMG, handle, pages, image)
        with vault.firmware_of(self).lock:
            configuration.unpacked += answer.done
        return answer

    def _import(self, command: UVC, handle: int, pages: Pages, image: ImageHeader | None) -> BulkAnswer:
        firmware = vault.firmware_of(self)
        configuration = firmware.admit(handle)
        if configuration is None:
            self.count(command, pages.size)
            return all_refused(pages.size, UVC_RC_INV_GHANDLE)
        key, tags, first_page = (image._key, image._tags, image.first) if image else _FROM_NO_IMAGE
        misc = BIT_UVC_FEAT_MISC in firmware.feature_bits
        try:
            return self._bulk(
                command,
                pages,
                lambda first, last, rc, into: seal.import_pages(
                    firmware.storage.contents, firmware.state, firmware.owner, firmware.guest_page, firmware.directory,
                    firmware.keys, firmware.sealing, firmware.cipher, misc, _IMPORT_CODES,
                    firmware.scratch(), configuration.slot, configuration.translation, key, tags, first_page, pages,
                    first, last, rc, into,
                ),
            )  # fmt: skip
        finally:
            firmware.dismiss(configuration)

    def unpin_pages(self, handle: int, pages: Pages) -> BulkAnswer:
        """UNPIN_PAGE_SHARED (0x0342): the guest takes back pages that the host had pinned."""
        firmware = vault.firmware_of(self)
        configuration = firmware.admit(handle)
        if configuration is None:
            self.count(UVC.UNPIN_PAGE_SHARED, pages.size)
            return all_refused(pages.size, UVC_RC_INV_GHANDLE)
        try:
            return self._bulk(
                UVC.UNPIN_PAGE_SHARED,
                pages,
                lambda first, last, rc, into: access.unpin_pages(
                    firmware.state, firmware.owner, firmware.guest_page, firmware.directory, configuration.translation,
                    configuration.slot, CONV_TO_RC_NOT_MAPPED, RC_NOT_SHARED, pages, first, last, rc, into,
                ),
            )  # fmt: skip
        finally:
            firmware.dismiss(configuration)

    def share_pages(self, handle: int, pages: Pages, share: bool) -> BulkAnswer:
        """The guest shares pages with the host, or takes them back (0x1000, 0x1001).

        Codes are those of an access of the guest: 0x3e for a page that has to be imported first, 0x3f, 0x11, and 0x6c
        when the host has to be notified because it has pinned the page.
        """
        firmware = vault.firmware_of(self)
        configuration = firmware.admit(handle)
        command = UVC.SET_SHARED_ACCESS if share else UVC.REMOVE_SHARED_ACCESS
        if configuration is None:
            self.count(command, pages.size)
            return all_refused(pages.size, UVC_RC_INV_GHANDLE)
        try:
            return self._bulk(
                command,
                pages,
                lambda first, last, rc, into: access.guest_share(
                    firmware.state, firmware.owner, firmware.guest_page, firmware.directory, configuration.translation,
                    configuration.slot, pages, share, first, last, rc, into,
                ),
            )  # fmt: skip
        finally:
            firmware.dismiss(configuration)

    def begin(self, frame: int) -> Callable[[], None] | None:
        """Claim `frame` as a call that has just begun does; how to let go of it, or None where another has it.

        Until then every call that needs the frame is busy. Only who explores orders halves a call like that.
        """
        state = vault.firmware_of(self).state
        page_state = int(claims.claim(state, frame))
        return None if page_state == claims.BUSY else lambda: claims.publish(state, frame, page_state)

    # --- pages, by host address ----------------------------------------------------------------------------------

    def export_pages(self, frames: Frames) -> BulkAnswer:
        """Convert from Secure Storage (CONV_FROM_SEC_STOR, 0x0201) for many frames, of any owners.

        Parameters
        ----------
        frames : int64[k]
            Host frame numbers in any order.

        Returns
        -------
        BulkAnswer
            0x0001 the frame is accessible: sealed if it was secure, as it is if it was shared or not secure at all;
            0 busy; else donated storage.

        Source: semantics 2.2, 2.3, invariant 30.
        """
        firmware = self._checked(frames)
        return self._bulk(
            UVC.CONV_FROM_SEC_STOR,
            frames,
            lambda first, last, rc, into: seal.export_pages(
                firmware.storage.contents, firmware.state, firmware.owner, firmware.guest_page, firmware.directory,
                firmware.keys, firmware.sealing, firmware.cipher, RC_DONATED, firmware.scratch(), frames,
                first, last, rc, into,
            ),
        )  # fmt: skip

    def destroy_pages(self, frames: Frames) -> BulkAnswer:
        """Destroy Secure Storage (DESTR_SEC_STOR, 0x0202) for many frames.

        Parameters
        ----------
        frames : int64[k]
            Host frame numbers in any order; a repeated frame is answered as repeated single calls would be.

        Returns
        -------
        BulkAnswer
            0x0001 the frame is accessible: cleared if it was secure, untouched if it was not; 0 busy, try again; else
            refused and unchanged, as when its owner still has secure CPUs.

        Raises
        ------
        FrameError
            A frame lies outside the machine.

        Source: semantics 2.3, invariant 7.
        """
        firmware = self._checked(frames)
        return self._bulk(
            UVC.DESTR_SEC_STOR,
            frames,
            lambda first, last, rc, into: sweep.destroy_pages(
                firmware.storage.contents, firmware.state, firmware.owner, firmware.directory, RC_CPUS_ALIVE, frames,
                first, last, rc, into,
            ),
        )  # fmt: skip

    def pin_pages(self, frames: Frames) -> BulkAnswer:
        """PIN_PAGE_SHARED (0x0341): keep shared pages shared while the host uses them; others are refused."""
        firmware = self._checked(frames)
        return self._bulk(
            UVC.PIN_PAGE_SHARED,
            frames,
            lambda first, last, rc, into: access.pin_pages(
                firmware.state, RC_NOT_SHARED, frames, first, last, rc, into
            ),
        )
