"""How a contestant of `peers.speed` is driven: all are timed alike, and look alike for settings.

It may be a peer's environment, so nothing here needs more than Python and numpy.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from peers.speed_wire import Answer, Command, Tasks, Work, groups

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Settings = TypeVar("_Settings", bound=DataclassInstance)

Float32Array = NDArray[np.float32]
_Item = TypeVar("_Item")
_Asked = TypeVar("_Asked", contravariant=True)

_SAMPLE_TOKENS: Final = 4096
"""What settings are tried on."""

_WARM_UP: Final = 8
"""Items that run before the clock does."""


class Contestant(Protocol[_Asked]):
    """Somebody who turns items, texts or token rows, into vectors."""

    def prepare(self, work: Work, items: Sequence[_Asked]) -> str:
        """Get ready for a work, and find its best settings.

        Args:
            work: Which.
            items: All there are of it.

        Returns:
            What it will run with, in words.
        """

    def run(self, work: Work, items: Sequence[_Asked]) -> Float32Array:
        """Do some of a work.

        Args:
            work: One that was prepared.
            items: What comes at once.

        Returns:
            float32 [n, d], L2-normalised, in their order.
        """


def serve(contestant: Contestant[_Item], items: Callable[[Work], Sequence[_Item]]) -> None:
    """Answer commands until there are no more.

    Args:
        contestant: Who does what is told.
        items: All there are of a work.
    """
    with _answers() as answers:
        for line in sys.stdin:
            command = Command.parse(line)
            answers.write(_answer(contestant, items(command.work), command).line())
            answers.flush()


def rows_of(tasks: Tasks) -> Callable[[Work], Sequence[Sequence[int]]]:
    """What a contestant is given that takes tokens."""
    return lambda work: tasks.of(work).rows


def _answers() -> IO[str]:
    """Standard output for answers alone: libraries that talk there talk to the log."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _answer(contestant: Contestant[_Item], items: Sequence[_Item], command: Command) -> Answer:
    work = command.work
    if command.action == "prepare":
        return Answer(settings=contestant.prepare(work, items))
    parts = groups(work, items, command.share, command.shares)
    contestant.run(work, parts[-1][-_WARM_UP:])
    seconds, vectors = [], []
    for part in parts:
        began = time.perf_counter()
        vectors.append(contestant.run(work, part))
        seconds.append(time.perf_counter() - began)
    if command.vectors:
        np.save(command.vectors, np.concatenate(vectors))
    return Answer(seconds=seconds)


def best(
    first: "_Settings",
    axes: Mapping[str, Sequence[object]],
    run: Callable[["_Settings"], object],
) -> "_Settings":
    """The fastest settings, looked for along one axis after another.

    Args:
        first: Where to begin.
        axes: Field to the values that are tried.
        run: Does with some settings what is timed; the faster of two times counts, since the first
            may load what it needs.
    """
    chosen, least = first, _seconds(run, first)
    for field, values in axes.items():
        for value in values:
            tried = replace(chosen, **{field: value})
            if tried == chosen:
                continue
            seconds = _seconds(run, tried)
            if seconds < least:
                chosen, least = tried, seconds
    return chosen


def _seconds(run: Callable[["_Settings"], object], settings: "_Settings") -> float:
    times: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        run(settings)
        times.append(time.perf_counter() - began)
    return min(times)


def sample(rows: Sequence[Sequence[int]], tokens: int = _SAMPLE_TOKENS) -> list[Sequence[int]]:
    """The first rows that have so many tokens together; at least one."""
    ends = np.cumsum([len(row) for row in rows])
    return list(rows[: max(1, int(np.searchsorted(ends, tokens, side="right")))])


def batches(
    rows: Sequence[Sequence[int]], tokens: int, *, most: int, padded: bool
) -> Iterator[list[int]]:
    """Indices of rows that run together, those of like length, the shortest first.

    Args:
        rows: Token ids.
        tokens: Most of a batch; a row that is longer runs alone.
        most: Rows of a batch.
        padded: Whether every row counts as long as the longest.
    """
    batch: list[int] = []
    held = 0
    for at in sorted(range(len(rows)), key=lambda at: len(rows[at])):
        length = len(rows[at])
        held = (len(batch) + 1) * length if padded else held + length
        if batch and (held > tokens or len(batch) == most):
            yield batch
            batch, held = [], length
        batch.append(at)
    if batch:
        yield batch


def unit(vectors: Float32Array) -> Float32Array:
    """Rows of length 1, float32 [n, d]."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
