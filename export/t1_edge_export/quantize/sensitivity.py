"""What 4 bits cost each linear layer, as far as its weights and what it is given tell.

A layer's error is sum(i*(w-q)**2), with i the mean squared input of a weight's channel: the
squared error of what the layer gives, were its inputs uncorrelated. Its share of sum(i*w**2), the
square of what the layer gives, is its relative error. How far that reaches the vector depends on
where the layer stands, by two factors that were measured (docs/LOG.md, 2026-11-25):

- Attention and MLP add to the residual stream, and an error counts as what is added does beside
  what is there: early and late blocks more than those between. Both squares are known from the
  output projections. Their ratio is damped, since a few tokens of enormous activations (arXiv
  2402.17762) make most of any mean square.
- Errors of queries and keys pass through the softmax, which loses most of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge_export.bars import Progress, silent
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import EIGHT_BITS, FOUR_BITS, BlockSize
from t1_edge_export.decoder import TensorSpec, layer_tensors, linear_layers, projection
from t1_edge_export.quantize.blocks import dequantize, quantize_4_bits, quantize_8_bits
from t1_edge_export.slabs import in_order, quantize, spans

Float32Array = NDArray[np.float32]

_SOFTMAX: Final[Mapping[str, float]] = {"q_proj": 0.25, "k_proj": 0.5}
"""How much of a relative error is left behind it."""

_DAMPING: Final = 0.25
"""Power of the ratio of squares."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Weighted sums over a slab's weights: of errors at 4 bits, less those at 8; of squares."""

    name: str
    size: int
    gain: float
    square: float


def by_worth(
    checkpoint: Checkpoint,
    importance: Mapping[str, Float32Array],
    *,
    block_size: BlockSize,
    progress: Progress = silent,
) -> list[TensorSpec]:
    """Linear layers, those first where a byte more spares the vector most.

    Every layer is read once, and rounded by the scale search whatever rounds it in the end.

    Args:
        checkpoint: The float weights; memory holds a few slabs of them.
        importance: Mean squared input of each channel, float32 [in], by tensor name. Empty, all
            channels count alike, and so do all blocks.
        block_size: Weights that share a scale.
        progress: Called with the number of weights that were just measured.

    Raises:
        CheckpointError: If a tensor cannot be read, or weights are too large for float16 scales.
    """
    gains: dict[str, float] = {}
    squares: dict[str, float] = {}
    for part in in_order(_works(checkpoint, importance, block_size)):
        gains[part.name] = gains.get(part.name, 0) + part.gain
        squares[part.name] = squares.get(part.name, 0) + part.square
        progress(part.size)
    # Without statistics nobody knows how large what a layer is given is beside another's.
    reach = _reach(checkpoint.decoder, squares) if importance else dict.fromkeys(squares, 1.0)

    def worth(spec: TensorSpec) -> float:
        factor = reach[spec.name] * _SOFTMAX.get(projection(spec.name), 1.0)
        return factor * gains[spec.name] / (squares[spec.name] or 1.0) / spec.size

    return sorted(linear_layers(checkpoint.decoder), key=worth, reverse=True)


def _reach(decoder: Decoder, squares: Mapping[str, float]) -> dict[str, float]:
    """What counts of a layer's relative error, for where it stands; by tensor name.

    The stream behind a branch is taken as the sum of all that was added so far, uncorrelated.
    """
    found: dict[str, float] = {}
    stream = 0.0
    for layer in range(decoder.layers):
        branch: list[str] = []
        for spec in layer_tensors(decoder, layer):
            if spec.role != "linear":
                continue
            branch.append(spec.name)
            if projection(spec.name) in ("o_proj", "down_proj"):
                stream += squares[spec.name]
                ratio = squares[spec.name] / stream if stream else 0.0
                found |= dict.fromkeys(branch, ratio**_DAMPING)
                branch.clear()
    return found


def _works(
    checkpoint: Checkpoint, importance: Mapping[str, Float32Array], block_size: BlockSize
) -> Iterator[Callable[[], _Part]]:
    for spec in linear_layers(checkpoint.decoder):
        weigh = importance.get(spec.name, np.ones(spec.shape[1], np.float32))
        for rows in spans(spec, checkpoint.decoder.head_dim):
            yield partial(_measure, checkpoint, spec, rows, weigh, block_size)


def _measure(
    checkpoint: Checkpoint,
    spec: TensorSpec,
    rows: range,
    importance: Float32Array,
    block_size: BlockSize,
) -> _Part:
    weights = checkpoint.rows(spec.name, rows.start, rows.stop)
    in_4_bits = partial(quantize_4_bits, importance=importance)
    four, eight = (
        _weighted_squares(
            dequantize(quantize(spec, rows.start, weights, encoding, rounded)) - weights,
            importance,
        )
        for encoding, rounded in (
            (FOUR_BITS[block_size], in_4_bits),
            (EIGHT_BITS[block_size], quantize_8_bits),
        )
    )
    square = _weighted_squares(weights, importance)
    return _Part(name=spec.name, size=weights.size, gain=four - eight, square=square)


def _weighted_squares(values: Float32Array, importance: Float32Array) -> float:
    by_channel = np.einsum("ri,ri->i", values, values)
    return float(by_channel.astype(np.float64) @ importance.astype(np.float64))
