"""An encoder behind the method names of sentence-transformers, for what is written against those.

Names and meanings are those of its versions 5 and 6 (`SentenceTransformer.encode`, sbert.net). What
t1-edge cannot do is refused, not ignored.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal, get_args

import numpy as np

from t1_edge.encoder import Encoder
from t1_edge.engines.base import Float32Array
from t1_edge.errors import InputError
from t1_edge.tokenization import check_texts

PromptName = Literal["query", "document"]

_ONLY: Final[dict[str, tuple[object, str]]] = {
    "prompt": (None, "a build's contract has its templates"),
    "output_value": ("sentence_embedding", "a text has one vector"),
    "precision": ("float32", "vectors are float32"),
    "convert_to_numpy": (True, "vectors are numpy arrays"),
    "convert_to_tensor": (False, "vectors are numpy arrays: call torch.from_numpy"),
    "device": (None, "a device is chosen when an encoder is loaded"),
    "truncate_dim": (None, "the first dimensions of a vector are no vector"),
    "pool": (None, "spawn processes that load the build"),
    "chunk_size": (None, "spawn processes that load the build"),
}
"""Arguments that sentence-transformers has besides: the one value that is true here, and why."""

_QUERIES: Final = 32
"""That think together: sentence-transformers' own default."""


class SentenceEncoder:
    """An encoder whose methods are called and answer as those of a `SentenceTransformer`.

    Vectors are L2-normalised, as those of a model that ends in `Normalize`.

    Args:
        encoder: What encodes; it stays the caller's to close.
        budget: Most tokens of a query's thought; what the encoder was loaded with if None.
        truncate: Cut documents over the contract's limit, as sentence-transformers does, instead of
            refusing them. Queries are cut either way.
    """

    def __init__(
        self, encoder: Encoder, *, budget: int | None = None, truncate: bool = False
    ) -> None:
        self._encoder = encoder
        self._budget = budget
        self._truncate = truncate

    def encode_query(
        self,
        inputs: str | Sequence[str],
        *,
        prompt_name: PromptName | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = True,
        **others: object,
    ) -> Float32Array:
        """Think about queries, then embed them.

        Args:
            inputs: A query, or several.
            prompt_name: "query", if anything.
            batch_size: Queries that share each pass over the weights, as far as the engine takes
                so many; 32 if None.
            show_progress_bar: Whether a bar is drawn on stderr; not if None.
            normalize_embeddings: True: vectors have length 1.
            others: Arguments of sentence-transformers, at the value that is true here.

        Returns:
            float32 [d] of one text, [n, d] of several.

        Raises:
            InputError: If an argument asks for what cannot be done, or as `Encoder.encode_query`.
            EngineError: As `Encoder.encode_query`.
        """
        _check(prompt_name, "query", normalize_embeddings, others)
        texts = _texts(inputs)
        check_texts(texts, batch_size)
        batch_size = batch_size or _QUERIES
        vectors = np.empty((len(texts), self._encoder.hidden), np.float32)
        with _progress(len(texts), show_progress_bar) as update:
            for at in range(0, len(texts), batch_size):
                batch = texts[at : at + batch_size]
                found = self._encoder.encode_queries(
                    batch, budget=self._budget, batch_size=batch_size
                )
                vectors[at : at + batch_size] = [query.vector for query in found]
                update(len(batch))
        return _shaped(vectors, inputs)

    def encode_document(
        self,
        inputs: str | Sequence[str],
        *,
        prompt_name: PromptName | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = True,
        **others: object,
    ) -> Float32Array:
        """Embed documents.

        Args:
            inputs: A document, or several.
            prompt_name: "document", if anything.
            batch_size: Most documents that run together; as many as run well if None.
            show_progress_bar: As `encode_query`.
            normalize_embeddings: As `encode_query`.
            others: As `encode_query`.

        Returns:
            float32 [d] of one text, [n, d] of several.

        Raises:
            InputError: If an argument asks for what cannot be done, or as
                `Encoder.embed_documents`.
            EngineError: As `Encoder.embed_documents`.
        """
        _check(prompt_name, "document", normalize_embeddings, others)
        texts = _texts(inputs)
        with _progress(len(texts), show_progress_bar) as update:
            found = self._encoder.embed_documents(
                texts, truncate=self._truncate, batch_size=batch_size, progress=update
            )
        return _shaped(found.vectors, inputs)

    def encode(
        self,
        inputs: str | Sequence[str],
        *,
        prompt_name: PromptName | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = True,
        **others: object,
    ) -> Float32Array:
        """Embed texts of either kind: as documents, in one pass, unless `prompt_name` is "query".

        See `encode_query` and `encode_document`.
        """
        encode = self.encode_query if prompt_name == "query" else self.encode_document
        return encode(
            inputs,
            prompt_name=prompt_name,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            normalize_embeddings=normalize_embeddings,
            **others,
        )

    def similarity(self, embeddings1: Float32Array, embeddings2: Float32Array) -> Float32Array:
        """Cosines of all pairs.

        Args:
            embeddings1: float32 [n, d], or [d].
            embeddings2: float32 [m, d], or [d].

        Returns:
            float32 [n, m].
        """
        return np.asarray(_unit(embeddings1) @ _unit(embeddings2).T, np.float32)

    def similarity_pairwise(
        self, embeddings1: Float32Array, embeddings2: Float32Array
    ) -> Float32Array:
        """Cosines of each row of one and the same row of the other, float32 [n]."""
        return np.asarray((_unit(embeddings1) * _unit(embeddings2)).sum(axis=1), np.float32)

    def get_embedding_dimension(self) -> int:
        """Dimensions of a vector."""
        return self._encoder.hidden

    def get_sentence_embedding_dimension(self) -> int:
        """Dimensions of a vector, by the name that older versions have."""
        return self._encoder.hidden


def _check(
    prompt_name: PromptName | None,
    right: PromptName,
    normalize: bool,
    others: dict[str, object],
) -> None:
    if not normalize:
        raise InputError("normalize_embeddings=False cannot be done: vectors have length 1")
    if prompt_name not in (None, right):
        known = " and ".join(get_args(PromptName))
        raise InputError(f"prompt_name {prompt_name!r} is not {right!r}; prompts are {known}")
    for name, value in others.items():
        if name not in _ONLY:
            raise InputError(f"no argument {name!r}: sentence-transformers' encode has none either")
        only, why = _ONLY[name]
        if value != only:
            raise InputError(f"{name}={value!r} cannot be done, only {only!r}: {why}")


def _texts(inputs: str | Sequence[str]) -> list[str]:
    return [inputs] if isinstance(inputs, str) else list(inputs)


def _shaped(vectors: Float32Array, inputs: str | Sequence[str]) -> Float32Array:
    return vectors[0] if isinstance(inputs, str) else vectors


@contextmanager
def _progress(total: int, shown: bool | None) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield lambda texts: None
        return
    from t1_edge.cli.output import progress

    with progress(total, "encoding") as update:
        yield update


def _unit(vectors: Float32Array) -> Float32Array:
    """Rows of length 1; rows that are zero stay so."""
    rows = np.atleast_2d(np.asarray(vectors, np.float32))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), np.float32)
