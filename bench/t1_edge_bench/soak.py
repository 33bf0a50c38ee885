"""Mixed work for as long as one likes, and what memory it leaves: each engine in its own process.

Several threads call one encoder with everything that it can do, errors of the caller's included.
Every so often they pause, and what is resident then is what stays, not what a batch needs: the
heaps give back what is free in them first, for how full their pages are is chance.
"""

import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice, repeat
from typing import Final

import msgspec

from t1_edge.build import Build, Format
from t1_edge.cache import find_build
from t1_edge.encoder import Encoder
from t1_edge.engines.base import Float32Array
from t1_edge.engines.opening import require
from t1_edge.errors import EngineError, InputError, T1Error
from t1_edge.machine import (
    available_threads,
    open_files,
    peak_resident_bytes,
    resident_bytes,
)
from t1_edge.thinking import Settle
from t1_edge_bench.pydoc import passages

_ROUNDS: Final = 100
"""Pauses in all: ten for each tenth of the time, of which a median is taken."""

_CALLERS: Final = 4
_BUDGETS: Final = (0, 4, 16)
_LONGEST: Final = 900
"""Words of a text: more than any build reads."""

_MOST_ERRORS: Final = 5
_SAME: Final = 0.999
"""Cosine of one query's vectors, first and later: llama.cpp rounds by what runs together."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one pause found.

    Attributes:
        seconds: Since the work began.
        resident: Bytes that the process had in memory, without what was free in its heaps where
            the C library gives that back (glibc).
        open_files: File descriptors that it had.
        operations: Calls that had ended.
    """

    seconds: float
    resident: int
    open_files: int
    operations: int


class SoakRow(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one engine. Sizes in bytes; medians of the samples of a tenth of the time.

    Attributes:
        build: As it was asked for.
        library: What really ran.
        device: Where it ran.
        threads: CPU threads it had.
        callers: Threads that called it.
        seed: What the work was drawn from.
        seconds: How long it worked.
        operations: Calls by kind.
        errors: What went wrong and should not have, each caller's first.
        warm: Resident in the second tenth.
        end: Resident in the last tenth.
        growth: `end` beyond `warm`, as a share of it.
        files: File descriptors in the second tenth, and in the last.
        peak_resident: Most memory the process had.
        samples: One a pause.
    """

    build: str
    library: str
    device: str
    threads: int
    callers: int
    seed: int
    seconds: float
    operations: dict[str, int]
    errors: list[str]
    warm: float
    end: float
    growth: float
    files: tuple[float, float]
    peak_resident: int
    samples: list[Sample]


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the process of its own is asked for."""

    build: str
    path: str
    engine: Format
    threads: int
    seconds: float
    seed: int


def soak(
    build: str, *, engine: Format, seconds: float, threads: int | None = None, seed: int = 0
) -> SoakRow:
    """Have one engine work, in a fresh process and with a query cache of its own.

    Args:
        build: Name or path of the build.
        engine: Which of the build's formats.
        seconds: How long.
        threads: CPU threads; those the process may use if None.
        seed: The same seed asks for the same calls of each kind; how many is a matter of time.

    Raises:
        BuildError: If the build is damaged.
        CacheError: If there is no such build.
        EngineError: If the process ends before it should.
        MissingExtraError: If the engine's library is not installed.
    """
    request = _Request(
        build=build,
        path=str(Build(find_build(build)).path.resolve()),
        engine=engine,
        threads=available_threads() if threads is None else threads,
        seconds=seconds,
        seed=seed,
    )
    require(engine)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_work, request).result()
        except BrokenProcessPool as e:
            raise EngineError(f"the process that ran {engine} was killed, or crashed") from e


def tenths(figures: Sequence[float]) -> tuple[float, float]:
    """Medians of the second tenth, when all is warm, and of the last; of ten figures or more."""
    tenth = len(figures) // 10
    return statistics.median(figures[tenth : 2 * tenth]), statistics.median(figures[-tenth:])


class _AbandonedError(Exception):
    """Who asked was killed: nobody would read what is found in an hour."""


def _work(request: _Request) -> SoakRow:
    """What the process of its own does."""
    try:
        return _soaked(request)
    except _AbandonedError:
        os._exit(1)  # else it waits for another request for ever


def _soaked(request: _Request) -> SoakRow:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["T1_EDGE_CACHE"] = cache
        with Encoder.load(request.path, engine=request.engine, threads=request.threads) as encoder:
            callers = [_Caller(encoder, request.seed, number) for number in range(_CALLERS)]
            samples = _rounds(callers, request.seconds)
            info = encoder.info
    warm, end = tenths([sample.resident for sample in samples])
    return SoakRow(
        build=request.build,
        library=info.library,
        device=info.device,
        threads=info.threads,
        callers=_CALLERS,
        seed=request.seed,
        seconds=samples[-1].seconds,
        operations=dict(sorted(_total(callers).items())),
        errors=[error for caller in callers for error in caller.errors],
        warm=warm,
        end=end,
        growth=end / warm - 1,
        files=tenths([sample.open_files for sample in samples]),
        peak_resident=peak_resident_bytes(),
        samples=samples,
    )


def _rounds(callers: Sequence["_Caller"], seconds: float) -> list[Sample]:
    """All callers at work, and a sample whenever they pause."""
    samples: list[Sample] = []
    asked_by = multiprocessing.parent_process()
    with ThreadPoolExecutor(len(callers)) as pool:
        list(pool.map(_Caller.do_the_most, callers))
        began = time.monotonic()
        for number in range(1, _ROUNDS + 1):
            until = began + seconds * number / _ROUNDS
            list(pool.map(_Caller.work, callers, repeat(until)))
            if asked_by is not None and not asked_by.is_alive():
                raise _AbandonedError
            samples.append(
                Sample(
                    seconds=time.monotonic() - began,
                    resident=resident_bytes(),
                    open_files=open_files(),
                    operations=_total(callers).total(),
                )
            )
    return samples


def _total(callers: Sequence["_Caller"]) -> Counter[str]:
    return sum((caller.done for caller in callers), Counter[str]())


class _Caller:
    """One thread's calls, drawn from a seed.

    Attributes:
        done: Calls by kind.
        errors: What went wrong and should not have, the first ones.
    """

    def __init__(self, encoder: Encoder, seed: int, number: int) -> None:
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self._encoder = encoder
        self._draw = random.Random(f"{seed}/{number}")
        self._words = " ".join(passage.text for passage in passages()).split()
        self._first = self._same()
        self._kinds: dict[str, Callable[[], object]] = {
            "cancelled stream": self._cancel,
            "deadline": self._deadline,
            "documents": self._documents,
            "given thought": self._read,
            "query again": self._again,
            "queries": self._queries,
            "refused": self._refused,
            "settled": self._settle,
        }

    def work(self, until: float) -> None:
        """Call the encoder until a time by `time.monotonic`, one call at least."""
        while True:
            kind = self._draw.choice(list(self._kinds))
            try:
                self._kinds[kind]()
            except Exception as e:  # whatever it is, it is what the soak looks for
                if len(self.errors) < _MOST_ERRORS:
                    self.errors.append(f"{kind}: {type(e).__name__}: {e}")
            self.done[kind] += 1
            if time.monotonic() >= until:
                return

    def do_the_most(self) -> None:
        """The largest calls that there will be, so that no later one makes memory grow."""
        self._encoder.embed_documents([self._text(_LONGEST) for _ in range(16)], truncate=True)
        texts = [self._text(_LONGEST) for _ in range(8)]
        self._encoder.encode_queries(texts, budget=max(_BUDGETS), batch_size=8)
        with suppress(InputError):
            self._too_long()

    def _text(self, words: int) -> str:
        at = self._draw.randrange(len(self._words) - words)
        return " ".join(self._words[at : at + words])

    def _some(self, most: int, words: Sequence[int]) -> list[str]:
        return [self._text(self._draw.choice(words)) for _ in range(self._draw.randint(1, most))]

    def _question(self) -> str:
        return self._text(self._draw.randint(0, 20))

    def _queries(self) -> None:
        texts = self._some(8, (1, 8, 30, _LONGEST))
        budget, batch = self._draw.choice(_BUDGETS), self._draw.choice((1, 3, 8))
        self._encoder.encode_queries(texts, budget=budget, batch_size=batch)

    def _documents(self) -> None:
        texts = self._some(16, (0, 5, 60, 200, _LONGEST))
        self._encoder.embed_documents(texts, truncate=True)

    def _cancel(self) -> None:
        stream = self._encoder.encode_query_stream(
            self._question(), budget=max(_BUDGETS), every=self._draw.randint(1, 6)
        )
        for _ in islice(stream, self._draw.randint(0, 4)):
            pass
        stream.close()

    def _deadline(self) -> None:
        deadline = self._draw.choice((0, 0.002, 0.02, 0.2))
        self._encoder.encode_query(self._question(), budget=max(_BUDGETS), deadline=deadline)

    def _settle(self) -> None:
        settle = Settle(
            cosine=self._draw.choice((0.8, 0.95, 0.999)), every=self._draw.randint(1, 4)
        )
        self._encoder.encode_query(self._question(), budget=max(_BUDGETS), settle=settle)

    def _read(self) -> None:
        thought = self._text(self._draw.randint(0, 12))
        self._encoder.encode_query(self._question(), thought=thought)

    def _refused(self) -> None:
        """Mistakes that callers make; each must be refused, and leave the encoder as it was."""
        encoder = self._encoder
        mistakes: list[Callable[[], object]] = [
            self._too_long,
            lambda: encoder.encode_query("a lone \ud800"),
            lambda: encoder.encode_query("x", budget=-1),
            lambda: encoder.encode_documents("one string"),
            lambda: encoder.encode_query("x", budget=10**6),  # no engine has room for it
        ]
        try:
            self._draw.choice(mistakes)()
        except (EngineError, InputError):
            return
        raise AssertionError("a mistake was not refused")

    def _too_long(self) -> None:
        """Cutting so much into tokens takes tens of megabytes for a moment."""
        self._encoder.encode_documents(["fine", self._text(_LONGEST) * 10])

    def _again(self) -> None:
        cosine = float(self._same() @ self._first)
        if cosine < _SAME:
            raise T1Error(f"a vector moved to a cosine of {cosine:.4f}")

    def _same(self) -> Float32Array:
        """One query's vector, computed each time: the cache is not asked for given thoughts."""
        return self._encoder.encode_query("what is a name bound to", thought="").vector
