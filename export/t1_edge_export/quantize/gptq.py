"""GPTQ onto blocks of 4 bits: a column's rounding error is made up for by the columns behind it.

Source: arXiv 2210.17323, with the Cholesky factor of the damped inverse Gram matrix. The grid is
that of `blocks`: symmetric, with which the result runs identically in both containers.
A block's scale is searched when its columns are reached, over the weights as they stand by then,
each weighted with what an error in it costs once the columns behind it have made up for it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge_export.containers import BLOCK, BlockSize
from t1_edge_export.quantize.blocks import Blocks, quantize_4_bits

Float32Array = NDArray[np.float32]

_STRETCH: Final = 4 * BLOCK
"""Columns whose errors are gathered before those behind them are touched: one large product."""


def gptq_4_bits(weights: Float32Array, factor: Float32Array, *, block_size: BlockSize) -> Blocks:
    """Quantize rows to 4 bits so that what the layer gives changes least.

    Args:
        weights: float32 [rows, in]; `in` a multiple of the block size.
        factor: float32 [in, in], of `inverse_factor`.
        block_size: Weights that share a scale; `_STRETCH` is a multiple of it.

    Returns:
        codes uint8 [rows, in] in 0..15 and scales float16 [rows, in / block_size], infinite where
        weights are too large for a float16 scale.
    """
    cost: Float32Array = np.diagonal(factor) ** np.float32(-2)
    rest = weights.copy()
    codes = np.empty(weights.shape, np.uint8)
    scales = np.empty((len(weights), weights.shape[1] // block_size), np.float16)
    width = weights.shape[1]
    for start in range(0, width, _STRETCH):
        stop = min(start + _STRETCH, width)
        errors = np.empty((len(weights), stop - start), np.float32)
        for at in range(start, stop, block_size):
            block = slice(at, at + block_size)
            _, found = quantize_4_bits(
                np.ascontiguousarray(rest[:, block]), cost[block], block_size=block_size
            )
            scales[:, at // block_size] = found[:, 0]
            scale = found[:, 0].astype(np.float32)
            for column in range(at, at + block_size):
                code = _round(rest[:, column], scale)
                codes[:, column] = code + 8
                error = (rest[:, column] - scale * code) / factor[column, column]
                rest[:, column:stop] -= error[:, None] * factor[column, column:stop]
                errors[:, column - start] = error
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes, scales


def inverse_factor(gram: Float32Array, *, damping: float = 0.01) -> Float32Array:
    """Upper triangular U with U^T U the inverse of the damped matrix, float32 [in, in].

    Args:
        gram: float32 [in, in], the sum of outer products of a layer's inputs, or a multiple.
        damping: Share of the mean diagonal that is added to it, so that it can be inverted.
    """
    damped = gram.astype(np.float64)
    mean = float(np.diagonal(gram).mean())
    damped[np.diag_indices_from(damped)] += damping * mean if mean else 1.0
    # The inverse of R, where R R^T is the matrix and R is upper: Cholesky's from the other end.
    inverse = _inverse_of_lower(np.linalg.cholesky(damped[::-1, ::-1]))
    return np.ascontiguousarray(inverse[::-1, ::-1], np.float32)


def _inverse_of_lower(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of a lower triangular matrix, by halves, a sixth of the work of a plain inverse."""
    if len(matrix) <= BLOCK:
        return np.tril(np.linalg.inv(matrix))
    half = len(matrix) // 2
    found = np.zeros_like(matrix)
    first = found[:half, :half] = _inverse_of_lower(matrix[:half, :half])
    second = found[half:, half:] = _inverse_of_lower(matrix[half:, half:])
    found[half:, :half] = -second @ matrix[half:, :half] @ first
    return found


def _round(values: Float32Array, scale: Float32Array) -> Float32Array:
    """Codes -8..7 of values on the grid of their row's scale."""
    codes = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
    np.rint(codes, out=codes)
    return np.clip(codes, -8, 7, out=codes)
