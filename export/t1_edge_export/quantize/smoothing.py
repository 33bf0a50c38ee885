"""Activations that 8 bits hold: what makes channels differ in size moves into the weights.

SmoothQuant (arXiv 2211.10438) at its middle, alpha = 1/2, with the root mean square of a channel
where it has the largest value: a channel that is large for its weights is divided by a factor, and
its weights are multiplied by it. The division costs nothing, since what comes before takes it: a
norm's weights, the rows that make a value or that `gate` is multiplied with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge_export.bars import Progress, silent
from t1_edge_export.checkpoint import Weights
from t1_edge_export.decoder import TensorSpec, layer_name, linear_layers, tensors
from t1_edge_export.slabs import in_order, spans

Float32Array = NDArray[np.float32]

_LEAST: Final = 1e-2
"""What a channel counts at least, of the largest one: one that was silent over the texts of the
statistics may speak over others, and is not to drown the rest."""

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
        """Rows of a linear layer, float32 [rows, in], of which the first is row `start`."""
        if name in self.inputs:
            rows = rows * self.inputs[name]
        if name in self.outputs:
            rows = rows / self.outputs[name][start : start + len(rows), None]
        return rows

    def norm(self, name: str, weights: Float32Array) -> Float32Array:
        """Weights of a norm, float32 [n]."""
        return weights / self.outputs[name] if name in self.outputs else weights


def smooth(
    decoder: Decoder,
    weights: Weights,
    importance: Mapping[str, Float32Array],
    *,
    progress: Progress = silent,
) -> Smoothing:
    """Find the factors of every linear layer's input.

    Args:
        decoder: The shape.
        weights: Reads the linear layers' weights, some rows at a time.
        importance: Mean squared input of each channel, float32 [in], by the linear layer's name;
            without any, nothing is smoothed.
        progress: Called with the number of weights that were just looked at.

    Raises:
        CheckpointError: If a tensor of a checkpoint cannot be read.
        ExportError: If one of files that are read back cannot.
    """
    if not importance:
        return Smoothing()
    specs = {spec.name: spec for spec in tensors(decoder)}
    inputs: dict[str, Float32Array] = {}
    outputs: dict[str, Float32Array] = {}
    sizes = in_order(
        partial(_largest, weights, spec, decoder.head_dim) for spec in linear_layers(decoder)
    )
    largest = {}
    for spec, found in zip(linear_layers(decoder), sizes, strict=True):
        largest[spec.name] = found
        progress(spec.size)
    for layer, (before, readers) in product(range(decoder.layers), _PAIRS):
        names = [layer_name(layer, reader) for reader in readers]
        source = layer_name(layer, before)
        means = importance[names[0]]  # all of them read the same
        weighed = np.max([largest[name] for name in names], axis=0)
        # Several heads of queries may read one value.
        times = means.size // specs[source].shape[0]
        groups = decoder.kv_heads if times > 1 else 1
        means = means.reshape(groups, times, -1).mean(axis=1).reshape(-1)
        weighed = weighed.reshape(groups, times, -1).max(axis=1).reshape(-1)
        factors = outputs[source] = _factors(means, weighed)
        repeated = factors.reshape(groups, 1, -1).repeat(times, axis=1).reshape(-1)
        inputs |= dict.fromkeys(names, repeated)
    return Smoothing(inputs=inputs, outputs=outputs)


def _largest(weights: Weights, spec: TensorSpec, head_dim: int) -> Float32Array:
    """The largest absolute weight of each input channel, float32 [in]."""
    found = np.zeros(spec.shape[1], np.float32)
    for span in spans(spec, head_dim):
        slab = weights.rows(spec.name, span.start, span.stop)
        np.maximum(found, np.abs(slab).max(axis=0), out=found)
    return found


def _factors(means: Float32Array, largest: Float32Array) -> Float32Array:
    """What channels are divided by: about one on average, as a geometric mean."""
    sizes = _at_least(np.sqrt(means)) / _at_least(largest)
    logarithms = np.log(sizes.astype(np.float64)) / 2
    return np.asarray(np.exp(logarithms - logarithms.mean()), np.float32)


def _at_least(sizes: Float32Array) -> Float32Array:
    largest = sizes.max()
    if largest == 0:
        return np.ones_like(sizes)
    return np.asarray(np.maximum(sizes, np.float32(_LEAST) * largest))
