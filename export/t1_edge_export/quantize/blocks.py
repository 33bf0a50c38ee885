"""Blocks of 4 and of 8 bits: weights of a row, 32 or more, that share one float16 scale.

Both are symmetric: a weight is `scale * (code - 8)` with codes 0..15 in 4 bits, and `scale * code`
with codes -127..127 in 8. In blocks of 32 these are ggml's Q4_0 and Q8_0, and a wider block is
several of them with one scale; ONNX Runtime's MatMulNBits without zero points means the same
numbers, so one quantization serves both containers.

In 4 bits the scale is searched, not taken from the largest weight: among candidates the one with
the least weighted squared error wins. For a fixed rounding q the best scale has the closed form
sum(i*w*q) / sum(i*q*q), with i the importance of the weight's input channel.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from t1_edge_export.containers import CODE_BITS, BlockSize, Slab
from t1_edge_export.quantize import kernels

Float32Array = NDArray[np.float32]
Blocks = tuple[NDArray[Any], NDArray[np.float16]]


def quantize_4_bits(
    weights: Float32Array, importance: Float32Array | None = None, *, block_size: BlockSize
) -> Blocks:
    """Quantize rows to 4 bits with a weighted scale search.

    Args:
        weights: float32 [rows, in]; `in` a multiple of the block size.
        importance: float32 [in], the mean squared activation of each input channel; all 1 if None.
        block_size: Weights that share a scale.

    Returns:
        codes uint8 [rows, in] in 0..15 and scales float16 [rows, in / block_size], infinite where
        weights are too large for a float16 scale.
    """
    blocks = weights.reshape(-1, block_size)
    codes = np.empty(blocks.shape, np.uint8)
    scales = np.empty(len(blocks), np.float32)
    if importance is None:
        importance = np.ones(block_size, np.float32)
    kernels.search(blocks, importance.reshape(-1, block_size), codes, scales)
    with np.errstate(over="ignore"):  # the caller sees the infinite scale
        return codes.reshape(weights.shape), scales.astype(np.float16).reshape(len(weights), -1)


def round_4_bits(weights: Float32Array, *, block_size: BlockSize) -> Blocks:
    """Quantize rows to 4 bits as ggml does to Q4_0: the largest weight of a block becomes -8.

    Args:
        weights: float32 [rows, in]; `in` a multiple of the block size.
        block_size: Weights that share a scale.

    Returns:
        As `quantize_4_bits`.
    """
    blocks = weights.reshape(len(weights), -1, block_size)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    with np.errstate(over="ignore"):  # the caller sees the infinite scale
        scales = (largest[..., 0] / np.float32(-8)).astype(np.float16)
    codes = np.floor(blocks * _inverse(scales.astype(np.float32))[..., None] + np.float32(8.5))
    return np.clip(codes, 0, 15).astype(np.uint8).reshape(weights.shape), scales


def quantize_8_bits(weights: Float32Array, *, block_size: BlockSize) -> Blocks:
    """Quantize rows to 8 bits: the largest weight of a block becomes 127 or -127.

    Args:
        weights: float32 [rows, in]; `in` a multiple of the block size.
        block_size: Weights that share a scale.

    Returns:
        codes int8 [rows, in] and scales float16 [rows, in / block_size], infinite where weights
        are too large for a float16 scale.
    """
    blocks = weights.reshape(len(weights), -1, block_size)
    with np.errstate(over="ignore"):  # the caller sees the infinite scale
        scales = (np.abs(blocks).max(axis=-1) / np.float32(127)).astype(np.float16)
    codes = np.rint(blocks * _inverse(scales.astype(np.float32))[..., None])
    return np.clip(codes, -127, 127).astype(np.int8).reshape(weights.shape), scales


def dequantize(slab: Slab) -> Float32Array:
    """The weights that a slab stands for, float32, in the shape of its codes."""
    if slab.scales is None:
        return np.asarray(slab.codes, np.float32)
    codes = slab.codes.astype(np.float32) - (8 if CODE_BITS[slab.encoding] == 4 else 0)
    blocks = codes.reshape(*slab.scales.shape, -1) * slab.scales.astype(np.float32)[..., None]
    return blocks.reshape(codes.shape)


def _inverse(scale: Float32Array) -> Float32Array:
    """1 / scale, and 0 where the scale is 0."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
