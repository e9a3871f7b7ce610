"""Guest images: where a guest's first memory content comes from.

In comes the path of a memory dump (an ELF core as QEMU's ``dump-guest-memory`` writes it, or plain memory, either of
them zstd-compressed), or no path at all, for the synthetic guest. Out come pages and the guest page of each. This room
knows files and pages; it knows nothing of machines, hosts or the Ultravisor, and nothing of the tower knows it.
"""

from lazypv.image.guest_image import NO_PAGE, GuestImage
from lazypv.image.opening import image_for, open_image
from lazypv.image.synthetic import DEFAULT_SIZE as SYNTHETIC_SIZE
from lazypv.image.synthetic import synthetic

__all__ = ["NO_PAGE", "SYNTHETIC_SIZE", "GuestImage", "image_for", "open_image", "synthetic"]
