"""Hidden states to unit vectors, and how unit vectors compare."""

import numpy as np
from numpy.typing import NDArray

from t1_edge.engines.base import EngineInfo, Float32Array
from t1_edge.errors import EngineError


def normalised(hidden: Float32Array, info: EngineInfo) -> Float32Array:
    """Hidden states float32 [n, d] as unit vectors.

    Raises:
        EngineError: If a row is not finite, or is all zeros.
    """
    norms = np.linalg.norm(hidden, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise EngineError(f"{info.library} on {info.device} gave a vector that is NaN or zero")
    return np.asarray(hidden / norms, np.float32)


def cosines(vectors: Float32Array, others: Float32Array) -> NDArray[np.float64]:
    """Cosine of each pair of unit vectors, float64 [n]."""
    return np.asarray((vectors.astype(np.float64) * others).sum(axis=1))
