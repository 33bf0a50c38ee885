"""An encoder among threads and processes, and what is left of one that is gone."""

import gc
import multiprocessing
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from scripted import scripted_encoder
from t1_edge.build import Build
from t1_edge.encoder import Encoder
from t1_edge.engines.select import EngineChoice
from t1_edge.errors import BuildError, EngineError, InputError
from t1_edge.machine import open_files, resident_bytes
from t1_edge.query_cache import QueryCache
from t1_edge.results import QueryEmbedding
from t1_edge.thinking import Settle

Float32Array = NDArray[np.float32]

TEXTS: Final = ["the lake", "", "water of the north " * 9, "why does the weather turn"]
SPAWN: Final = multiprocessing.get_context("spawn")

OPENED: Final = 200
WARM: Final = 40
GROWTH: Final = 4 * 2**20
"""Bytes: what llama.cpp has for one tiny encoder."""


@pytest.fixture(params=["onnx", "gguf"])
def engine(request: pytest.FixtureRequest) -> EngineChoice:
    name: EngineChoice = request.param
    return name


@pytest.fixture
def path(tiny_build: Callable[..., Build]) -> Path:
    return tiny_build("llama", "float").path


@pytest.fixture
def encoder(path: Path, engine: EngineChoice) -> Iterator[Encoder]:
    with Encoder.load(path, engine=engine, threads=1, cache=False) as loaded:
        yield loaded


def _plain(found: Sequence[QueryEmbedding]) -> list[Any]:
    return [(one.vector.tolist(), one.thought_tokens, one.stopped_by) for one in found]


def _work(encoder: Encoder) -> list[Callable[[], Any]]:
    """One of everything, each as values that compare."""
    return [
        lambda: encoder.encode_documents(TEXTS).tolist(),
        lambda: encoder.encode_documents(TEXTS[:1] * 3).tolist(),
        lambda: _plain(encoder.encode_queries(TEXTS, budget=5, batch_size=3)),
        lambda: _plain([encoder.encode_query(TEXTS[3], budget=0)]),
        lambda: _plain([encoder.encode_query(TEXTS[0], budget=9)]),
        lambda: _plain([encoder.encode_query(TEXTS[3], budget=12, settle=Settle(cosine=0.9))]),
        lambda: _plain([encoder.encode_query(TEXTS[2], thought=" rain")]),
        lambda: _plain(list(encoder.encode_query_stream(TEXTS[0], budget=7, every=3))),
    ]


def test_threads_get_what_one_thread_gets(encoder: Encoder) -> None:
    work = _work(encoder)
    alone = [do() for do in work]
    together = threading.Barrier(6)

    def turn(first: int) -> list[Any]:
        together.wait()
        order = [(first + at) % len(work) for at in range(len(work))]
        found = {at: work[at]() for at in order}
        return [found[at] for at in range(len(work))]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(turn, range(6))) == [alone] * 6


def test_encoders_side_by_side_do_not_meet(path: Path) -> None:
    def one(engine: EngineChoice) -> list[Any]:
        with Encoder.load(path, engine=engine, threads=1, cache=False) as encoder:
            return [do() for do in _work(encoder)]

    engines: list[EngineChoice] = ["onnx", "gguf", "gguf", "onnx"]
    alone = [one(engine) for engine in engines]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, engines)) == alone


def test_an_encoder_is_closed_among_threads(tmp_path: Path) -> None:
    encoder, _ = scripted_encoder(QueryCache(tmp_path / "queries.sqlite"))
    begun = threading.Barrier(5)

    def ask(thread: int) -> str:
        begun.wait()
        for number in range(10_000):
            try:
                encoder.encode_query(f"{thread} {number % 50}", budget=1)
            except EngineError as e:
                return str(e)
        return "never closed"

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, thread) for thread in range(4)]
        begun.wait()
        encoder.close()
        assert {answer.result() for answer in answers} == {"the engine is closed"}
    with pytest.raises(EngineError, match="engine is closed"):
        encoder.encode_query("0 0", budget=1)  # known, perhaps; but not of one that is closed
    encoder.close()


def test_vectors_of_a_stream_can_be_taken_in_several_threads() -> None:
    """As web servers do: each in whichever thread is free, in a copy of the context."""
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    stream = encoder.encode_query_stream("x", budget=10, every=5)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        begun = first.submit(copy_context().run, next, stream).result()
        waiting = first.submit(encoder.encode_documents, ["y"])  # another's request: it waits
        rest = second.submit(copy_context().run, lambda: list(stream)).result()
        assert [one.stopped_by for one in (begun, *rest)] == ["open", "open", "budget"]
        assert waiting.result().shape == (1, 32)


def test_an_encoder_is_closed_under_a_stream(encoder: Encoder) -> None:
    stream = encoder.encode_query_stream("the lake", budget=8, every=1)
    assert next(stream).stopped_by == "open"
    with ThreadPoolExecutor(1) as pool:
        pool.submit(encoder.close).result(30)
    with pytest.raises(EngineError, match="was closed under this stream"):
        next(stream)
    assert list(stream) == []


def test_weights_end_with_the_encoder_whatever_keeps_a_stream(path: Path) -> None:
    with Encoder.load(path, engine="onnx", threads=1, cache=False) as encoder:
        stream = encoder.encode_query_stream("the lake", budget=8, every=1)
        next(stream)
        weights = weakref.ref(encoder._passes._engine._session)  # type: ignore[attr-defined]
        assert weights() is not None
    assert weights() is None
    stream.close()


_worker: Encoder | None = None


def _load(path: Path, engine: EngineChoice) -> None:
    _adopt(Encoder.load(path, engine=engine, threads=1, cache=False))


def _adopt(encoder: Encoder) -> None:
    global _worker
    _worker = encoder


def _encode(text: str) -> tuple[int, Float32Array, Float32Array]:
    assert _worker is not None
    [document] = _worker.encode_documents([text])
    return os.getpid(), document, _worker.encode_query(text, budget=4).vector


@pytest.mark.parametrize("pickled", [False, True])
def test_spawned_processes_give_the_same(
    encoder: Encoder, path: Path, engine: EngineChoice, pickled: bool
) -> None:
    given = (_adopt, (encoder,)) if pickled else (_load, (path, engine))
    with SPAWN.Pool(2, *given) as pool:
        found = pool.map(_encode, TEXTS, chunksize=1)
    for text, (process, document, query) in zip(TEXTS, found, strict=True):
        assert process != os.getpid()
        np.testing.assert_array_equal(document, encoder.encode_documents([text])[0])
        np.testing.assert_array_equal(query, encoder.encode_query(text, budget=4).vector)


def test_a_pickled_encoder_is_the_same_build_on_the_same_engine(
    encoder: Encoder, path: Path, engine: EngineChoice
) -> None:
    with pickle.loads(pickle.dumps(encoder)) as again:
        assert again.info == encoder.info
        assert again.fingerprint == encoder.fingerprint
        assert [do() for do in _work(again)] == [do() for do in _work(encoder)]
    with (
        Encoder.load(path, engine=engine, budget=2) as loaded,
        pickle.loads(pickle.dumps(loaded)) as again,
    ):
        assert again.codec.contract.budget == 2
    encoder.fingerprint = "of another export"
    with pytest.raises(BuildError, match="exported again"):
        pickle.loads(pickle.dumps(encoder))


def test_an_encoder_without_a_build_is_not_pickled() -> None:
    with pytest.raises(InputError, match=r"Encoder\.load"):
        pickle.dumps(scripted_encoder()[0])


def _try(encoder: Encoder, answer: Any) -> None:
    try:
        encoder.encode_query("x")
        answer.send("a vector")
    except EngineError as e:
        encoder.close()  # which is the parent's, and goes on
        answer.send(str(e))


def test_streams_of_two_encoders_are_told_apart() -> None:
    encoders = [scripted_encoder()[0] for _ in range(2)]
    streams = [encoder.encode_query_stream("a query", budget=2) for encoder in encoders]
    for stream in streams:
        next(stream)
    for encoder in encoders:
        with pytest.raises(EngineError, match="stream of this thread"):
            encoder.encode_query("another")
    streams[0].close()
    encoders[0].encode_query("another")
    with pytest.raises(EngineError, match="stream of this thread"):
        encoders[1].encode_query("another")
    for encoder in encoders:
        encoder.close()


@pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_to_load_its_own(tmp_path: Path) -> None:
    encoder, _ = scripted_encoder(QueryCache(tmp_path / "queries.sqlite"))
    encoder.encode_query("x")
    fork = multiprocessing.get_context("fork")
    answer, write = fork.Pipe(duplex=False)
    child = fork.Process(target=_try, args=(encoder, write))
    child.start()
    assert answer.poll(60)
    assert "forked" in answer.recv()
    child.join(60)
    assert encoder.encode_query("x").cached
    encoder.close()


def _open_and_close(answer: Any, path: Path, engine: EngineChoice, times: int, close: bool) -> None:
    """Resident bytes and open files once it is warm, and at the end."""
    samples = []
    for number in range(1, times + 1):
        encoder = Encoder.load(path, engine=engine, threads=1)
        encoder.encode_documents(TEXTS)
        encoder.encode_query("the lake", budget=2)
        next(encoder.encode_query_stream("the weather", budget=2))
        if close:
            encoder.close()
        del encoder
        if number in (WARM, times):
            gc.collect()
            samples.append((resident_bytes(), open_files()))
    answer.send(samples)


@pytest.mark.parametrize(("times", "close"), [(OPENED, True), (OPENED // 2, False)])
def test_nothing_stays_of_encoders(
    path: Path, engine: EngineChoice, own_cache: Path, times: int, close: bool
) -> None:
    """In a process of its own, whose memory nothing else moves; closed ones, and forgotten ones."""
    answer, write = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=partial(_open_and_close, write, path, engine, times, close))
    child.start()
    write.close()
    [(warm, warm_files), (resident, files)] = answer.recv()
    child.join(60)
    assert resident - warm < GROWTH
    assert files == warm_files


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
def test_weights_that_are_packed_anew_are_not_mapped_besides(path: Path) -> None:
    with Encoder.load(path, engine="gguf", threads=1, cache=False):
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert "model.gguf" not in mapped
