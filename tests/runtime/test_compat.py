"""An encoder behind sentence-transformers' names: the same vectors, and nothing ignored."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scripted import ScriptedEngine, scripted_encoder
from t1_edge.compat import SentenceEncoder
from t1_edge.errors import InputError

TEXTS = ["the lake", "", "the weather in the north"]


def _compat(**options: Any) -> tuple[SentenceEncoder, ScriptedEngine]:
    encoder, engine = scripted_encoder()
    engine.favourite = 70
    return SentenceEncoder(encoder, **options), engine


def test_vectors_are_the_encoder_s() -> None:
    model, _ = _compat(budget=3)
    encoder, own = scripted_encoder()
    own.favourite = 70
    thought = np.stack([query.vector for query in encoder.encode_queries(TEXTS, budget=3)])
    plain = encoder.encode_documents(TEXTS)
    np.testing.assert_array_equal(model.encode_query(TEXTS, batch_size=2), thought)
    np.testing.assert_array_equal(model.encode(TEXTS, prompt_name="query"), thought)
    for found in (
        model.encode_document(TEXTS),
        model.encode(TEXTS),
        model.encode(np.array(TEXTS), prompt_name="document", batch_size=1),  # type: ignore[arg-type]
    ):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, plain)


def test_one_text_is_one_vector_and_none_is_none() -> None:
    model, _ = _compat()
    for encode in (model.encode, model.encode_query, model.encode_document):
        assert encode("the lake").shape == (32,)
        assert encode(["the lake"]).shape == (1, 32)
        assert encode([]).shape == (0, 32)
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == 32


def test_queries_think_in_batches_of_the_size_that_is_asked_for() -> None:
    model, engine = _compat()
    model.encode_query(["x"] * 5, batch_size=2)
    assert engine.sessions == 3


def test_arguments_at_the_values_that_are_true_are_taken() -> None:
    model, _ = _compat()
    model.encode(
        TEXTS,
        prompt=None,
        output_value="sentence_embedding",
        precision="float32",
        convert_to_numpy=True,
        convert_to_tensor=False,
        device=None,
        normalize_embeddings=True,
        truncate_dim=None,
        pool=None,
        chunk_size=None,
        show_progress_bar=False,
    )


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"prompt": "query: "}, "templates"),
        ({"precision": "int8"}, "float32"),
        ({"output_value": "token_embeddings"}, "one vector"),
        ({"convert_to_tensor": True}, "from_numpy"),
        ({"convert_to_numpy": False}, "numpy"),
        ({"device": "cuda"}, "loaded"),
        ({"truncate_dim": 8}, "dimensions"),
        ({"pool": {}}, "spawn"),
        ({"chunk_size": 3}, "spawn"),
        ({"colour": "red"}, "no argument 'colour'"),
        ({"prompt_name": "passage"}, "prompts are query and document"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_cannot_be_done_is_refused(asked: dict[str, Any], why: str) -> None:
    model, _ = _compat()
    for encode in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(InputError, match=why):
            encode(TEXTS, **asked)


def test_a_prompt_of_the_other_kind_is_refused() -> None:
    model, _ = _compat()
    with pytest.raises(InputError, match="'document' is not 'query'"):
        model.encode_query(TEXTS, prompt_name="document")
    with pytest.raises(InputError, match="'query' is not 'document'"):
        model.encode_document(TEXTS, prompt_name="query")


def test_long_documents_are_cut_where_that_is_asked_for() -> None:
    long = ["the lake " * 300]
    with pytest.raises(InputError, match="more than 200 tokens"):
        _compat()[0].encode_document(long)
    assert _compat(truncate=True)[0].encode_document(long).shape == (1, 32)


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_a_bar_is_drawn_where_that_is_asked_for(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = _compat()
    encode: Callable[..., Any] = getattr(model, method)
    steps: list[int] = []

    def progress(total: int, label: str) -> Any:
        from contextlib import nullcontext

        assert total == 5
        return nullcontext(steps.append)

    monkeypatch.setattr("t1_edge.cli.output.progress", progress)
    encode(["x"] * 5, show_progress_bar=None)
    assert steps == []
    encode(["x"] * 5, show_progress_bar=True, batch_size=2)
    assert sum(steps) == 5


def test_similarity_is_the_cosine() -> None:
    model, _ = _compat()
    some, others = np.eye(2, 3, dtype=np.float32) * 2, np.ones((4, 3), np.float32)
    np.testing.assert_allclose(model.similarity(some, others), np.full((2, 4), 3**-0.5), atol=1e-6)
    np.testing.assert_allclose(model.similarity(some[0], others[0]), [[3**-0.5]], atol=1e-6)
    pairs = model.similarity_pairwise(some, others[:2])
    np.testing.assert_allclose(pairs, [3**-0.5] * 2, atol=1e-6)
    zero = np.zeros((1, 3), np.float32)
    np.testing.assert_array_equal(model.similarity(zero, some), [[0, 0]])


def test_every_argument_of_sentence_transformers_is_known() -> None:
    library = pytest.importorskip("sentence_transformers")
    model, _ = _compat()
    for name in ("encode", "encode_query", "encode_document"):
        theirs = inspect.signature(getattr(library.SentenceTransformer, name)).parameters.values()
        defaults = {
            one.name: one.default
            for one in theirs
            if one.kind is not one.VAR_KEYWORD and one.name not in ("self", "inputs", "sentences")
        }
        getattr(model, name)(TEXTS, **defaults)
