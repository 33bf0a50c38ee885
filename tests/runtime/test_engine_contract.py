"""What every engine must keep, whatever it multiplies with. One suite, all engines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from t1_edge.build import Build
from t1_edge.engines.base import Engine
from t1_edge.engines.fake import FakeEngine
from t1_edge.engines.onnx import OnnxEngine
from t1_edge.engines.places import PLACES
from t1_edge.engines.select import open_engine
from t1_edge.engines.webgpu import WebGpuEngine
from t1_edge.errors import EngineError, InputError
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.reference_engine import ReferenceEngine
from tiny import Tiny

PEEKED = 7
RAGGED = ([1, 2, 3, 4, 5, 6, 7], [8] * 40, [9, 10, 11], list(range(20, 41)), list(range(50, 62)))


@dataclass(frozen=True, kw_only=True)
class Case:
    """An engine over float weights, and how far its vectors may move.

    Attributes:
        engine: The engine.
        batch: Largest change of a unit vector's component by what else is in the batch.
        split: The same by how tokens were split into calls.
    """

    engine: Engine
    batch: float
    split: float


TOLERANCES = {
    "fake": (0.0, 1e-6),
    "onnx": (1e-5, 1e-5),
    "gguf": (1e-5, 1e-5),
    "half": (4e-3, 4e-3),
    "alone": (0.0, 1e-5),
    "float": (1e-6, 1e-6),
    "streamed": (1e-6, 1e-6),
}


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        "onnx-llama",
        "onnx-qwen3",
        "gguf-llama",
        "gguf-qwen3",
        "half-llama",
        "half-qwen3",
        "alone-llama",
        "alone-qwen3",
        "float-llama",
        "float-qwen3",
        "streamed-llama",
        "streamed-qwen3",
    ],
)
def case(
    request: pytest.FixtureRequest, tiny: Callable[..., Tiny], tiny_build: Callable[..., Build]
) -> Iterator[Case]:
    format, _, family = request.param.partition("-")
    engine: Engine
    if format == "fake":
        engine = FakeEngine(vocabulary=384)
    elif format in ("float", "streamed"):
        checkpoint = open_checkpoint(tiny(family).folder)
        engine = ReferenceEngine(checkpoint, keep=format == "float")
    elif format == "half":
        engine = _cuda_engine(tiny_build(family, "portable"))
    elif format == "alone":
        engine = _webgpu_engine(tiny_build(family, "float"))
    else:
        engine = open_engine(tiny_build(family, "float"), engine=format, threads=1)
    batch, split = TOLERANCES[format]
    yield Case(engine=engine, batch=batch, split=split)
    engine.close()


def _cuda_engine(build: Build) -> OnnxEngine:
    """What drives CUDA, its graph and its float16 cache, with the CPU in CUDA's place."""
    place = replace(PLACES["cuda"], provider="CPUExecutionProvider", memory="cpu")
    return OnnxEngine(build.path, build.manifest.decoder, threads=1, place=place)


def _webgpu_engine(build: Build) -> WebGpuEngine:
    """What drives WebGPU, a row at a time, with the CPU in WebGPU's place."""
    place = replace(PLACES["webgpu"], provider="CPUExecutionProvider", memory="cpu")
    return WebGpuEngine(build.path, build.manifest.decoder, threads=1, place=place)


def _unit(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(hidden / np.linalg.norm(hidden, axis=1, keepdims=True))


def _peek(engine: Engine, rows: Sequence[Sequence[int]], room: int = 1) -> NDArray[np.float32]:
    with closing(engine.start(rows, room=room)) as session:
        return _unit(session.peek(PEEKED))


def test_shapes_and_types(case: Case) -> None:
    with closing(case.engine.start(RAGGED, room=2)) as session:
        logits, hidden = session.logits(), session.peek(PEEKED)
    assert logits.dtype == hidden.dtype == np.float32
    assert logits.shape[0] == hidden.shape[0] == len(RAGGED)
    assert logits.shape[1] >= 384


def test_a_row_does_not_see_its_batch(case: Case) -> None:
    alone = np.concatenate([_peek(case.engine, [row]) for row in RAGGED])
    np.testing.assert_allclose(_peek(case.engine, RAGGED), alone, atol=case.batch, rtol=0)


def test_order_does_not_matter(case: Case) -> None:
    turned = _peek(case.engine, RAGGED[::-1])[::-1]
    np.testing.assert_allclose(_peek(case.engine, RAGGED), turned, atol=case.batch, rtol=0)


def test_a_shared_beginning_changes_nothing(case: Case) -> None:
    rows = [[100, 101, 102, 103, *row] for row in RAGGED]
    alone = np.concatenate([_peek(case.engine, [row]) for row in rows])
    np.testing.assert_allclose(_peek(case.engine, rows), alone, atol=case.batch, rtol=0)


def test_what_rows_begin_with_may_be_computed_once(case: Case) -> None:
    beginnings = [[100, 101, 102, 103], [100, 101], [90, 91]]
    rows = [[100, 101, 102, 103, *row] for row in RAGGED]
    rows += [[100, 101, 5], [90, 91], [90, 91, 8], [100, 101, 102, 103], [7, 8]]
    whole = np.concatenate([_peek(case.engine, [row]) for row in rows])
    with closing(case.engine.start(rows, room=2)) as session:
        logits = session.logits()
    case.engine.prime(beginnings)
    try:
        for _ in range(2):  # computed, then known
            together = _peek(case.engine, rows)
            np.testing.assert_allclose(together, whole, atol=case.split, rtol=0)
        alone = np.concatenate([_peek(case.engine, [row]) for row in rows])
        np.testing.assert_allclose(together, alone, atol=case.batch, rtol=0)
        with closing(case.engine.start(rows, room=2)) as session:
            found = session.logits()
            session.append({0: 9})
            grown = _unit(session.peek(PEEKED))[:1]
    finally:
        case.engine.prime([])
    scale = np.abs(logits).max()
    np.testing.assert_allclose(found / scale, logits / scale, atol=10 * case.split, rtol=0)
    expected = _peek(case.engine, [[*rows[0], 9]])
    np.testing.assert_allclose(grown, expected, atol=case.split, rtol=0)


def test_appending_is_starting_longer(case: Case) -> None:
    with closing(case.engine.start([row[:2] for row in RAGGED], room=60)) as session:
        for at in range(2, max(map(len, RAGGED))):
            session.logits()
            session.append({i: row[at] for i, row in enumerate(RAGGED) if at < len(row)})
        grown = _unit(session.peek(PEEKED))
        logits = session.logits()
    with closing(case.engine.start(RAGGED, room=1)) as session:
        expected = session.logits()
    np.testing.assert_allclose(grown, _peek(case.engine, RAGGED), atol=case.split, rtol=0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, atol=10 * case.split, rtol=0)


def test_appends_are_noted_until_they_are_needed(case: Case) -> None:
    with closing(case.engine.start([row[:3] for row in RAGGED], room=60)) as session:
        for i, row in enumerate(RAGGED):
            for token in row[3:]:
                session.append({i: token})
        found = _unit(session.peek(PEEKED))
    np.testing.assert_allclose(found, _peek(case.engine, RAGGED), atol=case.split, rtol=0)


def test_rows_left_alone_keep_their_logits(case: Case) -> None:
    with closing(case.engine.start(RAGGED, room=4)) as session:
        before = session.logits()
        session.append({1: 5, 3: 6})
        after = session.logits()
    kept = [0, 2, 4]
    np.testing.assert_array_equal(after[kept], before[kept])
    assert not np.allclose(after[1], before[1])


def test_peeking_keeps_nothing(case: Case) -> None:
    with closing(case.engine.start(RAGGED, room=4)) as session:
        logits = session.logits()
        first, other, again = (session.peek(token) for token in (PEEKED, 3, PEEKED))
        kept = session.logits()
        session.append(dict.fromkeys(range(len(RAGGED)), 11))
        grown = _unit(session.peek(PEEKED))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(logits, kept)
    expected = _peek(case.engine, [[*row, 11] for row in RAGGED])
    np.testing.assert_allclose(grown, expected, atol=case.split, rtol=0)


def test_peeking_at_several_tokens_is_growing_by_them(case: Case) -> None:
    with closing(case.engine.start(RAGGED, room=4)) as session:
        logits = session.logits()
        far = _unit(session.peek(11, 12, PEEKED))
        near = _unit(session.peek(PEEKED))
        np.testing.assert_array_equal(session.logits(), logits)
    grown = _peek(case.engine, [[*row, 11, 12] for row in RAGGED])
    np.testing.assert_allclose(far, grown, atol=case.split, rtol=0)
    np.testing.assert_allclose(near, _peek(case.engine, RAGGED), atol=case.split, rtol=0)


def test_peeking_at_nothing_is_refused(case: Case) -> None:
    with (
        closing(case.engine.start(RAGGED, room=4)) as session,
        pytest.raises(InputError, match="at least one token"),
    ):
        session.peek()


@pytest.mark.parametrize("rows", [RAGGED, RAGGED[:1], ([1, 2], [3])])
def test_logits_after_a_peek_are_those_of_the_last_kept_token(
    case: Case, rows: Sequence[Sequence[int]]
) -> None:
    with closing(case.engine.start(rows, room=4)) as session:
        session.peek(PEEKED)
        session.append({0: 5})
        session.peek(6, PEEKED)
        late = session.logits()
    with closing(case.engine.start(rows, room=4)) as session:
        session.append({0: 5})
        early = session.logits()
    scale = np.abs(early).max()
    np.testing.assert_allclose(late / scale, early / scale, atol=10 * case.split, rtol=0)


def test_long_rows(case: Case) -> None:
    rows = [[(7 * at) % 380 for at in range(600)], [1, 2, 3]]
    found = _peek(case.engine, rows)
    alone = np.concatenate([_peek(case.engine, [row]) for row in rows])
    np.testing.assert_allclose(found, alone, atol=case.batch, rtol=0)


def test_many_rows(case: Case) -> None:
    rows = [[at + 1, at + 2, at + 3] for at in range(64)]
    found = _peek(case.engine, rows)
    np.testing.assert_allclose(
        found[40:41], _peek(case.engine, [rows[40]]), atol=case.batch, rtol=0
    )


@pytest.mark.parametrize("rows", [[], [[]], [[1], []]])
def test_nothing_to_run_is_refused(case: Case, rows: list[list[int]]) -> None:
    with pytest.raises(InputError, match="at least one"):
        case.engine.start(rows, room=1)


@pytest.mark.parametrize("token", [-1, 1_000_000])
def test_tokens_outside_the_vocabulary_are_refused(case: Case, token: int) -> None:
    with pytest.raises(InputError, match=str(token)):
        case.engine.start([[1, token]], room=1)


def test_rows_beyond_the_context_are_refused(case: Case) -> None:
    with pytest.raises(EngineError, match="context"):
        case.engine.start([[1] * 9000], room=1)


def test_a_row_that_is_full_says_so(case: Case) -> None:
    with closing(case.engine.start([[1, 2], [3]], room=2)) as session:
        session.append({0: 4, 1: 4})
        session.append({0: 4})
        with pytest.raises(EngineError, match="row 0 is full"):
            session.append({0: 4})


def test_a_peek_needs_room_too(case: Case) -> None:
    with closing(case.engine.start([[1, 2], [3]], room=1)) as session:
        session.peek(PEEKED)
        with pytest.raises(EngineError, match="row 0 is full"):
            session.peek(PEEKED, PEEKED)
        session.append({1: 4})
        session.logits()
        with pytest.raises(EngineError, match="row 1 is full"):
            session.peek(PEEKED)


def test_what_is_refused_changes_nothing(case: Case) -> None:
    with closing(case.engine.start([[1, 2], [3]], room=2)) as session:
        before = _unit(session.peek(PEEKED))
        for tokens in ({0: 5, 1: 1_000_000}, {0: -1}):
            with pytest.raises(InputError, match="vocabulary"):
                session.append(tokens)
        with pytest.raises(InputError, match="vocabulary"):
            session.peek(1_000_000)
        np.testing.assert_allclose(_unit(session.peek(PEEKED)), before, atol=case.split, rtol=0)


def test_a_closed_session_computes_nothing(case: Case) -> None:
    closed = case.engine.start([[1, 2]], room=2)
    closed.close()
    with closing(case.engine.start([[3, 4]], room=2)) as session:
        before = _unit(session.peek(PEEKED))
        for ask in (closed.logits, lambda: closed.peek(PEEKED), lambda: closed.append({0: 1})):
            with pytest.raises(EngineError, match="session is closed"):
                ask()
        np.testing.assert_allclose(_unit(session.peek(PEEKED)), before, atol=case.split, rtol=0)


def test_one_session_is_open_at_a_time(case: Case) -> None:
    with closing(case.engine.start([[1, 2]], room=2)) as session:
        before = _unit(session.peek(PEEKED))
        for ask in (lambda: case.engine.start([[1, 2]], room=2), lambda: case.engine.prime([[1]])):
            with pytest.raises(EngineError, match="still open"):
                ask()
        np.testing.assert_allclose(_unit(session.peek(PEEKED)), before, atol=case.split, rtol=0)


def test_what_cannot_be_opened_leaves_no_session_open(
    tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with closing(open_engine(tiny_build("llama", "float"), engine="onnx", threads=1)) as engine:
        with monkeypatch.context() as patch:
            patch.setattr("t1_edge.engines.onnx._allocate", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.start([[1, 2]], room=1)
        assert np.isfinite(_peek(engine, [[1, 2]])).all()


def test_more_rows_than_it_takes_are_refused(case: Case) -> None:
    with pytest.raises(EngineError, match="at most"):
        case.engine.start([[1]] * (case.engine.batch_rows + 1), room=1)


def test_no_room_is_refused(case: Case) -> None:
    with pytest.raises(InputError, match="room"):
        case.engine.start([[1]], room=0)


@pytest.mark.parametrize(
    ("threads", "message"),
    [(0, "1 thread or more"), (-1, "1 thread or more"), (9999, "are more than the")],
)
def test_no_threads_are_refused_and_more_than_processors(
    tiny_build: Callable[..., Build], threads: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_engine(tiny_build("llama", "float"), threads=threads)


def test_a_closed_engine_says_so(tiny_build: Callable[..., Build]) -> None:
    for format in ("onnx", "gguf"):
        engine = open_engine(tiny_build("llama", "float"), engine=format, threads=1)
        session = engine.start([[1, 2]], room=1)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.start([[1, 2]], room=1)
        session.close()


def test_closing_twice_is_harmless_and_frees_the_engine(case: Case) -> None:
    session = case.engine.start([[1, 2]], room=1)
    session.close()
    session.close()
    assert np.isfinite(_peek(case.engine, [[1, 2]])).all()


def test_a_twin_changes_nothing_where_kernels_agree(tiny_build: Callable[..., Build]) -> None:
    """The way that processors take whose kernels differ by the number of rows."""
    build = tiny_build("qwen3", "float")
    found = []
    for twin in (False, True):
        with closing(open_engine(build, engine="onnx", threads=1)) as engine:
            assert isinstance(engine, OnnxEngine)
            engine.twin = twin
            with closing(engine.start([[1, 2, 3]], room=12)) as session:
                logits = []
                for token in range(4, 9):
                    logits.append(session.logits())
                    session.append({0: token})
                found.append((np.concatenate(logits), session.peek(PEEKED)))
    for alone, beside in zip(*found, strict=True):
        np.testing.assert_allclose(alone, beside, atol=1e-4, rtol=0)
        assert alone.shape == beside.shape
