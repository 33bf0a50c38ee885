"""Threads, streams and the query cache over int4 builds; and that encoders share the cores."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from t1_edge.build import Build
from t1_edge.cores import Cores
from t1_edge.encoder import Encoder
from t1_edge.engines.base import Engine
from t1_edge.engines.select import EngineChoice, open_engine
from t1_edge.machine import usable_cores
from t1_edge.thinking import Settle

Float32Array = NDArray[np.float32]

TEXTS = ["the lake", "", "water of the north " * 9, "why does the weather turn"]
ROWS = ([1, 2, 3, 4, 5, 6, 7], [8] * 40, [9, 10, 11], list(range(20, 41)), list(range(50, 62)))
GROWN = (60, 61, 62)

TOLERANCE = {"onnx": 1e-4, "gguf": 3e-2}
"""Largest change of a unit vector's component, as docs/devices.md has it."""

two_cores = pytest.mark.skipif(usable_cores() < 2, reason="two threads need two cores")


@pytest.fixture(params=["onnx", "gguf"])
def engine(request: pytest.FixtureRequest) -> EngineChoice:
    name: EngineChoice = request.param
    return name


@pytest.fixture
def build(tiny_build: Callable[..., Build]) -> Build:
    return tiny_build("llama", "portable")


@pytest.fixture
def encoder(build: Build, engine: EngineChoice) -> Iterator[Encoder]:
    with Encoder.load(build.path, engine=engine, threads=1, cache=False) as loaded:
        yield loaded


def _unit(hidden: Float32Array) -> Float32Array:
    return np.asarray(hidden / np.linalg.norm(hidden, axis=1, keepdims=True))


def _vectors(engine: Engine) -> list[Float32Array]:
    """Of rows together, of each alone, and of all once they have grown token by token."""
    with closing(engine.start(ROWS, room=len(GROWN) + 1)) as session:
        found = [session.peek(7)]
        for token in GROWN:
            session.logits()
            session.append(dict.fromkeys(range(len(ROWS)), token))
        found.append(session.peek(7))
    for row in ROWS:
        with closing(engine.start([row], room=1)) as session:
            found.append(session.peek(7))
    return [_unit(hidden) for hidden in found]


@two_cores
@pytest.mark.parametrize("profile", ["float", "portable"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_threads_change_no_vector(
    tiny_build: Callable[..., Build], engine: EngineChoice, family: str, profile: str
) -> None:
    found = []
    for threads in (1, 2):
        opened = open_engine(tiny_build(family, profile), engine=engine, threads=threads)
        with closing(opened):
            found.append(_vectors(opened))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, atol=TOLERANCE[engine], rtol=0)


def test_a_stream_begins_with_the_direct_vector_and_repeats(encoder: Encoder) -> None:
    for text in TEXTS:
        found = list(encoder.encode_query_stream(text, budget=9, every=2))
        again = list(encoder.encode_query_stream(text, budget=9, every=2))
        assert [one.thought_tokens for one in found] == [one.thought_tokens for one in again]
        for one, other in zip(found, again, strict=True):
            np.testing.assert_array_equal(one.vector, other.vector)
        np.testing.assert_array_equal(found[0].vector, encoder.encode_query(text, budget=0).vector)
        assert [one.stopped_by for one in found[:-1]] == ["open"] * (len(found) - 1)
        assert found[-1].stopped_by in ("budget", "closed", "stop_token")
        for one, later in pairwise(found):
            assert later.thought_tokens[: len(one.thought_tokens)] == one.thought_tokens


def test_a_stream_s_vectors_are_those_of_its_thoughts(
    encoder: Encoder, build: Build, engine: EngineChoice
) -> None:
    """Where a row is cut moves int4 vectors: they are held to the rows in one pass."""
    codec = encoder.codec
    with closing(open_engine(build, engine=engine, threads=1)) as opened:
        for text in TEXTS:
            for one in encoder.encode_query_stream(text, budget=9, every=2):
                row = [*codec.query(text).tokens, *one.thought_tokens, *codec.ending[:-1]]
                with closing(opened.start([row], room=1)) as session:
                    [whole] = _unit(session.peek(codec.ending[-1]))
                np.testing.assert_allclose(one.vector, whole, atol=3e-2)


@pytest.mark.parametrize("cosine", [0.8, 0.95])
def test_what_settles_does_not_see_its_batch(build: Build, cosine: float) -> None:
    """In ONNX Runtime: a batch moves llama.cpp's numbers, and a random decoder thinks otherwise."""
    settle = Settle(cosine=cosine, every=2)
    with Encoder.load(build.path, engine="onnx", threads=1, cache=False) as encoder:
        together = encoder.encode_queries(TEXTS, budget=9, settle=settle)
        assert {one.stopped_by for one in together} >= {"settled", "budget"}
        for text, found in zip(TEXTS, together, strict=True):
            alone = encoder.encode_query(text, budget=9, settle=settle)
            assert found.thought_tokens == alone.thought_tokens
            assert found.stopped_by == alone.stopped_by
            np.testing.assert_allclose(found.vector, alone.vector, atol=1e-4, rtol=0)


def test_the_query_cache_gives_what_the_engine_gave(
    build: Build, engine: EngineChoice, own_cache: Path
) -> None:
    settle = Settle(cosine=0.9, every=2)
    asked: list[dict[str, Any]] = [{"budget": 0}, {"budget": 6}, {"budget": 6, "settle": settle}]
    with Encoder.load(build.path, engine=engine, threads=1) as encoder:
        fresh = [encoder.encode_queries(TEXTS, batch_size=3, **how) for how in asked]
    with Encoder.load(build.path, engine=engine, threads=1) as encoder:
        known = [[encoder.encode_query(text, **how) for text in TEXTS] for how in asked]
    for before, after in zip(fresh, known, strict=True):
        for one, other in zip(before, after, strict=True):
            assert (one.cached, other.cached) == (False, True)
            assert (one.thought_tokens, one.stopped_by) == (other.thought_tokens, other.stopped_by)
            np.testing.assert_array_equal(one.vector, other.vector)


class Watch:
    """How many threads compute, all libraries together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def over(self, run: Callable[..., Any], threads: int) -> Callable[..., Any]:
        """A library's pass, watched, and long enough to be met."""

        def watched(*given: Any) -> Any:
            with self._lock:
                self.now += threads
                self.most = max(self.most, self.now)
            time.sleep(0.001)
            try:
                return run(*given)
            finally:
                with self._lock:
                    self.now -= threads

        return watched


@two_cores
def test_passes_of_encoders_have_no_more_threads_than_there_are_cores(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[EngineChoice, int] = {"onnx": 2, "gguf": 1}
    encoders = [
        Encoder.load(build.path, engine=engine, threads=count, cache=False, documents="everything")
        for engine, count in threads.items()
        for _ in range(2)
    ]
    cores, watch = Cores(2), Watch()
    monkeypatch.setattr("t1_edge.passes.process_cores", lambda: cores)
    for where, name, count in (
        (onnxruntime.InferenceSession, "run_with_iobinding", threads["onnx"]),
        (llama_cpp, "llama_decode", threads["gguf"]),
    ):
        monkeypatch.setattr(where, name, watch.over(getattr(where, name), count))

    def work(encoder: Encoder) -> None:
        for text in TEXTS * 2:
            encoder.encode_documents([text])
            encoder.encode_query(text, budget=4)
            list(encoder.encode_query_stream(text, budget=4, every=2))
        encoder.close()

    with ThreadPoolExecutor(len(encoders)) as pool:
        list(pool.map(work, encoders))
    assert watch.most == 2
