"""Tokens that a checkpoint lacks: new rows of its embedding, at the mean of the others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.build import TOKENIZER, Decoder
from t1_edge.contract import Contract
from t1_edge.errors import CheckpointError, ContractError
from t1_edge_export.checkpoint import SLAB_ROWS, Checkpoint, Derived
from t1_edge_export.decoder import EMBEDDING, HEAD
from t1_edge_export.gguf_tokenizer import added_token

Float32Array = NDArray[np.float32]


def with_tokens(checkpoint: Checkpoint, contract: Contract) -> Checkpoint:
    """A checkpoint that has the tokens of a contract, as far as the contract lets them be added.

    A missing token takes the first free id behind the tokenizer's. Embeddings are often padded
    beyond it; then the id's row exists and is replaced, otherwise the embedding grows.

    Args:
        checkpoint: The float weights.
        contract: Names the tokens, and in `adds` those that a checkpoint may lack.

    Returns:
        The checkpoint itself if it lacks none of them.

    Raises:
        CheckpointError: If its tokenizer.json is damaged, or of a model with more tokens.
        ContractError: If it lacks a token that the contract does not let be added.
    """
    definition, known, first = _read(checkpoint)
    missing = [token for token in dict.fromkeys(contract.own_tokens) if token not in known]
    if not missing:
        return checkpoint
    _check_added(missing, contract, checkpoint)
    added = {first + at: token for at, token in enumerate(missing)}
    definition["added_tokens"] += [
        added_token(at, token, special=True) for at, token in added.items()
    ]
    grown = _Grown(base=checkpoint, first=first, count=len(missing))
    return Derived(
        checkpoint,
        rows=grown.rows,
        decoder=grown.decoder,
        tokenizer=json.dumps(definition, ensure_ascii=False),
    )


def _check_added(missing: list[str], contract: Contract, checkpoint: Checkpoint) -> None:
    for token in missing:
        if token not in contract.adds:
            raise ContractError(
                f"{checkpoint.origin.id} has no token {token!r}, and the contract does not say "
                "that it may be added. A checkpoint that was trained to embed brings its tokens: "
                "check that it is the right one. An added token begins untrained, at the mean of "
                f"the others; a contract that wants that names it: adds = {json.dumps([token])}"
            )


_Id = Annotated[int, msgspec.Meta(ge=0)]


class _Added(msgspec.Struct, frozen=True):
    id: _Id
    content: str


class _Model(msgspec.Struct, frozen=True):
    vocab: dict[str, _Id]


class _Definition(msgspec.Struct, frozen=True):
    """What of a tokenizer.json says which ids there are."""

    added_tokens: list[_Added]
    model: _Model


def _read(checkpoint: Checkpoint) -> tuple[dict[str, Any], set[str], int]:
    """Its tokenizer.json, the added tokens there, and the first id behind the tokenizer's own."""
    try:
        definition = json.loads(checkpoint.tokenizer)
        found = msgspec.convert(definition, _Definition)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(
            f"the {TOKENIZER} of {checkpoint.origin.id} is damaged, or of an unknown kind: {e}"
        ) from e
    added = {token.content: token.id for token in found.added_tokens}
    first = 1 + max([*found.model.vocab.values(), *added.values()], default=-1)
    if first > checkpoint.decoder.vocabulary:
        raise CheckpointError(
            f"the {TOKENIZER} of {checkpoint.origin.id} has {first} ids, the embedding "
            f"{checkpoint.decoder.vocabulary} rows: it is another model's"
        )
    return definition, set(added), first


@dataclass(frozen=True, kw_only=True)
class _Grown:
    """Weights whose rows [first, first + count) of embedding and head are the mean row."""

    base: Checkpoint
    first: int
    count: int

    @cached_property
    def decoder(self) -> Decoder:
        rows = max(self.base.decoder.vocabulary, self.first + self.count)
        return msgspec.structs.replace(self.base.decoder, vocabulary=rows)

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        if name not in (EMBEDDING, HEAD):
            return self.base.rows(name, start, stop)
        held = min(stop, self.base.decoder.vocabulary)
        weights = np.empty((stop - start, self.decoder.hidden), np.float32)
        if start < held:
            weights[: held - start] = self.base.rows(name, start, held)
        new = slice(max(self.first, start) - start, max(self.first + self.count, start) - start)
        weights[new] = self._means[name]
        return weights

    @cached_property
    def _means(self) -> Mapping[str, Float32Array]:
        names = [EMBEDDING] if self.base.decoder.tied else [EMBEDDING, HEAD]
        return {name: self._mean(name) for name in names}

    def _mean(self, name: str) -> Float32Array:
        """Mean of the rows that belong to tokens, float32 [hidden]; padding is left out."""
        total = np.zeros(self.base.decoder.hidden)
        for start in range(0, self.first, SLAB_ROWS):
            stop = min(start + SLAB_ROWS, self.first)
            total += self.base.rows(name, start, stop).sum(axis=0, dtype=np.float64)
        return (total / self.first).astype(np.float32)
