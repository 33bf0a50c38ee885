"""Activations that 8 bits hold, one scale for a token: SmoothQuant (arXiv 2211.10438)."""

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge_export.bars import Progress, silent
from t1_edge_export.checkpoint import Weights
from t1_edge_export.decoder import TensorSpec, linear_layers
from t1_edge_export.quantize.smoothing import Pair, Smoothing, floored, migrate
from t1_edge_export.slabs import in_order, spans

Float32Array = NDArray[np.float32]


def smooth(
    decoder: Decoder,
    weights: Weights,
    importance: Mapping[str, Float32Array],
    *,
    progress: Progress = silent,
) -> Smoothing:
    """Factors at SmoothQuant's middle, alpha = 1/2.

    The root mean square of a channel stands where it has the largest value, beside the largest
    weight that reads the channel.

    Args:
        decoder: The shape.
        weights: Reads the linear layers' weights, some rows at a time.
        importance: Mean squared input of each channel, float32 [in], by the linear layer's name;
            without any, nothing is smoothed.
        progress: Called with the number of weights that were just looked at.

    Raises:
        CheckpointError: If a tensor cannot be read.
    """
    if not importance:
        return Smoothing()
    sizes = in_order(
        partial(_largest, weights, spec, decoder.head_dim) for spec in linear_layers(decoder)
    )
    largest = {}
    for spec, found in zip(linear_layers(decoder), sizes, strict=True):
        largest[spec.name] = found
        progress(spec.size)

    def beside_weights(pair: Pair, means: Float32Array) -> Float32Array:
        readers = np.max([largest[name] for name in pair.readers], axis=0)
        weights = pair.by_source(readers).max(axis=1).reshape(-1)
        return floored(np.sqrt(means)) / floored(weights)

    return migrate(decoder, importance, beside_weights)


def _largest(weights: Weights, spec: TensorSpec, head_dim: int) -> Float32Array:
    """The largest absolute weight of each input channel, float32 [in]."""
    found = np.zeros(spec.shape[1], np.float32)
    for span in spans(spec, head_dim):
        slab = weights.rows(spec.name, span.start, span.stop)
        np.maximum(found, np.abs(slab).max(axis=0), out=found)
    return found
