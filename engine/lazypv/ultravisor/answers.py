"""What an Ultravisor call gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lazypv.ultravisor.interface import UVC_CC_BUSY, UVC_CC_ERROR, UVC_CC_OK, UVC_RC_EXECUTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Answer(NamedTuple):
    """Condition code, return code and return reason code of one call; `pages` and `handle` where there are any."""

    cc: int
    rc: int
    rrc: int = 0
    handle: int = 0
    pages: int = 0

    @property
    def ok(self) -> bool:
        """Executed."""
        return self.cc == UVC_CC_OK


EXECUTED = Answer(UVC_CC_OK, UVC_RC_EXECUTED)
BUSY = Answer(UVC_CC_BUSY, 0)


def refused(rc: int) -> Answer:
    """Condition code 1 with this return code."""
    return Answer(UVC_CC_ERROR, rc)


class BulkAnswer:
    """Answers of one call over many pages.

    Attributes
    ----------
    rc : uint16[k]
        0x0001 done, 0 busy (condition code 2), else the reason: a return code, or an interruption of an access.
    done, noop, busy, refused : int
        How many pages changed, needed no change, are to be tried again, were refused.
    """

    __slots__ = ("busy", "done", "noop", "rc", "refused")

    def __init__(self, rc: NDArray[np.uint16], done: int, noop: int = 0, busy: int = 0, refused: int = 0) -> None:
        self.rc = rc
        self.done = done
        self.noop = noop
        self.busy = busy
        self.refused = refused

    @classmethod
    def counted(cls, rc: NDArray[np.uint16], counts: NDArray[np.int64]) -> BulkAnswer:
        """From the counters of a kernel: int64[4], in the order of `lazypv_kernels.layout`."""
        return cls(rc, *counts.tolist())

    @property
    def all_done(self) -> bool:
        """Every page is as the caller wanted it."""
        return self.busy == 0 and self.refused == 0

    @classmethod
    def merge(cls, answers: Sequence[BulkAnswer]) -> BulkAnswer:
        """One answer for a batch that was issued in pieces."""
        rc = np.concatenate([answer.rc for answer in answers]) if answers else np.empty(0, np.uint16)
        return cls(
            rc,
            sum(answer.done for answer in answers),
            sum(answer.noop for answer in answers),
            sum(answer.busy for answer in answers),
            sum(answer.refused for answer in answers),
        )

    def __repr__(self) -> str:
        return f"BulkAnswer(done={self.done}, noop={self.noop}, busy={self.busy}, refused={self.refused})"
