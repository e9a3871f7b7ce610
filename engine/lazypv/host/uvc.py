"""Ultravisor calls that are not about pages: issued until they have their answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypv.steps import Call
from lazypv.ultravisor.interface import UVC_CC_BUSY

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazypv.ultravisor import Answer


async def uv_call(name: str, operation: Callable[[], Answer], what: object = None) -> Answer:
    """Issue the call until it is neither busy nor done in part; other texts come in between.

    Source: semantics 3.1 (``uv_call_sched``); invariant 36.
    """
    while True:
        answer: Answer = await Call(name, operation, what, pages_of=_pages)
        if answer.cc < UVC_CC_BUSY:
            return answer


def _pages(answer: Answer) -> int:
    return answer.pages
