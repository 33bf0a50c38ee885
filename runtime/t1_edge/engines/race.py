"""Which of two engines is the faster one, here: a short measurement, kept in the cache."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final

from t1_edge.build import GOLDEN, Build
from t1_edge.cache import remembered
from t1_edge.engines.base import Engine
from t1_edge.golden import Golden
from t1_edge.machine import kernels

_DOCUMENTS: Final = 2
_DOCUMENT_TOKENS: Final = 96  # a 4B reads two hundred in ten seconds
_QUERY_TOKENS: Final = 24
_MOST_THOUGHT_TOKENS: Final = 16
_ENOUGH: Final = 0.3
"""Seconds after which no further repeat is begun."""

_LOG: Final = logging.getLogger(__name__)

Opener = Callable[[], AbstractContextManager[Engine]]


def race(
    build: Build,
    contestants: Mapping[str, Opener],
    key: object,
    *,
    budget: int,
    documents: bool,
    again: bool = False,
) -> dict[str, float]:
    """Seconds that engines take for a query, and for two documents if they are to read these.

    The best of two times or more; a first one does not count, since it reads weights from a disk.
    What a template begins with is read each time: an engine that keeps it is better than that.

    Args:
        build: Golden rows are drawn out to a query of 24 tokens and documents of 96.
        contestants: What opens each engine, by name; they are opened one after another.
        key: What the result depends on beside the build and the machine.
        budget: Tokens that are written behind the query; no more than 16 are.
        documents: Whether they are to read documents.
        again: Measure even if the cache knows.

    Raises:
        BuildError: If the golden rows are damaged.
        EngineError: If an engine cannot be opened, or fails.
    """
    thought = min(budget, _MOST_THOUGHT_TOKENS)
    what = [build.state(), kernels(), list(contestants), thought, documents, key]

    def run() -> dict[str, float]:
        _LOG.info("measuring which is faster here: %s", " or ".join(contestants))
        rows = Golden.load(build.file(GOLDEN)).rows
        work = _Work(
            query=[*islice(cycle(rows[0]), _QUERY_TOKENS)],
            budget=thought,
            documents=[[*islice(cycle(row), _DOCUMENT_TOKENS)] for row in rows[:_DOCUMENTS]]
            if documents
            else [],
        )
        return {name: _time(opener, work) for name, opener in contestants.items()}

    return remembered("races", what, dict[str, float], run, again=again)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What each engine does.

    Attributes:
        query: Token ids of a row that a thought continues.
        budget: Tokens of the thought.
        documents: Token rows; none if others read them.
    """

    query: Sequence[int]
    budget: int
    documents: Sequence[Sequence[int]]

    def seconds(self, engine: Engine) -> float:
        """How long an engine takes for all of it."""
        began = time.perf_counter()
        if self.documents:
            with engine.start(self.documents, room=1) as session:
                session.peek(self.query[-1])
        with engine.start([self.query], room=self.budget + 2) as session:
            for _ in range(self.budget):
                session.append({0: int(session.logits()[0].argmax())})
            session.peek(*self.query[-2:])  # as many as close a thought and are the vector's
        return time.perf_counter() - began


def _time(opener: Opener, work: _Work) -> float:
    with opener() as engine:
        work.seconds(engine)  # reads weights from the disk
        began = time.monotonic()
        best = min(work.seconds(engine), work.seconds(engine))
        while time.monotonic() - began < _ENOUGH:
            best = min(best, work.seconds(engine))
    return best
