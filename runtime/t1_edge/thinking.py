"""The loop that writes thoughts: greedy, in the query's own KV cache, up to a budget."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t1_edge.contract import Codec
from t1_edge.engines.base import Float32Array, Session
from t1_edge.errors import InputError

StopReason = Literal["budget", "closed", "stop_token", "deadline", "settled", "given", "open"]


@dataclass(frozen=True, kw_only=True)
class Thought:
    """What a row thought.

    Attributes:
        tokens: The thought, without the tokens that open, close or stop it.
        stopped_by: "closed" if the model closed it, "stop_token" if it ended its turn, "budget"
            or "deadline" if it was forced shut, "settled" if its vector had come to rest, "given"
            if the caller wrote it, "open" if it still goes on.
    """

    tokens: tuple[int, ...]
    stopped_by: StopReason


@dataclass(frozen=True, kw_only=True)
class Settle:
    """When a thought has changed its vector enough: once it no longer does.

    Attributes:
        cosine: Of a vector and the one before it, from which on a thought ends.
        every: Tokens between two vectors; each costs about what a token does, or two.

    Raises:
        InputError: If the cosine is not in (0, 1], or the tokens are below 1.
    """

    cosine: float
    every: int = 4

    def __post_init__(self) -> None:
        """Refuse what is no cosine, and no number of tokens."""
        if not 0 < self.cosine <= 1:
            raise InputError(f"vectors settle at a cosine in (0, 1], not {self.cosine}")
        if self.every < 1:
            raise InputError(f"between two vectors stand 1 token or more, not {self.every}")


def time_of(deadline: float | None) -> float | None:
    """When a call has to be done, by `time.monotonic`, in seconds; None if whenever it is.

    Args:
        deadline: Seconds from now; at 0 nothing is thought.

    Raises:
        InputError: If it is below 0, or no number.
    """
    if deadline is None:
        return None
    if not deadline >= 0:
        raise InputError(f"a deadline is 0 or more seconds from the call, not {deadline}")
    return time.monotonic() + deadline


def is_over(deadline: float | None, needed: float = 0.0) -> bool:
    """Whether what takes some seconds more would end at a deadline or beyond; see `time_of`."""
    return deadline is not None and time.monotonic() + needed >= deadline


class Thinking:
    """The rows of a session, thinking.

    A deadline is kept as far as the passes before can tell: no step is begun if that and the pass
    that closes the thoughts, each as long as the last of its kind, would end beyond it. So it is
    overrun by what these take longer than the last ones; by two passes where none was measured
    yet, and by what was begun before the first.

    Args:
        session: Opened over query rows, with room for budget + 2 tokens.
        rows: How many rows it has.
        codec: Knows the tokens that close and stop a thought.
        budget: Most tokens of a thought; 0 for none.
        deadline: Time by `time.monotonic` by which the thoughts shall be closed, in seconds.
    """

    def __init__(
        self,
        session: Session,
        rows: int,
        codec: Codec,
        *,
        budget: int,
        deadline: float | None = None,
    ) -> None:
        self._session = session
        self._codec = codec
        self._budget = budget
        self._deadline = deadline
        self._steps = 0
        self._scores: Float32Array | None = None
        self._step_seconds: float | None = None
        self._peek_seconds: float | None = None
        self._peeked: Float32Array | None = None
        self._settled: dict[int, Float32Array] = {}
        self._thoughts: list[list[int]] = [[] for _ in range(rows)]
        self._ended: dict[int, StopReason] = {}

    @property
    def thoughts(self) -> list[Thought]:
        """As they stand, one a row."""
        return [
            Thought(tokens=tuple(tokens), stopped_by=self._ended.get(row, "open"))
            for row, tokens in enumerate(self._thoughts)
        ]

    @property
    def steps(self) -> int:
        """How many were made: tokens of a thought that still goes on."""
        return self._steps

    def goes_on(self) -> bool:
        """Whether a row still thinks; at the budget, or without time for a step, all are ended."""
        if self._steps == self._budget:
            self._end("budget")
        elif is_over(self._deadline, self._needed):
            self._end("deadline")
        return len(self._ended) < len(self._thoughts)

    def read(self) -> None:
        """Read the rows in one pass, if they are to think; once.

        Were they looked at before, engines would read the last token again, alone, and round it
        otherwise: thoughts would be others for having been looked at.

        Raises:
            EngineError: If the engine fails.
        """
        if self.goes_on() and not self._is_read:
            self._scores = self._session.logits()

    def step(self) -> None:
        """Write one token to every row that still thinks."""
        self.read()
        known, self._scores = self._scores, None
        began = time.monotonic()
        scores = self._session.logits() if known is None else known
        if self._codec.contract.distinct:
            scores = _without_written(scores, self._thoughts)
        grown: dict[int, int] = {}
        for row, token in enumerate(scores.argmax(axis=1).tolist()):
            if row in self._ended:
                continue
            if token in self._codec.ending:
                self._ended[row] = "closed"
            elif token in self._codec.stop_ids:
                self._ended[row] = "stop_token"
            else:
                self._thoughts[row].append(token)
                grown[row] = token
        self._session.append(grown)
        self._steps += 1
        if known is None:
            self._step_seconds = time.monotonic() - began
        self._peeked = None

    def peek(self) -> Float32Array:
        """Hidden states behind the thoughts as they stand, were they closed.

        They are computed once, and again after a step; of a thought that settled, it is the one
        that it settled at.

        Returns:
            float32 [rows, hidden], not L2-normalised.
        """
        if self._peeked is None:
            began = time.monotonic()
            self._peeked = self._session.peek(*self._codec.ending)
            if self._is_read:  # else it is the pass that reads them
                self._peek_seconds = time.monotonic() - began
            for row, hidden in self._settled.items():
                self._peeked[row] = hidden
        return self._peeked

    def settle(self, rows: Sequence[int]) -> None:
        """End the thoughts of rows, if they still go on; what `peek` gives is theirs for good."""
        hidden = self.peek()
        for row in rows:
            if row not in self._ended:
                self._ended[row] = "settled"
                self._settled[row] = hidden[row].copy()

    def finish(self, settle: Settle | None = None) -> None:
        """Let every row think to its end.

        Args:
            settle: When a thought ends since its vector has come to rest.

        Raises:
            EngineError: If the engine fails.
        """
        self.read()
        before = self.peek() if settle and self.goes_on() else None
        while self.goes_on():
            self.step()
            if settle and before is not None and self.steps % settle.every == 0:
                now = self.peek()
                self.settle(np.flatnonzero(_cosines(before, now) >= settle.cosine).tolist())
                before = now

    @property
    def _is_read(self) -> bool:
        """Whether the pass before the first step was made."""
        return self._steps > 0 or self._scores is not None

    @property
    def _needed(self) -> float:
        """Seconds of a step and of the pass that closes; each as the other where one is unknown."""
        step, closing = self._step_seconds, self._peek_seconds
        return (step or closing or 0.0) + (closing or step or 0.0)

    def _end(self, reason: StopReason) -> None:
        for row in range(len(self._thoughts)):
            self._ended.setdefault(row, reason)


def _cosines(some: Float32Array, others: Float32Array) -> Float32Array:
    """Of each pair of hidden states, float32 [rows]."""
    norms = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray((some * others).sum(axis=1) / norms, np.float32)


def _without_written(scores: Float32Array, thoughts: Sequence[Sequence[int]]) -> Float32Array:
    """Scores of the next token, those that a row's thought holds already ruled out."""
    left = scores.copy()
    for row, tokens in zip(left, thoughts, strict=True):
        row[list(tokens)] = -np.inf
    return left
