"""Which of two engines is the faster one, here: a short measurement, kept in the cache."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final

import msgspec

from t1_edge.build import GOLDEN, Build
from t1_edge.cache import remembered
from t1_edge.engines.base import Engine
from t1_edge.golden import Golden
from t1_edge.machine import kernels

_DOCUMENTS: Final = 2
_DOCUMENT_TOKENS: Final = 96  # a 4B reads two hundred in ten seconds
_QUERY_TOKENS: Final = 24
_THOUGHT_TOKENS: Final = 8
_ENOUGH: Final = 0.3
"""Seconds after which no further repeat is begun."""

_LOG: Final = logging.getLogger(__name__)

Opener = Callable[[], AbstractContextManager[Engine]]


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast an engine is.

    Attributes:
        reading: Seconds for a query's vector without a thought, and for documents' if it is to
            read these.
        step: Seconds for a token of a thought.
    """

    reading: float
    step: float

    def seconds(self, budget: int) -> float:
        """For all of it, behind a thought of so many tokens."""
        return self.reading + budget * self.step


def race(
    build: Build,
    contestants: Mapping[str, Opener],
    key: object,
    *,
    documents: bool,
    again: bool = False,
) -> dict[str, Pace]:
    """How fast engines are at a query, and at two documents if they are to read these.

    The best of two times or more; a first one does not count, since it reads weights from a disk.
    What a template begins with is read each time: an engine that keeps it is better than that.

    Args:
        build: Golden rows are drawn out to a query of 24 tokens and documents of 96, or
            of what fits in the context.
        contestants: What opens each engine, by name; they are opened one after another.
        key: What the result depends on beside the build and the machine.
        documents: Whether they are to read documents.
        again: Measure even if the cache knows.

    Raises:
        BuildError: If the golden rows are damaged.
        EngineError: If an engine cannot be opened, or fails.
    """
    what = [build.state(), kernels(), list(contestants), documents, key]

    def run() -> dict[str, Pace]:
        _LOG.info("measuring which is faster here: %s", " or ".join(contestants))
        rows = Golden.load(build.file(GOLDEN)).rows
        longest = min(_DOCUMENT_TOKENS, build.manifest.decoder.context - 1)
        work = _Work(
            query=[*islice(cycle(rows[0]), _QUERY_TOKENS)],
            documents=[[*islice(cycle(row), longest)] for row in rows[:_DOCUMENTS]]
            if documents
            else [],
        )
        return {name: _time(opener, work) for name, opener in contestants.items()}

    return remembered("races", what, dict[str, Pace], run, again=again)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What each engine does.

    Attributes:
        query: Token ids of a row that a thought continues.
        documents: Token rows; none if others read them.
    """

    query: Sequence[int]
    documents: Sequence[Sequence[int]]

    def do(self, engine: Engine) -> Pace:
        """Have an engine do it once."""
        began = time.perf_counter()
        if self.documents:
            with engine.start(self.documents, room=1) as session:
                session.peek(self.query[-1])
        with engine.start([self.query], room=_THOUGHT_TOKENS + 2) as session:
            session.peek(*self.query[-2:])  # as many as close a thought and are the vector's
            read, token = time.perf_counter(), self.query[-1]
            for _ in range(_THOUGHT_TOKENS):
                session.append({0: token})
                token = int(session.logits()[0].argmax())
            thought = time.perf_counter() - read
        return Pace(reading=read - began, step=thought / _THOUGHT_TOKENS)


def _time(opener: Opener, work: _Work) -> Pace:
    with opener() as engine:
        work.do(engine)  # reads weights from the disk
        began = time.monotonic()
        found = [work.do(engine), work.do(engine)]
        while time.monotonic() - began < _ENOUGH:
            found.append(work.do(engine))
    return Pace(reading=min(one.reading for one in found), step=min(one.step for one in found))
