"""Rows as llama.cpp alone reads them, rounded by its own kernels: ggml_quantize_chunk."""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from t1_edge.errors import EngineError, MissingExtraError
from t1_edge_export.containers import Encoding, Packed, bits

Float32Array = NDArray[np.float32]

PACKED: Final[frozenset[Encoding]] = frozenset(get_args(Packed))

_TYPES: Final = {"q5_0": 6, "q4_k": 12, "q6_k": 14}
"""ggml_type."""

LARGEST: Final = 15 * 65504.0
"""A weight beyond it may make a scale infinite, a float16: that of Q5_0 is a 15th of a weight."""


def pack(
    weights: Float32Array, encoding: Encoding, importance: Float32Array | None = None
) -> NDArray[np.uint8]:
    """Quantize rows to one of `PACKED`, on any thread.

    Args:
        weights: float32 [rows, in]; `in` a multiple of 32, of 256 for q4_k and q6_k.
        encoding: The block format; no weight may be beyond `LARGEST`.
        importance: float32 [in], the mean squared activation of each input channel, by which
            llama.cpp weighs errors; its own guess from the weights if None.

    Returns:
        uint8 [rows, bytes].

    Raises:
        EngineError: If llama.cpp has other blocks than these, or its library is not where
            llama-cpp-python puts it.
        MissingExtraError: If llama-cpp-python is not installed.
    """
    rows, width = weights.shape
    packed = np.empty((rows, int(width * bits(encoding)) // 8), np.uint8)
    source = np.ascontiguousarray(weights)
    weigh = None if importance is None else np.ascontiguousarray(importance, np.float32)
    written = _kernel()(
        _TYPES[encoding],
        source.ctypes.data,
        packed.ctypes.data,
        0,
        rows,
        width,
        None if weigh is None else weigh.ctypes.data,
    )
    if written != packed.nbytes:
        raise EngineError(f"llama.cpp wrote {written} bytes of {encoding}, not {packed.nbytes}")
    return packed


@cache
def _kernel() -> Any:
    """Of the library that llama-cpp-python brings; ctypes lets other threads run meanwhile."""
    package = find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise MissingExtraError("llama-cpp-python", "gguf")
    folder = Path(package.origin).with_name("lib")
    try:
        [library, *_] = sorted(folder.glob("*ggml-base.*"))
        kernel = ctypes.CDLL(str(library)).ggml_quantize_chunk
    except (ValueError, OSError, AttributeError) as e:
        raise EngineError(
            f"{folder} has no ggml-base library with ggml_quantize_chunk: install "
            "llama-cpp-python as it comes"
        ) from e
    address, count = ctypes.c_void_p, ctypes.c_int64
    kernel.argtypes = [ctypes.c_int, address, address, count, count, count, address]
    kernel.restype = ctypes.c_size_t
    return kernel
