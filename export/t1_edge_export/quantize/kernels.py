"""The scale search of Q4_0, compiled: many blocks side by side, a lane each.

A lane adds up its own block, weight after weight, so that every processor sums in one order and
exports the same build, however wide its registers are. Fused multiply-adds stay off for the same
reason.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.errors import MissingExtraError

try:
    import numba
except ImportError as e:
    raise MissingExtraError("numba", "export") from e

Float32Array = NDArray[np.float32]

_LANES: Final = 128
"""Blocks that are searched together: their weights and importances stay in the nearest cache, or
those of wide blocks in the second."""

_LANDINGS: Final = np.array([-8, -8.5, -7.5, -9, -7, 7, 7.5, 8, 6.5], np.float32)
"""Where the largest weight of a block may land: -8 is Q4_0's own choice, and is always tried."""

_REFINEMENTS: Final = 2

_LOWEST: Final = np.float32(-8)
_HIGHEST: Final = np.float32(7)
_TO_INTEGER: Final = np.float32(1.5 * 2**23)
"""Added and taken away again, it rounds what is small to an integer, halves to even."""

_TO_HALF: Final = np.float32(2**13 + 1)
"""Veltkamp's splitting (Dekker, Numerische Mathematik 18, 1971): 11 of 24 bits stay."""

_TO_SUBNORMAL_HALF: Final = np.float32(0.75)
"""Added and taken away again, it rounds to multiples of 2**-24."""

_LEAST_NORMAL_HALF: Final = np.float32(2**-14)
_FIRST_INFINITE_HALF: Final = np.float32(65520)


def _compiled(function: Callable[..., Any]) -> Any:
    """A function as machine code, which is kept on disk where numba finds a place for it."""
    compile_with = partial(numba.njit, nogil=True, error_model="numpy", boundscheck=False)
    try:
        return compile_with(cache=True)(function)
    except RuntimeError:  # neither beside this file nor in a home: compiled in every process
        return compile_with()(function)


@_compiled
def search(
    blocks: Float32Array,
    importance: Float32Array,
    codes: NDArray[np.uint8],
    scales: Float32Array,
) -> None:
    """Find the scales with the least weighted squared error.

    Args:
        blocks: float32 [n, block size].
        importance: float32 [m, block size]; the errors of block i weigh as row i % m says.
        codes: Written: uint8 [n, block size], 0..15.
        scales: Written: float32 [n], each a float16; infinite where weights are too large.
    """
    size = blocks.shape[1]
    x = np.empty((size, _LANES), np.float32)
    weighted = np.empty((size, _LANES), np.float32)
    weight = np.empty((size, _LANES), np.float32)
    best = np.empty(_LANES, np.float32)
    for start in range(0, len(blocks), _LANES):
        lanes = min(_LANES, len(blocks) - start)
        _load(blocks, importance, start, lanes, x, weighted, weight)
        _best_scales(x, weighted, weight, best)
        for lane in range(lanes):
            scales[start + lane] = best[lane]
            inverse = _inverse(best[lane])
            for i in range(size):
                codes[start + lane, i] = np.uint8(_code(x[i, lane], inverse) + np.float32(8))


@_compiled
def _best_scales(x: Any, weighted: Any, weight: Any, best: Any) -> None:
    """Of scales that are best for a landing's codes, and for their codes in turn, the best."""
    largest = np.empty(_LANES, np.float32)
    scale = np.empty(_LANES, np.float32)
    cross = np.empty(_LANES, np.float32)
    square = np.empty(_LANES, np.float32)
    gain = np.full(_LANES, np.float32(-1))
    best[:] = np.inf  # stays where no scale is finite
    _largest(x, largest)
    for lane in range(_LANES):
        scale[lane] = _half(largest[lane] / _LANDINGS[0])
    _moments(x, weighted, weight, scale, cross, square)
    _keep_better(scale, cross, square, gain, best)
    for landing in _LANDINGS:
        for lane in range(_LANES):
            scale[lane] = largest[lane] / landing
        _moments(x, weighted, weight, scale, cross, square)
        for _ in range(_REFINEMENTS):
            for lane in range(_LANES):
                s = cross[lane] / square[lane] if square[lane] > 0 else scale[lane]
                scale[lane] = _half(s)
            _moments(x, weighted, weight, scale, cross, square)
            _keep_better(scale, cross, square, gain, best)


@_compiled
def _keep_better(scale: Any, cross: Any, square: Any, gain: Any, best: Any) -> None:
    """Take the scales by which the error falls farther, against all zeros, than by the best."""
    for lane in range(_LANES):
        s = scale[lane]
        found = s * (np.float32(2) * cross[lane] - s * square[lane])
        better = found > gain[lane]
        gain[lane] = found if better else gain[lane]
        best[lane] = s if better else best[lane]


@_compiled
def _load(
    blocks: Any,
    importance: Any,
    start: int,
    lanes: int,
    x: Any,
    weighted: Any,
    weight: Any,
) -> None:
    """Turn blocks to lanes; lanes without one are zeros."""
    for lane in range(_LANES):
        row = (start + lane) % len(importance)
        for i in range(len(x)):
            value = blocks[start + lane, i] if lane < lanes else np.float32(0)
            x[i, lane] = value
            weight[i, lane] = importance[row, i]
            weighted[i, lane] = value * importance[row, i]


@_compiled
def _largest(x: Any, largest: Any) -> None:
    """The weight of each lane that is farthest from 0, the first of equals."""
    for lane in range(_LANES):
        largest[lane] = x[0, lane]
    for i in range(1, len(x)):
        for lane in range(_LANES):
            found = abs(x[i, lane]) > abs(largest[lane])
            largest[lane] = x[i, lane] if found else largest[lane]


@_compiled
def _moments(x: Any, weighted: Any, weight: Any, scale: Any, cross: Any, square: Any) -> None:
    """Weighted sums of code times weight, and of code squared."""
    inverse = np.empty(_LANES, np.float32)
    for lane in range(_LANES):
        inverse[lane] = _inverse(scale[lane])
    cross[:] = 0
    square[:] = 0
    for i in range(len(x)):
        for lane in range(_LANES):
            code = _code(x[i, lane], inverse[lane])
            cross[lane] += code * weighted[i, lane]
            square[lane] += code * code * weight[i, lane]


@_compiled
def _code(value: np.float32, inverse: np.float32) -> np.float32:
    code = value * inverse
    code = code if code > _LOWEST else _LOWEST
    code = code if code < _HIGHEST else _HIGHEST
    return (code + _TO_INTEGER) - _TO_INTEGER


@_compiled
def _inverse(scale: np.float32) -> np.float32:
    """1 / scale, and 0 where the scale is 0."""
    return np.float32(1) / scale if scale != 0 else np.float32(0)


@_compiled
def _half(value: np.float32) -> np.float32:
    """The nearest float16, as float32."""
    split = value * _TO_HALF
    normal = split - (split - value)
    subnormal = (value + _TO_SUBNORMAL_HALF) - _TO_SUBNORMAL_HALF
    size = abs(value)
    half = normal if size >= _LEAST_NORMAL_HALF else subnormal
    return half if size < _FIRST_INFINITE_HALF else np.float32(np.inf) * np.sign(value)
