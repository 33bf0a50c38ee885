"""The float truth: a decoder's forward pass in numpy float32, a block's weights at a time or kept.

It shares no code with the graphs and files that it judges, and needs no torch; the tests hold it
against transformers. Matrices multiply the tokens of all rows at once; attention goes row by row.

Sources: RMS norm arXiv 1910.07467, rotary positions 2104.09864 (halves rotated, as in Llama and
Qwen3), grouped queries 2305.13245, SwiGLU 2002.05202, normed queries and keys 2505.09388 (Qwen3).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge.machine import available_threads
from t1_edge_export.checkpoint import SLAB_ROWS, Checkpoint, Weights
from t1_edge_export.decoder import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    layer_name,
    layer_tensors,
    tensors,
)

Float32Array = NDArray[np.float32]
_Mix = Callable[[int, Float32Array, Float32Array, Float32Array], Float32Array]
Observer = Callable[[str, Float32Array], None]
"""Takes the name of a linear layer's tensor, and what it is about to multiply, [tokens, in]."""


class Reference:
    """A checkpoint's forward pass.

    Args:
        checkpoint: The float weights.
        keep: Keep them in memory, as float32. Else they are read again for every pass, and memory
            holds one block.
        observe: Called at every linear layer with the tokens of all rows.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        keep: bool = False,
        observe: Observer = lambda name, inputs: None,
    ) -> None:
        self._weights: Weights = _Kept(checkpoint) if keep else checkpoint
        self._observe = observe
        self._decoder = checkpoint.decoder

    def hidden_states(self, rows: Sequence[Sequence[int]]) -> Float32Array:
        """Hidden states after the final norm, at each row's last token.

        Args:
            rows: Token ids, one or more a row; rows may differ in length.

        Returns:
            float32 [rows, hidden].
        """
        return self._last(rows, None)

    def blocks(self, rows: Sequence[Sequence[int]]) -> Iterator[int]:
        """Run rows a block at a time, for who observes.

        Args:
            rows: See `hidden_states`.

        Yields:
            Each block's number, once its linear layers were observed.
        """
        yield from (layer for layer, _ in enumerate(self._residuals(rows, None)))

    def logits(self, hidden: Float32Array) -> Float32Array:
        """Scores of the next token, float32 [rows, vocabulary], from normed hidden states."""
        name = EMBEDDING if self._decoder.tied else HEAD
        size = self._decoder.vocabulary
        read = partial(self._weights.rows, name)
        starts = range(0, size, SLAB_ROWS)
        slabs = [hidden @ read(at, min(at + SLAB_ROWS, size)).T for at in starts]
        return np.concatenate(slabs, axis=1)

    def caches(self, rows: int) -> "list[Cache]":
        """Empty caches, one a row."""
        return [Cache(self._decoder) for _ in range(rows)]

    def forward(self, chunks: Sequence[Sequence[int]], caches: "Sequence[Cache]") -> Float32Array:
        """Run a chunk of tokens behind what each row has in its cache, which grows by them.

        Args:
            chunks: Token ids, one or more a row.
            caches: Of the same rows.

        Returns:
            Hidden states after the final norm at each chunk's last token, float32 [rows, hidden].
        """
        return self._last(chunks, caches)

    def _last(
        self, chunks: Sequence[Sequence[int]], caches: "Sequence[Cache] | None"
    ) -> Float32Array:
        """Hidden states after the final norm at each chunk's last token, float32 [rows, hidden]."""
        [states] = deque(self._residuals(chunks, caches), maxlen=1)
        last = states[np.cumsum([len(chunk) for chunk in chunks]) - 1]
        norm = self._weights.rows(FINAL_NORM, 0, self._decoder.hidden)
        return _rms_norm(last, norm, self._decoder.norm_epsilon)

    def _residuals(
        self, chunks: Sequence[Sequence[int]], caches: "Sequence[Cache] | None"
    ) -> Iterator[Float32Array]:
        """The residual stream after each block, float32 [tokens, hidden].

        Without caches chunks are whole rows, and no block's keys and values are kept: of a 4B they
        take 300 KB a token.
        """
        lengths = [len(chunk) for chunk in chunks]
        spans = [*pairwise(np.cumsum([0, *lengths]).tolist())]
        pasts = [0] * len(chunks) if caches is None else [cache.length for cache in caches]
        positions = [np.arange(past, past + n) for past, n in zip(pasts, lengths, strict=True)]
        cosines, sines = _rotation(self._decoder, np.concatenate(positions))
        states = self._embed([token for chunk in chunks for token in chunk])
        mix = partial(_mix, spans=spans, caches=caches, rotation=(cosines, sines))
        for layer in range(self._decoder.layers):
            states = self._pass(layer, states, mix)
            yield states

    def _pass(self, layer: int, states: Float32Array, mix: "_Mix") -> Float32Array:
        """The residual stream after a block, whose weights are in memory meanwhile."""
        block = _Block(self._decoder, self._weights, layer, self._observe)
        return block.finish(states, mix(layer, *block.project(states)))

    def _embed(self, tokens: Sequence[int]) -> Float32Array:
        """Rows of the embedding, float32 [tokens, hidden]; each distinct one is read once."""
        distinct, which = np.unique(np.array(tokens), return_inverse=True)
        read = [self._weights.rows(EMBEDDING, at, at + 1) for at in distinct.tolist()]
        return np.concatenate(read)[which]


class _Kept:
    """Weights of which every tensor is read once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._sizes = {spec.name: spec.shape[0] for spec in tensors(checkpoint.decoder)}
        self._read: dict[str, Float32Array] = {}

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        if name not in self._read:
            self._read[name] = self._checkpoint.rows(name, 0, self._sizes[name])
        return self._read[name][start:stop]


class Cache:
    """One row's keys and values, float32 [length, kv_heads, head_dim] for each block."""

    def __init__(self, decoder: Decoder) -> None:
        nothing = np.empty((0, decoder.kv_heads, decoder.head_dim), np.float32)
        self._keys = [nothing] * decoder.layers
        self._values = [nothing] * decoder.layers

    @property
    def length(self) -> int:
        """Tokens that every block has seen."""
        return len(self._keys[-1])

    def cut(self, length: int) -> None:
        """Forget all tokens behind the first so many."""
        self._keys = [keys[:length] for keys in self._keys]
        self._values = [values[:length] for values in self._values]

    def extend(
        self, layer: int, key: Float32Array, value: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """Add a chunk's keys and values to a block's.

        Args:
            layer: The block.
            key: Rotated, [chunk, kv_heads, head_dim].
            value: [chunk, kv_heads, head_dim].

        Returns:
            All that the block has then, float32 [length, kv_heads, head_dim] each.
        """
        self._keys[layer] = np.concatenate([self._keys[layer], key])
        self._values[layer] = np.concatenate([self._values[layer], value])
        return self._keys[layer], self._values[layer]


class _Block:
    """One decoder block with its weights in memory."""

    def __init__(self, decoder: Decoder, weights: Weights, layer: int, observe: Observer) -> None:
        self._decoder = decoder
        self._observe = observe
        specs = list(layer_tensors(decoder, layer))
        with ThreadPoolExecutor(available_threads()) as pool:  # converting takes longest
            read = pool.map(lambda spec: weights.rows(spec.name, 0, spec.shape[0]), specs)
            self._weights = {spec.name: rows for spec, rows in zip(specs, read, strict=True)}
        self._name = partial(layer_name, layer)

    def project(self, states: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Queries [tokens, heads, head_dim], keys and values [tokens, kv_heads, head_dim]."""
        normed = self._norm(states, "input_layernorm")
        shape = (len(states), -1, self._decoder.head_dim)
        query, key, value = (
            self._multiply(normed, f"self_attn.{which}_proj").reshape(shape) for which in "qkv"
        )
        if self._decoder.qk_norm:
            query = self._norm(query, "self_attn.q_norm")
            key = self._norm(key, "self_attn.k_norm")
        return query, key, value

    def finish(self, states: Float32Array, mixed: Float32Array) -> Float32Array:
        """The residual stream after attention's output and the MLP, [tokens, hidden]."""
        states = states + self._multiply(mixed, "self_attn.o_proj")
        normed = self._norm(states, "post_attention_layernorm")
        gate = self._multiply(normed, "mlp.gate_proj")
        scale = -gate
        with np.errstate(over="ignore"):  # far below 0, SiLU is x / inf
            np.exp(scale, out=scale)
        scale += 1
        gate /= scale
        del scale  # as large as the MLP is wide
        gate *= self._multiply(normed, "mlp.up_proj")
        return states + self._multiply(gate, "mlp.down_proj")

    def _multiply(self, values: Float32Array, part: str) -> Float32Array:
        name = self._name(part)
        self._observe(name, values)
        return values @ self._weights[name].T

    def _norm(self, values: Float32Array, part: str) -> Float32Array:
        return _rms_norm(values, self._weights[self._name(part)], self._decoder.norm_epsilon)


def _mix(
    layer: int,
    query: Float32Array,
    key: Float32Array,
    value: Float32Array,
    *,
    spans: "Sequence[tuple[int, int]]",
    caches: "Sequence[Cache] | None",
    rotation: tuple[Float32Array, Float32Array],
) -> Float32Array:
    """What a block's attention gives the tokens of all rows, float32 [tokens, heads * head_dim].

    Args:
        layer: The block.
        query: Not rotated yet, [tokens, heads, head_dim].
        key: Likewise, [tokens, kv_heads, head_dim].
        value: [tokens, kv_heads, head_dim].
        spans: Which of the tokens are each row's.
        caches: What the rows have before them, and are extended with these; None if nothing.
        rotation: Cosines and sines of the tokens' positions.
    """
    query, key = (_rotate(heads, *rotation) for heads in (query, key))
    seen = [(key[a:b], value[a:b]) for a, b in spans]
    if caches is not None:
        pairs = zip(caches, seen, strict=True)
        seen = [cache.extend(layer, *fresh) for cache, fresh in pairs]
    mixed = [_attend(query[a:b], *row) for (a, b), row in zip(spans, seen, strict=True)]
    return np.concatenate(mixed)


def _attend(query: Float32Array, keys: Float32Array, values: Float32Array) -> Float32Array:
    """Mix the values that each query of a row may see.

    Args:
        query: Rotated, of the row's last tokens, [chunk, heads, head_dim].
        keys: Rotated, of the whole row, [length, kv_heads, head_dim].
        values: Likewise.

    Returns:
        float32 [chunk, heads * head_dim].
    """
    chunk, heads, width = query.shape
    grouped = query.reshape(chunk, keys.shape[1], -1, width)
    scores = np.einsum("qkgd,tkd->kgqt", grouped, keys, optimize=True)
    scores *= np.float32(width**-0.5)
    past = len(keys) - chunk
    hidden = np.arange(len(keys)) > past + np.arange(chunk)[:, None]
    scores = np.where(hidden, np.float32(-np.inf), scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("kgqt,tkd->qkgd", weights, values, optimize=True)
    return np.asarray(mixed.reshape(chunk, heads * width), np.float32)


def _rms_norm(values: Float32Array, weight: Float32Array, epsilon: float) -> Float32Array:
    square = np.mean(values * values, axis=-1, keepdims=True)
    return np.asarray(values / np.sqrt(square + np.float32(epsilon)) * weight, np.float32)


def _rotation(decoder: Decoder, positions: NDArray[np.int64]) -> tuple[Float32Array, Float32Array]:
    """Cosines and sines, float32 [tokens, 1, head_dim / 2]; angles in float64."""
    exponents = np.arange(0, decoder.head_dim, 2) / decoder.head_dim
    angles = positions[:, None, None] * decoder.rope_theta**-exponents
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotate(heads: Float32Array, cosines: Float32Array, sines: Float32Array) -> Float32Array:
    """Rotate the halves of each head, [tokens, n, head_dim]."""
    first, second = np.split(heads, 2, axis=-1)
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return np.concatenate(turned, axis=-1)
