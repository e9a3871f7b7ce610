"""The machine room: absolute storage, and what the host keeps of each frame.

It knows bytes, frames, references and marks. It does not know who may see a frame: that is the Ultravisor's business.
"""

from lazypv.machine.frames import HostFrames
from lazypv.machine.page_table import PageTable
from lazypv.machine.storage import AbsoluteStorage

__all__ = ["AbsoluteStorage", "HostFrames", "PageTable"]
