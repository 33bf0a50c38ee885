"""Which of two engines is the faster one, here: a short measurement, kept in the cache."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle, islice
from typing import Final

from t1_edge.build import GOLDEN, Build
from t1_edge.cache import remembered
from t1_edge.engines.base import Engine
from t1_edge.golden import Golden
from t1_edge.machine import kernels

_ROWS: Final = 2
_TOKENS: Final = 96  # of each row: a 4B reads two hundred tokens in ten seconds
_STEPS: Final = 8
_ENOUGH: Final = 0.3
"""Seconds after which no further repeat is begun."""

_LOG: Final = logging.getLogger(__name__)

Rows = Sequence[Sequence[int]]
Opener = Callable[[], AbstractContextManager[Engine]]


def race(
    build: Build, contestants: Mapping[str, Opener], key: object, *, again: bool = False
) -> dict[str, float]:
    """Seconds that engines take to read two rows and write eight tokens, the best of two or more.

    A first time does not count, since it reads weights from a disk.

    Args:
        build: Its golden rows are read, drawn out to two of 96 tokens.
        contestants: What opens each engine, by name; they are opened one after another.
        key: What the result depends on beside the build and the machine.
        again: Measure even if the cache knows.

    Raises:
        BuildError: If the golden rows are damaged.
        EngineError: If an engine cannot be opened, or fails.
    """
    what = [build.state(), kernels(), list(contestants), key]

    def run() -> dict[str, float]:
        _LOG.info("measuring which is faster here: %s", " or ".join(contestants))
        golden = Golden.load(build.file(GOLDEN)).rows[:_ROWS]
        rows = [[*islice(cycle(row), _TOKENS)] for row in golden]
        return {name: _time(opener, rows) for name, opener in contestants.items()}

    return remembered("races", what, dict[str, float], run, again=again)


def _time(opener: Opener, rows: Rows) -> float:
    with opener() as engine:
        _work(engine, rows)
        began, best = time.monotonic(), _once(engine, rows)
        best = min(best, _once(engine, rows))
        while time.monotonic() - began < _ENOUGH:
            best = min(best, _once(engine, rows))
    return best


def _once(engine: Engine, rows: Rows) -> float:
    began = time.perf_counter()
    _work(engine, rows)
    return time.perf_counter() - began


def _work(engine: Engine, rows: Rows) -> None:
    """Read rows together, then write eight tokens behind the first."""
    with engine.start(rows, room=1) as session:
        session.peek(rows[0][-1])
    with engine.start(rows[:1], room=_STEPS + 1) as session:
        for _ in range(_STEPS):
            session.append({0: int(session.logits()[0].argmax())})
