"""How thoughts end, and how they are followed while they grow."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from scripted import TOKENIZER, scripted_encoder
from t1_edge.build import Build
from t1_edge.encoder import Encoder
from t1_edge.engines.fake import FakeEngine
from t1_edge.errors import EngineError, InputError
from t1_edge.thinking import Settle
from tiny import TINY_CONTRACT


@pytest.mark.parametrize(
    ("favourite", "stopped_by", "length"),
    [("</think>", "closed", 0), ("<emb_token>", "closed", 0), ("<|im_end|>", "stop_token", 0)],
)
def test_a_thought_ends_when_the_model_ends_it(
    favourite: str, stopped_by: str, length: int
) -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = TOKENIZER.special(favourite)
    found = encoder.encode_query("x", budget=5)
    assert (found.stopped_by, len(found.thought_tokens)) == (stopped_by, length)


def test_a_thought_is_forced_shut_at_the_budget() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    found = encoder.encode_query("x", budget=5)
    assert (found.stopped_by, found.thought_tokens) == ("budget", (70,) * 5)
    assert encoder.encode_query("x").thought_tokens == (70,) * TINY_CONTRACT.budget


def test_a_distinct_thought_holds_no_token_twice() -> None:
    encoder, engine = scripted_encoder(distinct=True)
    engine.favourite = 70
    both = encoder.encode_queries(["x", "y"], budget=3)
    for found in both:
        assert found.thought_tokens[0] == 70
        assert len(set(found.thought_tokens)) == 3


def test_a_thought_is_what_stands_between_its_tokens() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    codec = encoder.codec
    row = [*codec.query("x").tokens, 70, 70, codec.close_id]
    with closing(FakeEngine(vocabulary=400).start([row], room=1)) as session:
        expected = session.peek(codec.emb_id)[0]
    found = encoder.encode_query("x", budget=2).vector
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_a_deadline_forces_a_thought_shut() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite, engine.delay = 70, 0.02
    began = time.monotonic()
    found = encoder.encode_query("x", budget=100, deadline=0.1)
    assert found.stopped_by == "deadline"
    assert 0 < len(found.thought_tokens) < 100
    assert time.monotonic() - began < 1


def test_a_thought_ends_when_its_vector_has_settled() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70  # the fake's state comes to rest: an old token counts .9 of the next
    cosine = 0.995
    found = encoder.encode_query("x", budget=60, settle=Settle(cosine=cosine, every=2))
    assert found.stopped_by == "settled"
    length = len(found.thought_tokens)
    assert length % 2 == 0
    ends = [encoder.encode_query("x", budget=n).vector for n in range(0, length + 1, 2)]
    np.testing.assert_array_equal(found.vector, ends[-1])
    steps = [float(a @ b) for a, b in itertools.pairwise(ends)]
    assert steps[-1] >= cosine > max(steps[:-1])
    budget = encoder.encode_query("x", budget=length - 1, settle=Settle(cosine=cosine, every=2))
    assert budget.stopped_by == "budget"


def test_queries_settle_one_by_one() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    settle = Settle(cosine=0.995, every=2)
    texts = ["x", "a much longer question that is another " * 3]
    together = encoder.encode_queries(texts, budget=60, settle=settle)
    assert {found.stopped_by for found in together} == {"settled"}
    assert len({len(found.thought_tokens) for found in together}) == 2
    for text, found in zip(texts, together, strict=True):
        alone = encoder.encode_query(text, budget=60, settle=settle)
        assert found.thought_tokens == alone.thought_tokens
        np.testing.assert_allclose(found.vector, alone.vector, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"cosine": 0.0}, {"cosine": 1.1}, {"cosine": 0.9, "every": 0}])
def test_what_cannot_settle_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError):
        Settle(**wrong)


def test_a_stream_begins_with_the_direct_vector_and_ends_with_the_thought_s() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    found = list(encoder.encode_query_stream("x", budget=10, every=4))
    assert [len(one.thought_tokens) for one in found] == [0, 4, 8, 10]
    assert [one.stopped_by for one in found] == ["open"] * 3 + ["budget"]
    for one in found:
        plain = encoder.encode_query("x", budget=len(one.thought_tokens))
        np.testing.assert_array_equal(one.vector, plain.vector)
    totals = [one.timings.total for one in found]
    assert totals == sorted(totals)
    engine.favourite = TOKENIZER.special("</think>")
    found = list(encoder.encode_query_stream("x", budget=10))
    assert [one.stopped_by for one in found] == ["open", "closed"]
    [direct] = encoder.encode_query_stream("x", budget=0)
    assert direct.stopped_by == "budget"


def test_a_stream_keeps_its_deadline() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite, engine.delay = 70, 0.02
    *_, last = encoder.encode_query_stream("x", budget=1000, deadline=0.1)
    assert last.stopped_by == "deadline"
    assert 0 < len(last.thought_tokens) < 100


@pytest.mark.parametrize("wrong", [-0.1, float("nan")])
def test_what_is_no_deadline_is_refused(wrong: float) -> None:
    for ask in (scripted_encoder()[0].encode_query, scripted_encoder()[0].encode_query_stream):
        with pytest.raises(InputError, match="0 or more seconds"):
            ask("x", deadline=wrong)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"budget": -1}])
def test_a_stream_refuses_at_the_call(wrong: Any) -> None:
    with pytest.raises(InputError):
        scripted_encoder()[0].encode_query_stream("x", **wrong)


def test_a_stream_that_is_closed_frees_the_engine() -> None:
    encoder, _ = scripted_encoder()
    stream = encoder.encode_query_stream("x", budget=10)
    next(stream)
    waiting = threading.Thread(target=encoder.encode_documents, args=(["y"],))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()  # it waits for its turn
    stream.close()
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_thread_does_not_wait_for_its_own_stream() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    stream = encoder.encode_query_stream("x", budget=10)
    next(stream)
    for call in (
        lambda: encoder.encode_documents(["y"]),
        lambda: encoder.encode_query("y"),
        lambda: next(encoder.encode_query_stream("y")),
    ):
        with pytest.raises(EngineError, match="a stream of this thread is still open"):
            call()
    assert [one.stopped_by for one in stream][-1] == "budget"
    assert encoder.encode_documents(["y"]).shape == (1, 32)


def test_a_stream_frees_the_engine_with_its_last_vector() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    stream = encoder.encode_query_stream("x", budget=3, every=2)
    while next(stream).stopped_by == "open":
        pass
    assert encoder.encode_documents(["y"]).shape == (1, 32)
    assert list(stream) == []


def test_who_waits_takes_the_turn_of_a_stream_past_its_deadline() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    stream = encoder.encode_query_stream("x", budget=100, deadline=1)
    with ThreadPoolExecutor(1) as pool, closing(stream):
        direct = next(stream)
        assert pool.submit(encoder.encode_documents, ["y"]).result(30).shape == (1, 32)
        assert encoder.encode_documents(["y"]).shape == (1, 32)  # nor is its own thread refused
        [last] = stream
    assert (direct.stopped_by, last.stopped_by) == ("open", "deadline")
    np.testing.assert_array_equal(last.vector, direct.vector)


def test_a_stream_that_lost_its_turn_ends_no_other() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    lost = encoder.encode_query_stream("x", budget=100, deadline=0.01)
    if next(lost).stopped_by == "open":
        time.sleep(0.02)
    stream = encoder.encode_query_stream("y", budget=10)
    next(stream)
    lost.close()
    with pytest.raises(EngineError, match="a stream of this thread is still open"):
        encoder.encode_documents(["y"])
    assert [one.stopped_by for one in stream][-1] == "budget"


def test_a_deadline_that_never_comes_is_waited_for() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    stream = encoder.encode_query_stream("x", budget=10, deadline=float("inf"))
    with ThreadPoolExecutor(1) as pool, closing(stream):
        next(stream)
        waiting = pool.submit(encoder.encode_documents, ["y"])
        assert [one.stopped_by for one in stream][-1] == "budget"
        assert waiting.result(30).shape == (1, 32)


def test_an_encoder_can_be_closed_under_its_stream() -> None:
    encoder, _ = scripted_encoder()
    with encoder:
        stream = encoder.encode_query_stream("x", budget=10)
        next(stream)
    stream.close()
    with pytest.raises(EngineError, match="closed"):
        encoder.encode_documents(["y"])


def test_who_closes_goes_before_who_waits_for_a_stream() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    stream = encoder.encode_query_stream("x", budget=10)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as other:
        reader.submit(next, stream).result(30)
        waiting = other.submit(encoder.encode_documents, ["y"])
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        closing_ = threading.Thread(target=encoder.close, daemon=True)
        closing_.start()
        closing_.join(30)
        closed = not closing_.is_alive()
        stopped = reader.submit(lambda: list(stream)).exception(30)
        with pytest.raises(EngineError, match="the engine is closed"):
            waiting.result(30)
    assert closed
    assert "the encoder was closed under this stream" in str(stopped)
    assert list(stream) == []


def test_a_reader_is_told_while_its_encoder_is_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    stream = encoder.encode_query_stream("x", budget=10)
    next(stream)
    closing_, told = threading.Event(), threading.Event()
    close = encoder._passes._close

    def close_late() -> None:
        closing_.set()
        assert told.wait(30)
        close()

    monkeypatch.setattr(encoder._passes, "_close", close_late)
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(encoder.close)
        assert closing_.wait(30)
        try:
            with pytest.raises(EngineError, match="was closed under this stream"):
                next(stream)
        finally:
            told.set()
        closed.result(30)


def test_who_closes_waits_for_a_pass_of_a_stream_begun_here() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    stream = encoder.encode_query_stream("x", budget=10, every=5)
    next(stream)
    engine.delay = 0.05
    with ThreadPoolExecutor(1) as reader:
        second = reader.submit(next, stream)
        while encoder._passes._turns._current.rests:  # type: ignore[union-attr]
            time.sleep(0.001)
        encoder.close()
        assert second.result(30).stopped_by == "open"


def test_what_a_reader_does_between_two_vectors_is_not_counted() -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    found = []
    for one in encoder.encode_query_stream("x", budget=4, every=1):
        found.append(one)
        time.sleep(0.05)
    assert found[-1].timings.total < 0.05


@pytest.fixture(scope="module", params=["onnx", "gguf"])
def tiny_encoder(
    request: pytest.FixtureRequest, tiny_build: Callable[..., Build]
) -> Iterator[Encoder]:
    build = tiny_build("llama", "float")
    with Encoder.load(build.path, engine=request.param, threads=1, cache=False) as encoder:
        yield encoder


def test_a_stream_gives_what_an_engine_thinks(tiny_encoder: Encoder) -> None:
    found = list(tiny_encoder.encode_query_stream("the lake", budget=8, every=3))
    plain = tiny_encoder.encode_query("the lake", budget=8)
    assert found[-1].thought_tokens == plain.thought_tokens
    assert found[-1].stopped_by == plain.stopped_by
    for one in found:
        alone = tiny_encoder.encode_query("the lake", budget=len(one.thought_tokens))
        assert one.thought_tokens == alone.thought_tokens
        np.testing.assert_allclose(one.vector, alone.vector, atol=1e-4)


def test_a_thought_settles_where_its_vectors_say(tiny_encoder: Encoder) -> None:
    vectors = [one.vector for one in tiny_encoder.encode_query_stream("the lake", budget=12)]
    steps = [float(a @ b) for a, b in itertools.pairwise(vectors)]
    cosine = max(steps)
    found = tiny_encoder.encode_query("the lake", budget=12, settle=Settle(cosine=cosine - 1e-4))
    assert found.stopped_by in ("settled", "budget")
    assert len(found.thought_tokens) == 4 * (steps.index(cosine) + 1)
    np.testing.assert_allclose(found.vector, vectors[steps.index(cosine) + 1], atol=1e-4)
