"""How far the matrices of a checkpoint are from what was made of them, tensor by tensor."""

import numpy as np
from numpy.typing import NDArray

from t1_edge_export.checkpoint import Checkpoint, Weights
from t1_edge_export.decoder import TensorSpec, matrices
from t1_edge_export.slabs import spans

Float32Array = NDArray[np.float32]


def relative_errors(checkpoint: Checkpoint, written: Weights) -> dict[str, float]:
    """The norm of each matrix's error, as a share of the matrix's own.

    Args:
        checkpoint: The float weights.
        written: What was made of them.

    Returns:
        By tensor name; 0 for a matrix of zeros that stayed so.
    """
    head_dim = checkpoint.decoder.head_dim
    return {
        spec.name: _relative_error(spec, checkpoint, written, head_dim)
        for spec in matrices(checkpoint.decoder)
    }


def _relative_error(
    spec: TensorSpec, checkpoint: Checkpoint, written: Weights, head_dim: int
) -> float:
    error = whole = 0.0
    for span in spans(spec, head_dim):
        true = checkpoint.rows(spec.name, span.start, span.stop)
        lost = written.rows(spec.name, span.start, span.stop) - true
        error += float(np.vdot(lost, lost))
        whole += float(np.vdot(true, true))
    return float(np.sqrt(error / whole)) if whole else float(error > 0)
