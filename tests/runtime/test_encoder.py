"""The encoder over real weights on both engines, and its rules over the fake one."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from t1_edge.build import Build
from t1_edge.contract import Codec
from t1_edge.encoder import Encoder
from t1_edge.engines.base import EngineInfo
from t1_edge.engines.fake import FakeEngine, FakeSession
from t1_edge.errors import BuildError, CacheError, DeviceError, EngineError, InputError
from t1_edge.thinking import Settle
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.pipeline import Request, export
from tiny import TINY_CONTRACT, Tiny, tokenizer_json

Float32Array = NDArray[np.float32]

TEXTS = [
    "Chlorophyll breaks down in autumn, and the red of anthocyanins shows.",
    "",
    "A lock lets one process at a time write. " * 12,
    "水は氷になると体積が増える。",
    "def f(x):\n\treturn x  # <emb_token>",
    "iron rusts",
]

# ONNX Runtime: the promise. llama.cpp rounds activations to 8 bits in groups of rows that run
# together, and attends in float16; over these texts that moved a component by 0.012 at most.
TOLERANCE = {"onnx": 1e-4, "gguf": 3e-2}


@pytest.fixture(scope="module", params=["onnx", "gguf"])
def real(request: pytest.FixtureRequest, smollm2: Build) -> Iterator[Encoder]:
    with Encoder.load(smollm2.path, engine=request.param, threads=2, cache=False) as encoder:
        yield encoder


def _tolerance(encoder: Encoder) -> float:
    return TOLERANCE[encoder.info.engine]


def test_documents_are_unit_vectors_in_order(real: Encoder) -> None:
    found = real.encode_documents(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), 576)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found @ found.T - 2 * np.eye(len(TEXTS))).max() < 0.9999  # no two are the same


def test_a_document_does_not_see_the_others(real: Encoder) -> None:
    together = real.encode_documents(TEXTS)
    turned = real.encode_documents(TEXTS[::-1])[::-1]
    alone = np.concatenate([real.encode_documents([text]) for text in TEXTS])
    np.testing.assert_allclose(together, turned, atol=_tolerance(real), rtol=0)
    np.testing.assert_allclose(together, alone, atol=_tolerance(real), rtol=0)


def test_a_query_does_not_see_the_others(real: Encoder) -> None:
    # In llama.cpp a token may flip by the batch, and takes the rest of a thought with it.
    budget = 0 if real.info.engine == "gguf" else 6
    together = real.encode_queries(TEXTS, budget=budget, batch_size=4)
    for text, query in zip(TEXTS, together, strict=True):
        alone = real.encode_query(text, budget=budget)
        assert alone.thought_tokens == query.thought_tokens
        np.testing.assert_allclose(alone.vector, query.vector, atol=_tolerance(real), rtol=0)


def test_a_query_thinks_within_its_budget(real: Encoder) -> None:
    direct, thought = (real.encode_query("why do leaves turn red", budget=n) for n in (0, 12))
    assert direct.thought == ""
    assert direct.stopped_by == "budget"
    assert 0 < len(thought.thought_tokens) <= 12
    assert thought.thought
    assert not np.allclose(direct.vector, thought.vector, atol=1e-3)
    assert thought.engine == real.info
    assert thought.timings.total >= thought.timings.thinking > 0


def test_thoughts_repeat(real: Encoder) -> None:
    first, second = (real.encode_query("how can a ship float") for _ in range(2))
    assert first.thought_tokens == second.thought_tokens
    np.testing.assert_array_equal(first.vector, second.vector)


def test_a_given_thought_is_read_and_not_written(real: Encoder) -> None:
    query, thought = "why do leaves turn red", " chlorophyll, autumn"
    found = real.encode_query(query, thought=thought)
    assert (found.thought, found.stopped_by) == (thought, "given")
    assert found.thought_tokens == real.codec.thought_tokens(thought)
    other = real.encode_query(query, thought=" bridges, steel")
    assert found.vector @ other.vector < 0.999
    together = real.encode_queries([query, "x"], thoughts=[thought, ""])
    tolerance = _tolerance(real)
    np.testing.assert_allclose(together[0].vector, found.vector, atol=tolerance, rtol=0)
    none = real.encode_query("x", budget=0).vector
    np.testing.assert_allclose(together[1].vector, none, atol=max(tolerance, 3e-2), rtol=0)


def test_a_hundred_thousand_words_are_cut_and_it_is_said(real: Encoder) -> None:
    text = "word " * 100_000
    found = real.embed_documents([text, "short"], truncate=True)
    assert found.truncated.tolist() == [True, False]
    assert found.tokens[0] == real.codec.contract.max_document_tokens
    with pytest.raises(
        InputError, match=r"1 of 2 documents .* 512 tokens, the first is texts\[1\]"
    ):
        real.encode_documents(["short", text])
    query = real.encode_query(text, budget=1)
    assert query.truncated
    assert query.prompt_tokens == real.codec.contract.max_query_tokens


def test_nul_bytes_and_special_tokens_are_text(real: Encoder) -> None:
    plain, odd, special = real.encode_documents(["ab", "a\0b", "a<emb_token>b"])
    assert np.isfinite(odd).all()
    assert not np.allclose(plain, special, atol=1e-3)


@pytest.mark.parametrize("text", ["a\ud800b", 3, None])
def test_what_is_no_text_is_refused(real: Encoder, text: Any) -> None:
    with pytest.raises(InputError):
        real.encode_query(text)
    with pytest.raises(InputError):
        real.encode_documents(["fine", text])
    assert np.isfinite(real.encode_documents(["still works"])).all()


def test_one_string_is_no_list_of_texts(real: Encoder) -> None:
    """Its letters would be embedded, one by one."""
    for encode in (real.encode_documents, real.encode_queries):
        with pytest.raises(InputError, match=r"give \[text\]"):
            encode("why do leaves turn red")


def test_vectors_do_not_fill_the_screen(real: Encoder) -> None:
    assert len(repr(real.encode_query("why", budget=0))) < 600
    assert len(repr(real.embed_documents(["because"]))) < 600


@pytest.mark.parametrize("unknown", [{"engine": "torch"}, {"device": "gpu"}])
def test_unknown_engines_and_devices_are_named(smollm2: Build, unknown: Any) -> None:
    with pytest.raises(InputError, match="known are auto"):
        Encoder.load(smollm2.path, **unknown)


def test_the_engines_agree(smollm2: Build) -> None:
    found = []
    for engine in ("onnx", "gguf"):
        with Encoder.load(smollm2.path, engine=engine) as encoder:
            found.append(encoder.encode_documents(TEXTS))
    assert (found[0] * found[1]).sum(axis=1).min() > 0.995


# The rest is the encoder's own doing, and needs no weights.


class _Scripted(FakeEngine):
    """A fake whose next token can be chosen, and whose logits can be made to take their time."""

    favourite: int | None = None
    delay = 0.0

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> FakeSession:
        session = super().start(rows, room=room)
        if self.favourite is not None:
            scores = np.zeros((len(rows), len(self.table)), np.float32)
            scores[:, self.favourite] = 1

            def logits() -> Float32Array:
                time.sleep(self.delay)
                return scores

            session.logits = logits  # type: ignore[method-assign]
        return session


def _tokenizer() -> TextTokenizer:
    definition = json.loads(tokenizer_json())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": 390 + at, "content": token, "special": True} | flags
        for at, token in enumerate(TINY_CONTRACT.own_tokens)
    ]
    definition["added_tokens"] += added
    return TextTokenizer(json.dumps(definition))


TOKENIZER = _tokenizer()


def _encoder(**changed: object) -> tuple[Encoder, _Scripted]:
    engine = _Scripted(vocabulary=400)
    codec = Codec(msgspec.structs.replace(TINY_CONTRACT, **changed), TOKENIZER)
    return Encoder(codec, engine, fingerprint="f", hidden=32), engine


@pytest.mark.parametrize(
    ("favourite", "stopped_by", "length"),
    [("</think>", "closed", 0), ("<emb_token>", "closed", 0), ("<|im_end|>", "stop_token", 0)],
)
def test_a_thought_ends_when_the_model_ends_it(
    favourite: str, stopped_by: str, length: int
) -> None:
    encoder, engine = _encoder()
    engine.favourite = TOKENIZER.special(favourite)
    found = encoder.encode_query("x", budget=5)
    assert (found.stopped_by, len(found.thought_tokens)) == (stopped_by, length)


def test_a_thought_is_forced_shut_at_the_budget() -> None:
    encoder, engine = _encoder()
    engine.favourite = 70
    found = encoder.encode_query("x", budget=5)
    assert (found.stopped_by, found.thought_tokens) == ("budget", (70,) * 5)
    assert encoder.encode_query("x").thought_tokens == (70,) * TINY_CONTRACT.budget


def test_a_distinct_thought_holds_no_token_twice() -> None:
    encoder, engine = _encoder(distinct=True)
    engine.favourite = 70
    both = encoder.encode_queries(["x", "y"], budget=3)
    for found in both:
        assert found.thought_tokens[0] == 70
        assert len(set(found.thought_tokens)) == 3


def test_a_thought_is_what_stands_between_its_tokens() -> None:
    encoder, engine = _encoder()
    engine.favourite = 70
    codec = encoder.codec
    row = [*codec.query("x").tokens, 70, 70, codec.close_id]
    with closing(FakeEngine(vocabulary=400).start([row], room=1)) as session:
        expected = session.peek(codec.emb_id)[0]
    found = encoder.encode_query("x", budget=2).vector
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_a_deadline_forces_a_thought_shut() -> None:
    encoder, engine = _encoder()
    engine.favourite, engine.delay = 70, 0.02
    began = time.monotonic()
    found = encoder.encode_query("x", budget=100, deadline=0.1)
    assert found.stopped_by == "deadline"
    assert 0 < len(found.thought_tokens) < 100
    assert time.monotonic() - began < 1


def test_a_thought_ends_when_its_vector_has_settled() -> None:
    encoder, engine = _encoder()
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
    encoder, engine = _encoder()
    engine.favourite = 70
    settle = Settle(cosine=0.995, every=2)
    texts = ["x", "a much longer question that is another " * 3]
    together = encoder.encode_queries(texts, budget=60, settle=settle)
    for text, found in zip(texts, together, strict=True):
        alone = encoder.encode_query(text, budget=60, settle=settle)
        assert found.thought_tokens == alone.thought_tokens
        np.testing.assert_allclose(found.vector, alone.vector, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"cosine": 0.0}, {"cosine": 1.1}, {"cosine": 0.9, "every": 0}])
def test_what_cannot_settle_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError):
        Settle(**wrong)


def test_a_stream_begins_with_the_direct_vector_and_ends_with_the_thought_s() -> None:
    encoder, engine = _encoder()
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
    encoder, engine = _encoder()
    engine.favourite, engine.delay = 70, 0.02
    *_, last = encoder.encode_query_stream("x", budget=1000, deadline=0.1)
    assert last.stopped_by == "deadline"
    assert 0 < len(last.thought_tokens) < 100


@pytest.mark.parametrize("wrong", [{"every": 0}, {"budget": -1}])
def test_a_stream_refuses_at_the_call(wrong: Any) -> None:
    with pytest.raises(InputError):
        _encoder()[0].encode_query_stream("x", **wrong)


def test_a_stream_that_is_closed_frees_the_engine() -> None:
    encoder, _ = _encoder()
    stream = encoder.encode_query_stream("x", budget=10)
    next(stream)
    waiting = threading.Thread(target=encoder.encode_documents, args=(["y"],))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()  # it waits for its turn
    stream.close()  # type: ignore[attr-defined]
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_stream_is_what_its_engine_thinks(real: Encoder) -> None:
    *before, last = real.encode_query_stream("why do leaves turn red", budget=8, every=3)
    np.testing.assert_array_equal(
        before[0].vector, real.encode_query("why do leaves turn red", budget=0).vector
    )
    plain = real.encode_query("why do leaves turn red", budget=8)
    assert last.thought_tokens[:3] == plain.thought_tokens[:3]
    if last.thought_tokens == plain.thought_tokens:  # a token that was peeked past may flip
        np.testing.assert_allclose(last.vector, plain.vector, atol=3e-2)


def test_thoughts_are_given_one_for_each_query_and_without_a_budget() -> None:
    encoder, _ = _encoder()
    with pytest.raises(InputError, match="2 thoughts for 1 queries"):
        encoder.encode_queries(["a"], thoughts=["b", "c"])
    for written in ({"budget": 4}, {"deadline": 1.0}, {"settle": Settle(cosine=0.9)}):
        with pytest.raises(InputError, match="no budget, no deadline, no settling"):
            encoder.encode_query("a", thought="b", **written)
    with pytest.raises(InputError, match="lone surrogate"):
        encoder.encode_query("a", thought="\ud800")


def test_a_batch_is_no_larger_than_the_engine_takes() -> None:
    encoder, engine = _encoder()
    found = encoder.encode_queries(["x"] * (engine.batch_rows + 3), budget=1, batch_size=1000)
    assert len(found) == engine.batch_rows + 3
    with pytest.raises(InputError, match="batch_size"):
        encoder.encode_queries(["x"], batch_size=0)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(InputError, match="budget"):
        _encoder()[0].encode_query("x", budget=-1)


def test_vectors_that_are_none_are_errors() -> None:
    encoder, engine = _encoder()
    for broken in (np.nan, 0.0):
        engine.table[:] = broken
        with pytest.raises(EngineError, match="NaN or zero"):
            encoder.encode_documents(["x"])


def test_no_documents_are_no_vectors() -> None:
    assert _encoder()[0].encode_documents([]).shape == (0, 32)
    assert _encoder()[0].encode_queries([]) == []


def test_progress_adds_up() -> None:
    done: list[int] = []
    _encoder()[0].embed_documents(["some text"] * 100, progress=done.append)
    assert sum(done) == 100
    assert len(done) > 1


def test_a_device_that_cannot_run_is_an_error(smollm2: Build) -> None:
    for device in ("cuda", "metal"):
        with pytest.raises(DeviceError, match=device):
            Encoder.load(smollm2.path, device=device)


def test_a_format_that_the_build_lacks_is_an_error(
    tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    request = Request(
        name="tiny",
        destination=tmp_path / "tiny",
        contract=TINY_CONTRACT,
        formats=("onnx",),
        profile="float",
    )
    build = export(open_checkpoint(tiny("llama").folder), request)
    with pytest.raises(BuildError, match="holds onnx, not gguf"):
        Encoder.load(build.path, engine="gguf")


def test_a_name_that_nobody_knows_says_what_to_do(own_cache: object) -> None:
    with pytest.raises(CacheError, match="t1-edge pull nano"):
        Encoder.load("nothing-of-the-kind")


def test_what_ran_is_said(real: Encoder) -> None:
    assert isinstance(real.info, EngineInfo)
    assert real.info.device == "cpu"
    assert real.info.threads == 2
