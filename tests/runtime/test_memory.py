"""Engines that run out of memory: what they say, and that what they say helps."""

import multiprocessing
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np
import onnxruntime
import pytest

from t1_edge.build import Build, Format
from t1_edge.engines import room
from t1_edge.engines.base import Engine, Float32Array
from t1_edge.engines.llama import LlamaSession
from t1_edge.engines.select import open_engine
from t1_edge.errors import EngineError

SPAWN: Final = multiprocessing.get_context("spawn")

PEEKED: Final = 7
SHORT: Final = [5, 6, 7]
LONG: Final = [5, 6, 7, 8] * 250
MANY: Final = 64


@pytest.fixture
def build(tiny_build: Callable[..., Build]) -> Build:
    return tiny_build("llama", "portable")


@pytest.fixture
def onnx(build: Build) -> Iterator[Engine]:
    with closing(open_engine(build, engine="onnx", threads=1)) as opened:
        yield opened


@pytest.fixture
def llama(build: Build) -> Iterator[Engine]:
    with closing(open_engine(build, engine="gguf", threads=1)) as opened:
        opened.prime([SHORT[:2]])
        yield opened


def _peek(engine: Engine, row: list[int], rows: int = 1) -> Float32Array:
    with engine.start([row] * rows, room=1) as session:
        return session.peek(PEEKED)


def _raise(error: Exception) -> Callable[..., Any]:
    def instead(*args: object, **kwargs: object) -> None:
        raise error

    return instead


def _starve(answer: Any, path: Path, format: Format, spare: int) -> None:
    """Read too many rows in so many bytes, then as few as each refusal suggests, at once.

    Sends what the refusals said, how many rows ran, and how far a row is then from before.
    """
    with closing(open_engine(Build(path), engine=format, threads=1)) as engine:
        before = _peek(engine, SHORT)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, most))
        said: list[str] = []

        def follow(rows: int) -> int:
            try:
                _peek(engine, LONG, rows)
            except EngineError as e:
                said.append(str(e))
                return follow(int(str(e).rpartition(" ")[2]))
            return rows

        ran = follow(MANY)
        answer.send((said, ran, float(np.abs(_peek(engine, SHORT) - before).max())))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
@pytest.mark.parametrize(
    ("format", "spare", "why"),
    [
        ("onnx", 40_000_000, "Unable to allocate"),  # numpy, for keys and values
        ("onnx", 100_000_000, "ONNX Runtime failed on a chunk"),
        ("gguf", 48_000_000, "llama.cpp cannot make a context"),
    ],
)
def test_an_engine_without_memory_suggests_what_fits(
    build: Build, own_cache: Path, format: Format, spare: int, why: str
) -> None:
    answer, write = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=partial(_starve, write, build.path, format, spare))
    child.start()
    write.close()
    said, ran, moved = answer.recv()
    child.join(60)
    assert said[0].startswith(f"{MANY} rows of {len(LONG) + 1} tokens do not fit into memory")
    assert why in said[0]
    assert said[0].endswith("end other programs, or give a batch_size of 32")
    assert 1 <= ran < MANY
    assert moved == 0


@pytest.mark.parametrize(
    "words",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running "
        "MatMulNBits node. Failed to allocate memory for requested buffer of size 123",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
def test_onnx_runtimes_words_for_it_are_known(
    onnx: Engine, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    before = _peek(onnx, SHORT)
    with onnx.start([SHORT] * 8, room=1) as session:
        with monkeypatch.context() as patched:
            patched.setattr(
                onnxruntime.InferenceSession, "run_with_iobinding", _raise(RuntimeError(words))
            )
            for ask in (session.logits, partial(session.peek, PEEKED)):
                with pytest.raises(EngineError, match=r"8 rows of 4 tokens .* batch_size of 4$"):
                    ask()
        again = session.peek(PEEKED)
    np.testing.assert_allclose(again, np.repeat(before, 8, axis=0), atol=1e-4)


def test_what_else_fails_suggests_nothing(onnx: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = _raise(RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : no such input"))
    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", failing)
    with pytest.raises(EngineError, match=r"failed on a chunk .* no such input$"):
        _peek(onnx, SHORT, 8)


def test_a_device_without_room_for_the_cache_is_known(
    onnx: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = _raise(RuntimeError("CUDA failure 2: out of memory"))
    with monkeypatch.context() as patched:
        patched.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", failing)
        with pytest.raises(EngineError, match=r"8 rows of 4 tokens .* batch_size of 4$"):
            _peek(onnx, SHORT, 8)
    _peek(onnx, SHORT, 4)


def test_a_context_that_is_not_made_leaves_llama_usable(
    llama: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _peek(llama, SHORT)
    with monkeypatch.context() as patched:
        patched.setattr(llama_cpp, "llama_init_from_model", lambda model, parameters: None)
        with pytest.raises(EngineError, match=r"cannot make a context .* batch_size of 32$"):
            _peek(llama, LONG, MANY)
    np.testing.assert_array_equal(_peek(llama, SHORT), before)


def test_a_decode_without_memory_leaves_llama_usable(
    llama: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _peek(llama, SHORT)
    with llama.start([SHORT, LONG], room=1) as session:
        with monkeypatch.context() as patched:
            patched.setattr(llama_cpp, "llama_decode", lambda context, batch: -2)
            with pytest.raises(EngineError, match=r"2 rows of 1001 tokens .* batch_size of 1$"):
                session.logits()
        # What llama.cpp computes in may be gone: its next call would end the process.
        with pytest.raises(EngineError, match="had no memory"):
            session.logits()
    np.testing.assert_array_equal(_peek(llama, SHORT), before)


def test_a_decode_that_fails_otherwise_suggests_nothing(
    llama: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda context, batch: -3)
    with pytest.raises(EngineError, match=r"llama\.cpp failed on \d tokens: it gave no reason$"):
        _peek(llama, SHORT, 8)


def test_one_row_that_does_not_fit_is_told_to_be_shorter(
    llama: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", lambda model, parameters: None)
    with pytest.raises(EngineError, match=r"1 rows of 1001 tokens .* or give shorter texts$"):
        _peek(llama, LONG)


def test_a_session_that_is_not_made_is_not_open(
    llama: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(LlamaSession, "__init__", _raise(MemoryError()))
        with pytest.raises(EngineError, match="do not fit into memory: end other programs"):
            _peek(llama, SHORT, 2)
    _peek(llama, SHORT, 1)


def test_scores_of_documents_count(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are held at once: documents so long that they are not are read by tiles."""
    decoder = build.manifest.decoder
    for tokens in (500, 20_000):
        enough = int(2 * tokens * room._token_bytes(decoder, 4) / room._SPARE) + 9
        monkeypatch.setattr(room, "free_memory", partial(int, enough))
        room.check_room(decoder, 2, tokens, cache_bytes=4)
        if room.score_bytes(decoder, tokens) > room.MOST_SCORES:
            room.check_room(decoder, 2, tokens, cache_bytes=4, documents=True)
        else:
            with pytest.raises(EngineError, match="2 rows of 500 tokens need"):
                room.check_room(decoder, 2, tokens, cache_bytes=4, documents=True)
