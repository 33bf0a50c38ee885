"""Whose turn it is with an engine: one caller's at a time, first come, first served.

A stream keeps its turn while its reader has a vector. Past its deadline it computes nothing more:
who waits then takes the turn from it. So does who closes the encoder, whenever the reader has a
vector, and before all who wait.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from t1_edge.errors import EngineError
from t1_edge.thinking import is_over


class Turn:
    """A caller's, until it ends; a stream's may be taken from it.

    Args:
        deadline: Of a stream, by `time.monotonic`, in seconds.
        closes: Whether it ends the engine: it goes before all who wait.

    Attributes:
        deadline: As above.
        closes: As above.
        thread: Which computes in it, and made it.
        rests: Whether a stream's reader has a vector just now, so that nothing is computed.
        taken: Whether another has taken it from a stream at rest, for good.
        free: Frees the engine of a stream whose turn is taken from it; a stream says how.
    """

    def __init__(self, deadline: float | None = None, *, closes: bool = False) -> None:
        self.deadline = deadline
        self.closes = closes
        self.thread = threading.get_ident()
        self.rests = False
        self.taken = False
        self.free: Callable[[], None] = _nothing

    def may_take(self, other: "Turn") -> bool:
        """Whether another's reader has a vector, and it is overdue or this one closes."""
        return other.rests and (self.closes or is_over(other.deadline))

    @property
    def runs_here(self) -> bool:
        """Whether this thread computes in it just now."""
        return self.thread == threading.get_ident() and not self.rests


_STREAMS: Final[ContextVar[frozenset[Turn]]] = ContextVar("streams", default=frozenset())
"""Turns of the streams that who calls has open: of all encoders."""


class Turns:
    """Those with one engine."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Turn] = deque()
        self._current: Turn | None = None
        self._process = os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this is not the process that the engine belongs to."""
        return os.getpid() != self._process

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn, and have it.

        Raises:
            EngineError: If a stream of who calls is open, this thread computes (a signal's handler
                asks), or the process was forked: the wait would have no end.
        """
        with self._take(Turn()):
            yield

    @contextmanager
    def take_to_close(self) -> Iterator[None]:
        """Have the next turn, before all who wait; that of a stream whose reader has a vector.

        Raises:
            EngineError: If this thread computes, or the process was forked.
        """
        with self._take(Turn(closes=True)):
            yield

    @contextmanager
    def stream(self, deadline: float | None) -> Iterator[Turn]:
        """Wait for a stream's turn, and have it until it ends or is taken; see `take`.

        Args:
            deadline: From when on it may be taken, by `time.monotonic`, in seconds; None if never.

        Raises:
            EngineError: As `take`.
        """
        turn = Turn(deadline)
        with self._take(turn):
            _STREAMS.set(_STREAMS.get() | {turn})
            try:
                yield turn
            finally:
                turn.free = _nothing  # another context may keep the turn
                _STREAMS.set(_STREAMS.get() - {turn})

    @contextmanager
    def rest(self, turn: Turn) -> Iterator[None]:
        """While the reader of a stream has a vector.

        Args:
            turn: The stream's.
        """
        with self._changed:
            turn.rests = True
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                turn.rests = False
                turn.thread = threading.get_ident()

    @contextmanager
    def _take(self, turn: Turn) -> Iterator[None]:
        self._refuse_endless(turn)
        try:
            with self._changed:
                (self._waiting.appendleft if turn.closes else self._waiting.append)(turn)
                try:
                    while not (self._waiting[0] is turn and self._is_free(turn)):
                        self._changed.wait(self._patience())
                    self._current = turn
                finally:
                    self._waiting.remove(turn)
                    self._changed.notify_all()
            yield
        finally:
            self._give_back(turn)

    def _give_back(self, turn: Turn) -> None:
        """End a turn, unless it was taken."""
        with self._changed:
            if self._current is turn:
                self._current = None
                self._changed.notify_all()

    def _refuse_endless(self, turn: Turn) -> None:
        if self.is_forked:
            raise EngineError(
                "this encoder belongs to the process that this one was forked from: load one here, "
                'or start processes by "spawn"'
            )
        with self._changed:
            current = self._current
            if current is None or turn.may_take(current):
                return
            if current.runs_here:
                raise EngineError("this thread is in a call of the encoder, which has to end first")
            if current in _STREAMS.get() and not turn.closes:
                raise EngineError(
                    "a stream of this thread is still open: take its last vector, or close it"
                )

    def _is_free(self, turn: Turn) -> bool:
        """Whether nobody has the turn: it is taken from who can be made to give it."""
        if self._current is not None and turn.may_take(self._current):
            self._current.taken = True
            self._current.free()
            self._current = None
        return self._current is None

    def _patience(self) -> float | None:
        """Seconds until the turn may be taken from who has it; None if it may not."""
        current = self._current
        if current is None or not current.rests or current.deadline is None:
            return None
        return min(max(0.0, current.deadline - time.monotonic()), threading.TIMEOUT_MAX)


def _nothing() -> None:
    """What is no stream holds nothing between two passes."""
