"""The encoder over real weights on both engines, and its rules over the fake one."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from scripted import scripted_encoder
from t1_edge.build import Build, Format
from t1_edge.encoder import Encoder
from t1_edge.engines import room
from t1_edge.engines.base import EngineInfo
from t1_edge.engines.select import EngineChoice, open_engine
from t1_edge.errors import BuildError, CacheError, DeviceError, EngineError, InputError
from t1_edge.machine import usable_cores
from t1_edge.thinking import Settle
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.pipeline import export
from t1_edge_export.request import Request
from tiny import TINY_CONTRACT, Tiny

Float32Array = NDArray[np.float32]

TEXTS = [
    "Chlorophyll breaks down in autumn, and the red of anthocyanins shows.",
    "",
    "A lock lets one process at a time write. " * 12,
    "水は氷になると体積が増える。",
    "def f(x):\n\treturn x  # <emb_token>",
    "iron rusts",
]

# As docs/devices.md has them. llama.cpp rounds activations to 8 bits in groups of rows that run
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


@pytest.mark.skipif(usable_cores() < 2, reason="two threads need two cores")
def test_threads_change_no_vector(real: Encoder, smollm2: Build) -> None:
    engine = cast(EngineChoice, real.info.engine)
    with Encoder.load(smollm2.path, engine=engine, threads=1, cache=False) as single:
        found = [
            (
                encoder.encode_documents(TEXTS),
                np.stack([one.vector for one in encoder.encode_queries(TEXTS, budget=0)]),
                encoder.encode_query(TEXTS[0], thought=" red leaves").vector,
            )
            for encoder in (real, single)
        ]
    for two, one in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, atol=_tolerance(real), rtol=0)


def test_a_query_thinks_within_its_budget(real: Encoder) -> None:
    direct, thought = (real.encode_query("why do leaves turn red", budget=n) for n in (0, 12))
    assert direct.thought == ""
    assert direct.stopped_by == "budget"
    assert 0 < len(thought.thought_tokens) <= 12
    assert thought.thought
    assert not np.allclose(direct.vector, thought.vector, atol=1e-3)
    assert thought.engine == real.info
    assert thought.timings.total >= thought.timings.thinking > 0


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_gives_what_calls_give(real: Encoder, text: str) -> None:
    for one in list(real.encode_query_stream(text, budget=8, every=2)):
        budget = len(one.thought_tokens) if one.stopped_by == "open" else 8
        call = real.encode_query(text, budget=budget)
        assert one.thought_tokens == call.thought_tokens
        np.testing.assert_allclose(one.vector, call.vector, atol=_tolerance(real), rtol=0)


@pytest.mark.parametrize("text", TEXTS)
def test_a_look_changes_no_thought(real: Encoder, text: str) -> None:
    call = real.encode_query(text, budget=8)
    for every in (1, 2, 3):
        found = real.encode_query(text, budget=8, settle=Settle(cosine=1.0, every=every))
        if found.stopped_by == "settled":  # two vectors were one: it may be
            assert found.thought_tokens == call.thought_tokens[: len(found.thought_tokens)]
        else:
            assert found.thought_tokens == call.thought_tokens
            np.testing.assert_allclose(found.vector, call.vector, atol=_tolerance(real), rtol=0)


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


def test_thoughts_are_given_one_for_each_query_and_without_a_budget() -> None:
    encoder, _ = scripted_encoder()
    with pytest.raises(InputError, match="2 thoughts for 1 queries"):
        encoder.encode_queries(["a"], thoughts=["b", "c"])
    for written in ({"budget": 4}, {"deadline": 1.0}, {"settle": Settle(cosine=0.9)}):
        with pytest.raises(InputError, match="no budget, no deadline, no settling"):
            encoder.encode_query("a", thought="b", **written)
    with pytest.raises(InputError, match="lone surrogate"):
        encoder.encode_query("a", thought="\ud800")


def test_a_batch_is_no_larger_than_the_engine_takes() -> None:
    encoder, engine = scripted_encoder()
    found = encoder.encode_queries(["x"] * (engine.batch_rows + 3), budget=1, batch_size=1000)
    assert len(found) == engine.batch_rows + 3
    with pytest.raises(InputError, match="batch_size"):
        encoder.encode_queries(["x"], batch_size=0)


def test_calls_think_as_far_as_the_encoder_was_loaded_to(
    tiny_build: Callable[..., Build], own_cache: Path
) -> None:
    path = tiny_build("llama", "portable").path
    with Encoder.load(path, budget=3, cache=False) as encoder:
        thoughts = [encoder.encode_query("why", budget=asked) for asked in (None, 2, 0)]
        [*_, last] = encoder.encode_query_stream("why")
    assert [len(found.thought_tokens) for found in (*thoughts, last)] == [3, 2, 0, 3]
    with pytest.raises(InputError, match="budget must be 0 or more tokens, not -1"):
        Encoder.load(path, budget=-1)


@pytest.mark.parametrize("budget", [-1, 1.5, "16"])
def test_a_budget_that_is_no_number_of_tokens_is_refused(budget: Any) -> None:
    with pytest.raises(InputError, match="budget must be 0 or more tokens, not"):
        scripted_encoder()[0].encode_query("x", budget=budget)


def test_vectors_that_are_none_are_errors() -> None:
    encoder, engine = scripted_encoder()
    for broken in (np.nan, 0.0):
        engine.table[:] = broken
        with pytest.raises(EngineError, match="NaN or zero"):
            encoder.encode_documents(["x"])


def test_no_documents_are_no_vectors() -> None:
    assert scripted_encoder()[0].encode_documents([]).shape == (0, 32)
    assert scripted_encoder()[0].encode_queries([]) == []


def test_progress_adds_up() -> None:
    done: list[int] = []
    scripted_encoder()[0].embed_documents(["some text"] * 100, progress=done.append)
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


@pytest.mark.parametrize("format", ["onnx", "gguf"])
def test_a_batch_that_does_not_fit_says_which_would(
    tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    rows = [[7] * 100] * 8
    with closing(open_engine(tiny_build("llama", "portable"), engine=format, threads=1)) as engine:
        monkeypatch.setattr(room, "free_memory", lambda: 1)
        with pytest.raises(EngineError, match="end other programs, or give shorter texts"):
            engine.start(rows, room=1)
        monkeypatch.setattr(room, "free_memory", lambda: 1_000_000)
        with pytest.raises(EngineError, match=r"8 rows .* give a batch_size of \d") as found:
            engine.start(rows, room=1)
        size = int(str(found.value).rpartition(" ")[2])
        assert 1 <= size < 8
        engine.start(rows[:size], room=1).close()


def test_documents_run_in_batches_of_a_size(
    tiny_build: Callable[..., Build], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["the water of the lake " * 30] * 6
    path = tiny_build("llama", "portable").path
    with Encoder.load(path, engine="onnx", threads=1) as encoder:
        whole = encoder.encode_documents(texts)
        monkeypatch.setattr(room, "free_memory", lambda: 1_000_000)
        with pytest.raises(EngineError, match="give a batch_size"):
            encoder.encode_documents(texts)
        small = encoder.encode_documents(texts, batch_size=1)
        with pytest.raises(InputError, match="batch_size"):
            encoder.embed_documents(texts, batch_size=0)
    np.testing.assert_allclose(small, whole, atol=1e-4, rtol=0)
