"""Steps: what a procedure of the host or of a guest can await.

A procedure is written once, as a coroutine driven by ``send``. Every await is a place where the world may change, and
between two awaits a text runs alone; so there is one before every access to shared state that no held lock protects.
Who drives the text decides what a step costs and what comes between.

No step knows what time it is. A step knows its kind and its footprint: which object, lock or pages it is about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

Text = Coroutine["Step[Any]", Any, T]
"""A procedure: a coroutine that yields steps and receives what they give back."""


def _no_pages(_answer: object) -> int:
    return 0


class Step(Generic[T]):
    """Something that a text awaits."""

    __slots__ = ()

    def __await__(self) -> Generator[Step[T], T, T]:
        return (yield self)

    @property
    def label(self) -> str:
        """What it is about, in the field's words."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label})"


class Lock:
    """A modelled lock, shared or exclusive; waiting texts are parked in order of arrival.

    Attributes
    ----------
    name : str
        The field's name for it, such as ``"mmap_lock"``.
    readers, writer : set of actors, actor or None
        Who holds it.
    queue : deque of (actor, shared)
        Who waits, in order of arrival; nobody overtakes.
    """

    __slots__ = ("name", "queue", "readers", "writer")

    def __init__(self, name: str) -> None:
        self.name = name
        self.readers: set[Any] = set()
        self.writer: Any = None
        self.queue: deque[tuple[Any, bool]] = deque()

    def __repr__(self) -> str:
        return f"Lock({self.name})"

    def shared(self) -> Holding:
        """Hold it beside other readers: ``async with lock.shared():``."""
        return Holding(self, shared=True)

    def exclusive(self) -> Holding:
        """Hold it alone: ``async with lock.exclusive():``."""
        return Holding(self, shared=False)

    def try_take(self, actor: Any, shared: bool) -> bool:
        """Take it for `actor` unless somebody holds it or waits already."""
        if self.queue or not self._free(shared):
            return False
        self._take(actor, shared)
        return True

    def next_in_queue(self) -> Any:
        """Take it for the first who waits, if that is possible now; that actor, or None."""
        if not self.queue or not self._free(self.queue[0][1]):
            return None
        actor, shared = self.queue.popleft()
        self._take(actor, shared)
        return actor

    def _free(self, shared: bool) -> bool:
        return self.writer is None and (shared or not self.readers)

    def _take(self, actor: Any, shared: bool) -> None:
        if shared:
            self.readers.add(actor)
        else:
            self.writer = actor

    def give_up(self, actor: Any, shared: bool) -> None:
        """Release it for `actor`, who holds it."""
        if shared:
            self.readers.remove(actor)
        elif self.writer is actor:
            self.writer = None
        else:
            raise KeyError(actor)

    def holders(self) -> list[Any]:
        """Actors that hold it now."""
        return [*self.readers, *([] if self.writer is None else [self.writer])]


class Holding:
    """Context of a held lock.

    Entering and leaving are the steps themselves, not coroutines that await them: locks are most of what texts await.
    """

    __slots__ = ("lock", "shared")

    def __init__(self, lock: Lock, *, shared: bool) -> None:
        self.lock = lock
        self.shared = shared

    def __aenter__(self) -> Acquire:
        return Acquire(self.lock, self.shared)

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Release:
        return Release(self.lock, self.shared)


class Moment(Step[None]):
    """A step that gives nothing back, so that awaiting it takes no generator: such steps are most of all."""

    __slots__ = ()

    def __await__(self) -> Generator[Step[None], None, None]:
        # Python awaits any iterator; only the type of `__await__` asks for a generator, and a cast would cost its time.
        return iter((self,))  # type: ignore[return-value]


class Acquire(Moment):
    """Take a modelled lock."""

    __slots__ = ("lock", "shared")

    def __init__(self, lock: Lock, shared: bool) -> None:
        self.lock = lock
        self.shared = shared

    @property
    def label(self) -> str:
        return self.lock.name


class Release(Moment):
    """Give a modelled lock up."""

    __slots__ = ("lock", "shared")

    def __init__(self, lock: Lock, shared: bool) -> None:
        self.lock = lock
        self.shared = shared

    @property
    def label(self) -> str:
        return self.lock.name


class Touch(Moment):
    """About to read or write state that others may change and that no held lock protects."""

    __slots__ = ("name", "what", "write")

    def __init__(self, what: object, name: str, write: bool = False) -> None:
        self.what = what
        self.name = name
        self.write = write

    @property
    def label(self) -> str:
        return self.name


class Bulk(Step[T]):
    """One operation over many pages.

    Parameters
    ----------
    name : str
        What it does, in the field's words.
    operation : callable
        ``operation(*columns)``; gives back a ``BulkAnswer``, or anything that its class can merge.
    columns : tuple of arrays
        Sliced along axis 0: the grain is the clock's choice.
    uvc : bool
        Whether each page costs an Ultravisor call.
    frame_of : callable
        Which frame the call about a page claims, where the first column does not say; negative for none.
    """

    __slots__ = ("columns", "frame_of", "name", "operation", "uvc")

    def __init__(
        self,
        name: str,
        operation: Callable[..., T],
        *columns: NDArray[Any],
        uvc: bool = False,
        frame_of: Callable[[int], int] | None = None,
    ) -> None:
        self.name = name
        self.operation = operation
        self.columns = columns
        self.uvc = uvc
        self.frame_of = frame_of

    @property
    def pages(self) -> int:
        """How many pages it is about."""
        return int(self.columns[0].shape[0])

    @property
    def footprint(self) -> NDArray[np.int64]:
        """The frames or guest pages that it is about."""
        column: NDArray[np.int64] = self.columns[0]
        return column

    @property
    def label(self) -> str:
        return self.name


class Call(Step[T]):
    """One Ultravisor call, or named moment, that is not per page.

    Parameters
    ----------
    name : str
        The call's interface name, or what the moment is.
    operation : callable
        Does it; what it gives back is the step's answer.
    what : object
        What it is about.
    uvc : bool
        Whether it is an Ultravisor call.
    pages_of : callable
        How many pages the answer says were handled.
    """

    __slots__ = ("name", "operation", "pages_of", "uvc", "what")

    def __init__(
        self,
        name: str,
        operation: Callable[[], T],
        what: object = None,
        *,
        uvc: bool = True,
        pages_of: Callable[[T], int] = _no_pages,
    ) -> None:
        self.name = name
        self.operation = operation
        self.what = what
        self.uvc = uvc
        self.pages_of = pages_of

    @property
    def label(self) -> str:
        return self.name


class Several(Step[T]):
    """The batches that follow, as one: what the text would do next, again and again, as long as nobody could tell.

    A batch stands in the text, once; `operation` is the same in one piece. So nobody has to do it: a clock that goes on
    one by one gives back `none`, at once, which is no step in any order. Who does it holds `lock` shared until it ends,
    and has it end behind the batch that is being done as soon as somebody wants the lock, waits for what a batch may
    bring about, or is about to write what is `watched`.

    Parameters
    ----------
    operation : callable
        ``operation(stop)``: does batches until ``stop[0]`` (uint8[1]) is not 0; gives back a :class:`Batches`.
    may_begin : callable
        Whether the next batch would be done at all, now.
    lock : Lock
        What each batch holds, shared, for a part of its time.
    watched : (object, str)
        What the text looks at before each batch, as a :class:`Touch` names it.
    """

    __slots__ = ("lock", "may_begin", "none", "operation", "watched")

    def __init__(
        self,
        operation: Callable[[NDArray[np.uint8]], Batches[T]],
        may_begin: Callable[[], bool],
        lock: Lock,
        watched: tuple[object, str],
        none: T,
    ) -> None:
        self.operation = operation
        self.may_begin = may_begin
        self.lock = lock
        self.watched = watched
        self.none = none

    @property
    def label(self) -> str:
        return f"batches under {self.lock.name}"


class Batches(NamedTuple, Generic[T]):
    """What came of :class:`Several`: the answer, how many batches were done, and the pages of the largest."""

    answer: T
    done: int
    largest: int


class Alloc(Step["T | None"]):
    """Memory, a record, a node: may fail, then the text gets None."""

    __slots__ = ("operation", "what")

    def __init__(self, what: str, operation: Callable[[], T | None]) -> None:
        self.what = what
        self.operation = operation

    @property
    def label(self) -> str:
        return self.what


class Wait(Moment):
    """Until `condition`, which has no side effects, holds.

    With `outside`, something that is not a text can make it hold: time, a test, a person. With `patient`, no batch of a
    walk makes it hold, so that batches are done as one meanwhile (:class:`Several`).
    """

    __slots__ = ("condition", "outside", "patient", "why")

    def __init__(
        self, condition: Callable[[], bool], why: str, *, outside: bool = False, patient: bool = False
    ) -> None:
        self.condition = condition
        self.why = why
        self.outside = outside
        self.patient = patient

    @property
    def label(self) -> str:
        return self.why


class Spawn(Step["Any | None"]):
    """A kernel thread that runs `text`; its handle, or None when there is no thread to be had."""

    __slots__ = ("name", "text")

    def __init__(self, name: str, text: Callable[[], Text[Any]]) -> None:
        self.name = name
        self.text = text

    @property
    def label(self) -> str:
        return self.name
