"""What makes channels differ in size moves into the weights, by how much suits their rounding.

A channel is divided by a factor, and the weights that read it are multiplied by it. The division
costs nothing, since what comes before takes it: a norm's weights, the rows that make a value or
that `gate` is multiplied with. `activation_aware` suits weights that are rounded in blocks,
`t1_edge_export.quantize.smooth_quant` activations that are rounded, too.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge_export.checkpoint import Checkpoint, Derived
from t1_edge_export.decoder import layer_name, tensors

Float32Array = NDArray[np.float32]

_LEAST: Final = 1e-2
"""See `floored`."""

_PAIRS: Final = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)
"""What takes a division, and what reads the channels that it makes."""


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """Factors by tensor name; a tensor that is not named has none.

    Attributes:
        inputs: What the weights of each input channel of a linear layer are multiplied by, float32
            [in].
        outputs: What a linear layer's rows, or a norm's weights, are divided by, float32 [out].
    """

    inputs: Mapping[str, Float32Array] = field(default_factory=dict)
    outputs: Mapping[str, Float32Array] = field(default_factory=dict)

    def rows(self, name: str, rows: Float32Array, start: int) -> Float32Array:
        """Rows of a tensor, of which the first is row `start`.

        Args:
            name: The tensor.
            rows: float32 [rows, in] of a matrix, [rows] of a norm.
            start: Where they stand.
        """
        if name in self.inputs:
            rows = rows * self.inputs[name]
        if name in self.outputs:
            rows = (rows.T / self.outputs[name][start : start + len(rows)]).T
        return rows

    def undone(self, name: str, rows: Float32Array, start: int) -> Float32Array:
        """What `rows` was given, of what it gave."""
        if name in self.outputs:
            rows = (rows.T * self.outputs[name][start : start + len(rows)]).T
        if name in self.inputs:
            rows = rows / self.inputs[name]
        return rows

    def importance(self, importance: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Mean squared inputs, float32 [in] by tensor name, as they are behind the divisions."""
        found = dict(importance)
        for name, factors in self.inputs.items():
            found[name] = np.asarray(importance[name] / np.square(factors), np.float32)
        return found

    def applied(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint that computes the same, all factors in its weights."""

        def rows(name: str, start: int, stop: int) -> Float32Array:
            return self.rows(name, checkpoint.rows(name, start, stop), start)

        return Derived(checkpoint, rows=rows)


def activation_aware(decoder: Decoder, importance: Mapping[str, Float32Array]) -> Smoothing:
    """Factors for weights whose blocks share a scale, as in AWQ (arXiv 2306.00978).

    The error of a block goes with its largest weight, in all of its channels alike. If weights are
    as large in one channel as in another, that error is least for the root of a channel's root mean
    square: sum(s*s) * sum(x*x/(s*s)) is least where s to the fourth is x squared. It was as good as
    a search layer by layer for AWQ's exponent (docs/LOG.md, 2026-11-26).

    Args:
        decoder: The shape.
        importance: Mean squared input of each channel, float32 [in], by the linear layer's name;
            without any, nothing is smoothed.
    """
    if not importance:
        return Smoothing()
    return migrate(decoder, importance, lambda pair, means: floored(np.sqrt(means)))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What takes a division, and what reads the channels that it makes, by tensor name.

    Attributes:
        source: A norm, or a linear layer.
        readers: Linear layers.
        groups: Runs of the source's channels.
        repeats: How often a reader has each run: several heads of queries may read one value.
    """

    source: str
    readers: tuple[str, ...]
    groups: int
    repeats: int

    def by_source(self, inputs: Float32Array) -> Float32Array:
        """A reader's channels, float32 [in], along axis 1 those of one of the source's."""
        return inputs.reshape(self.groups, self.repeats, -1)

    def by_reader(self, factors: Float32Array) -> Float32Array:
        """Of the source's channels, float32 [groups * n]: as a reader has them, [in]."""
        return factors.reshape(self.groups, 1, -1).repeat(self.repeats, axis=1).reshape(-1)


def _pairs(decoder: Decoder) -> Iterator[Pair]:
    shapes = {spec.name: spec.shape for spec in tensors(decoder)}
    for layer, (before, behind) in product(range(decoder.layers), _PAIRS):
        source, readers = layer_name(layer, before), [layer_name(layer, name) for name in behind]
        repeats = shapes[readers[0]][1] // shapes[source][0]
        groups = decoder.kv_heads if repeats > 1 else 1
        yield Pair(source=source, readers=tuple(readers), groups=groups, repeats=repeats)


def migrate(
    decoder: Decoder,
    importance: Mapping[str, Float32Array],
    sizes: Callable[[Pair, Float32Array], Float32Array],
) -> Smoothing:
    """Divide channels by the root of their size; about one on average, as a geometric mean.

    Args:
        decoder: The shape.
        importance: Mean squared input of each channel, float32 [in], by the linear layer's name.
        sizes: Gives the size of a source's channels, float32 [n], from their mean squares.
    """
    inputs: dict[str, Float32Array] = {}
    outputs: dict[str, Float32Array] = {}
    for pair in _pairs(decoder):
        means = importance[pair.readers[0]]  # all of them read the same
        found = sizes(pair, pair.by_source(means).mean(axis=1).reshape(-1))
        logarithms = np.log(found.astype(np.float64)) / 2
        factors = np.asarray(np.exp(logarithms - logarithms.mean()), np.float32)
        outputs[pair.source] = factors
        inputs |= dict.fromkeys(pair.readers, pair.by_reader(factors))
    return Smoothing(inputs=inputs, outputs=outputs)


def floored(sizes: Float32Array) -> Float32Array:
    """Sizes of channels, float32 [n], each a hundredth of the largest one at least.

    A channel that was silent over the texts of the statistics may speak over others, and is not to
    drown the rest.
    """
    largest = sizes.max()
    if largest == 0:
        return np.ones_like(sizes)
    return np.asarray(np.maximum(sizes, np.float32(_LEAST) * largest))
