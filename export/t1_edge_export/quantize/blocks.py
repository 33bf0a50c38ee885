"""The block formats Q4_0 and Q8_0: 32 weights of a row share one float16 scale.

Both are symmetric and were defined by ggml: a weight is `scale * (code - 8)` with codes 0..15 in
Q4_0, and `scale * code` with codes -127..127 in Q8_0. ONNX Runtime's MatMulNBits with block size
32 and no zero points means the same numbers, so one quantization serves both containers.

The scale of a Q4_0 block is searched, not taken from its largest weight: among candidates the one
with the least weighted squared error wins. For a fixed rounding q the best scale has the closed
form sum(i*w*q) / sum(i*q*q), with i the importance of the weight's input channel.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from t1_edge_export.containers import BLOCK, Slab

Float32Array = NDArray[np.float32]
Blocks = tuple[NDArray[Any], NDArray[np.float16]]

# Where the largest weight of a block may land: -8 is Q4_0's own choice, and is always tried.
_LANDINGS: Final = (-8.0, -8.5, -7.5, -9.0, -7.0, 7.0, 7.5, 8.0, 6.5)
_REFINEMENTS: Final = 2
_CHUNK: Final = 4096  # blocks: 512 KiB of float32, so that a chunk's candidates stay in cache


def quantize_q4_0(weights: Float32Array, importance: Float32Array | None = None) -> Blocks:
    """Quantize rows to Q4_0 with a weighted scale search.

    Args:
        weights: float32 [rows, in]; `in` a multiple of 32.
        importance: float32 [in], the mean squared activation of each input channel; all 1 if None.

    Returns:
        codes uint8 [rows, in] in 0..15 and scales float16 [rows, in / 32], infinite where weights
        are too large for a float16 scale.
    """
    rows, width = weights.shape
    blocks = weights.reshape(-1, BLOCK)
    codes = np.empty(blocks.shape, np.uint8)
    scales = np.empty(len(blocks), np.float16)
    per_row = None if importance is None else importance.reshape(-1, BLOCK)

    def work(chunk: slice) -> None:
        weight = _importance_of(chunk, per_row)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller sees the infinite scale
            codes[chunk], scales[chunk] = _search(blocks[chunk], weight)

    _in_chunks(work, len(blocks))
    return codes.reshape(rows, width), scales.reshape(rows, -1)


def quantize_q8_0(weights: Float32Array) -> Blocks:
    """Quantize rows to Q8_0: the largest weight of a block becomes 127 or -127.

    Args:
        weights: float32 [rows, in]; `in` a multiple of 32.

    Returns:
        codes int8 [rows, in] and scales float16 [rows, in / 32], infinite where weights are too
        large for a float16 scale.
    """
    blocks = weights.reshape(len(weights), -1, BLOCK)
    with np.errstate(over="ignore"):  # the caller sees the infinite scale
        scales = (np.abs(blocks).max(axis=-1) / np.float32(127)).astype(np.float16)
    codes = np.rint(blocks * _inverse(scales.astype(np.float32))[..., None])
    return np.clip(codes, -127, 127).astype(np.int8).reshape(weights.shape), scales


def dequantize(slab: Slab) -> Float32Array:
    """The weights that a slab stands for, float32, in the shape of its codes."""
    if slab.scales is None:
        return np.asarray(slab.codes, np.float32)
    codes = slab.codes.astype(np.float32) - (8 if slab.encoding == "q4_0" else 0)
    blocks = codes.reshape(len(codes), -1, BLOCK) * slab.scales.astype(np.float32)[..., None]
    return blocks.reshape(codes.shape)


def _search(blocks: Float32Array, weight: Float32Array | None) -> Blocks:
    """Best codes [n, 32] and scales [n] of blocks float32 [n, 32]."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)[:, 0]
    weighted = blocks if weight is None else blocks * weight
    best = _round_scale(largest / np.float32(_LANDINGS[0]))
    gain = _gain(blocks, weighted, weight, best)
    for landing in _LANDINGS:
        scale = largest / np.float32(landing)
        for _ in range(_REFINEMENTS):
            scale = _round_scale(_best_scale(blocks, weighted, weight, scale))
            found = _gain(blocks, weighted, weight, scale)
            better = found > gain
            best, gain = np.where(better, scale, best), np.where(better, found, gain)
    return (_codes(blocks, best) + 8).astype(np.uint8), best.astype(np.float16)


def _best_scale(
    blocks: Float32Array, weighted: Float32Array, weight: Float32Array | None, scale: Float32Array
) -> Float32Array:
    """The scale with the least error for the codes that `scale` rounds to."""
    codes = _codes(blocks, scale)
    cross, square = _moments(codes, weighted, weight)
    return np.divide(cross, square, out=np.zeros_like(cross), where=square > 0)


def _gain(
    blocks: Float32Array, weighted: Float32Array, weight: Float32Array | None, scale: Float32Array
) -> Float32Array:
    """What the error falls by against all zeros: 2*s*sum(i*w*q) - s*s*sum(i*q*q)."""
    cross, square = _moments(_codes(blocks, scale), weighted, weight)
    return scale * (2 * cross - scale * square)


def _moments(
    codes: Float32Array, weighted: Float32Array, weight: Float32Array | None
) -> tuple[Float32Array, Float32Array]:
    squared = codes if weight is None else codes * weight
    return np.einsum("ij,ij->i", codes, weighted), np.einsum("ij,ij->i", codes, squared)


def _codes(blocks: Float32Array, scale: Float32Array) -> Float32Array:
    codes = blocks * _inverse(scale)[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, -8, 7, out=codes)


def _inverse(scale: Float32Array) -> Float32Array:
    """1 / scale, and 0 where the scale is 0."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def _round_scale(scale: Float32Array) -> Float32Array:
    """The float16 that will be stored, as float32."""
    return scale.astype(np.float16).astype(np.float32)


def _importance_of(chunk: slice, per_row: Float32Array | None) -> Float32Array | None:
    """Importance of the blocks of a chunk: the rows of a matrix repeat their channels."""
    if per_row is None:
        return None
    return np.asarray(per_row[np.arange(chunk.start, chunk.stop) % len(per_row)])


def _in_chunks(work: Callable[[slice], None], blocks: int) -> None:
    """Run over all blocks, on both cores: numpy lets go of the interpreter while it computes."""
    chunks = [slice(at, min(at + _CHUNK, blocks)) for at in range(0, blocks, _CHUNK)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(work, chunks))
