"""Which of two engines is the faster one for a build, here: a short measurement, made once."""

import contextlib
import hashlib
import platform
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Final

import msgspec

from t1_edge.build import GOLDEN, Build, Format
from t1_edge.cache import cache_dir
from t1_edge.engines.base import Engine
from t1_edge.engines.devices import DeviceName
from t1_edge.engines.opening import library_of, open_format
from t1_edge.golden import Golden
from t1_edge.machine import processor

_ROWS: Final = 4
_TOKENS: Final = 24  # of each row: a 4B reads about a hundred tokens in some seconds
_STEPS: Final = 8
_ENOUGH: Final = 0.3
"""Seconds after which no further repeat is begun."""


def race(
    build: Build,
    formats: Sequence[Format],
    device: DeviceName,
    threads: int,
    *,
    again: bool = False,
) -> dict[Format, float]:
    """Seconds that engines take for the same work: four short rows read, eight tokens written.

    Kept in the cache by build, machine and libraries.

    Args:
        build: Its golden rows are read.
        formats: Whose engines run, one after another.
        device: Where.
        threads: CPU threads.
        again: Measure even if the cache knows.

    Raises:
        BuildError: If the golden rows are damaged.
        DeviceError: If the device cannot run a format.
        EngineError: If an engine fails.
        MissingExtraError: If an engine's library is not installed.
    """
    machine = [platform.node(), processor().name, device, threads]
    what = [build.state(), machine, [library_of(format) for format in formats]]
    key = hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:32]
    path = cache_dir() / "races" / f"{key}.json"
    if not again:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(path.read_bytes(), type=dict[Format, float])
    rows = [row[:_TOKENS] for row in Golden.load(build.file(GOLDEN)).rows[:_ROWS]]
    found = {format: _time(build, format, device, threads, rows) for format in formats}
    # A cache that cannot be written costs another measurement, nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(found))
    return found


def _time(
    build: Build,
    format: Format,
    device: DeviceName,
    threads: int,
    rows: Sequence[Sequence[int]],
) -> float:
    manifest = build.manifest
    exact = manifest.profile == "float"
    with closing(
        open_format(
            build.path, format, manifest.decoder, exact=exact, device=device, threads=threads
        )
    ) as engine:
        began, best = time.monotonic(), _once(engine, rows)
        while time.monotonic() - began < _ENOUGH:
            best = min(best, _once(engine, rows))
    return best


def _once(engine: Engine, rows: Sequence[Sequence[int]]) -> float:
    """Read rows together, then write behind the first."""
    began = time.perf_counter()
    with engine.start(rows, room=1) as session:
        session.peek(rows[0][-1])
    with engine.start(rows[:1], room=_STEPS + 1) as session:
        for _ in range(_STEPS):
            session.append({0: int(session.logits()[0].argmax())})
    return time.perf_counter() - began
