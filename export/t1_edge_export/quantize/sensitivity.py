"""What 4 bits cost each linear layer, as far as its weights and what it is given tell.

A layer's error is sum(i*(w-q)**2), with i the mean squared input of a weight's channel: the
squared error of what the layer gives, were its inputs uncorrelated. It is taken relative to
sum(i*w**2), the square of what the layer gives.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.decoder import TensorSpec, tensors
from t1_edge_export.quantize.blocks import dequantize, quantize_q4_0
from t1_edge_export.slabs import in_order, quantize, spans

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Weighted sums over a slab's weights: of errors at 4 bits, less those at 8; of squares."""

    name: str
    gain: float
    square: float


def by_worth(checkpoint: Checkpoint, importance: Mapping[str, Float32Array]) -> list[TensorSpec]:
    """Linear layers, those first whose error falls most by a byte that they are given.

    Every layer is read once, and rounded by the scale search whatever rounds it in the end.

    Args:
        checkpoint: The float weights; memory holds a few slabs of them.
        importance: Mean squared input of each channel, float32 [in], by tensor name; where a name
            is missing, all channels count alike.

    Raises:
        CheckpointError: If a tensor cannot be read, or weights are too large for float16 scales.
    """
    gains: dict[str, float] = {}
    squares: dict[str, float] = {}
    for part in in_order(_works(checkpoint, importance)):
        gains[part.name] = gains.get(part.name, 0) + part.gain
        squares[part.name] = squares.get(part.name, 0) + part.square

    def worth(spec: TensorSpec) -> float:
        square = squares[spec.name]
        return gains[spec.name] / square / spec.size if square else 0.0

    layers = (spec for spec in tensors(checkpoint.decoder) if spec.role == "linear")
    return sorted(layers, key=worth, reverse=True)


def _works(
    checkpoint: Checkpoint, importance: Mapping[str, Float32Array]
) -> Iterator[Callable[[], _Part]]:
    for spec in tensors(checkpoint.decoder):
        if spec.role == "linear":
            weigh = importance.get(spec.name, np.ones(spec.shape[1], np.float32))
            for rows in spans(spec, checkpoint.decoder.head_dim):
                yield partial(_measure, checkpoint, spec, rows, weigh)


def _measure(
    checkpoint: Checkpoint, spec: TensorSpec, rows: range, importance: Float32Array
) -> _Part:
    weights = checkpoint.rows(spec.name, rows.start, rows.stop)
    q4_0 = partial(quantize_q4_0, importance=importance)
    four, eight = (
        _weighted_squares(
            dequantize(quantize(spec, rows.start, weights, how)) - weights, importance
        )
        for how in (q4_0, None)
    )
    square = _weighted_squares(weights, importance)
    return _Part(name=spec.name, gain=four - eight, square=square)


def _weighted_squares(values: Float32Array, importance: Float32Array) -> float:
    by_channel = np.einsum("ri,ri->i", values, values)
    return float(by_channel.astype(np.float64) @ importance.astype(np.float64))
