"""Ctrl-C in the midst of a pass: nothing stays held, and what is asked next comes out right."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import onnxruntime
import pytest

from scripted import scripted_encoder
from t1_edge.build import Build
from t1_edge.encoder import Encoder
from t1_edge.engines.base import Float32Array
from t1_edge.engines.select import EngineChoice
from t1_edge.results import QueryEmbedding

Interrupt = Callable[[int], None]
pytestmark = pytest.mark.usefixtures("heard")

LONG = "the weather in the north and the water of the lake " * 9


@pytest.fixture(params=["onnx", "gguf"])
def engine(request: pytest.FixtureRequest) -> EngineChoice:
    name: EngineChoice = request.param
    return name


@pytest.fixture
def path(tiny_build: Callable[..., Build]) -> Path:
    return tiny_build("llama", "portable").path


@pytest.fixture
def interrupt(engine: EngineChoice, monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Has Ctrl-C come while the library makes the n-th pass from now on: it is heard behind it."""
    where, name = {
        "onnx": (onnxruntime.InferenceSession, "run_with_iobinding"),
        "gguf": (llama_cpp, "llama_decode"),
    }[engine]
    run, left = getattr(where, name), [0]

    def interrupted(*given: Any) -> Any:
        found = run(*given)
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return found

    def arm(number: int) -> None:
        left[0] = number

    monkeypatch.setattr(where, name, interrupted)
    return arm


def _query(encoder: Encoder) -> list[QueryEmbedding]:
    return [encoder.encode_query(LONG, budget=5)]


def _stream(encoder: Encoder) -> list[QueryEmbedding]:
    return list(encoder.encode_query_stream(LONG, budget=5, every=2))


def _documents(encoder: Encoder) -> Float32Array:
    return encoder.encode_documents([LONG[:40], LONG, LONG[9:]], batch_size=1)


@pytest.mark.parametrize("work", [_query, _stream, _documents])
def test_after_an_interruption_in_any_pass_all_comes_out_as_ever(
    path: Path, engine: EngineChoice, interrupt: Interrupt, work: Callable[[Encoder], Any]
) -> None:
    def load() -> Encoder:
        return Encoder.load(path, engine=engine, threads=1, cache=False, documents="everything")

    with load() as encoder:
        thought, vectors = _query(encoder), _documents(encoder)
    for number in itertools.count(1):
        with load() as encoder:  # anew: what rows begin with is computed by the first pass
            interrupt(number)
            try:
                work(encoder)
            except KeyboardInterrupt:
                np.testing.assert_array_equal(_documents(encoder), vectors)
                [found] = _query(encoder)
                assert found.thought_tokens == thought[0].thought_tokens
                np.testing.assert_array_equal(found.vector, thought[0].vector)
            else:
                interrupt(0)
                break
    assert number > 4  # so many passes it took


def test_a_reader_that_is_interrupted_closes_its_stream() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70

    def read() -> None:
        for _ in encoder.encode_query_stream("x", budget=9):
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        read()
    assert encoder.encode_documents(["y"]).shape == (1, 32)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="Windows wakes nobody who waits")
def test_who_waits_for_a_turn_can_be_interrupted() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    turns = encoder._passes._turns
    begun, done = threading.Event(), threading.Event()

    def stream() -> None:
        following = encoder.encode_query_stream("x", budget=9)
        next(following)
        begun.set()
        while not turns._waiting:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        assert done.wait(30)
        following.close()

    holder = threading.Thread(target=stream)
    holder.start()
    assert begun.wait(30)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode_documents(["y"])
    assert not turns._waiting
    done.set()
    holder.join(30)
    assert encoder.encode_documents(["y"]).shape == (1, 32)
