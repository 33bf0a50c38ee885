"""Weights for reading documents: those of weights.bin again, in 8 bits and wider blocks.

A document is hundreds of tokens in one pass, which processors are busy multiplying, not fetching.
ONNX Runtime's kernels spend half of that on the scales of blocks of 32; in blocks of 128 they read
documents a third faster (docs/performance.md), for one byte a weight. What is lost by it is little
beside what 4 bits have lost.

The graph reads, and writes nothing: it has no head. Its embedding is that of weights.bin.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import DOCUMENTS_GRAPH, DOCUMENTS_WEIGHTS, Decoder
from t1_edge.errors import ExportError
from t1_edge_export.bars import Progress, silent
from t1_edge_export.checkpoint import Checkpoint, Weights
from t1_edge_export.containers import Encoding, PlacedFile, aligned
from t1_edge_export.decoder import EMBEDDING, TensorSpec, linear_layers, tensors
from t1_edge_export.onnx_graph import GraphWriter
from t1_edge_export.onnx_layout import ALIGN, Matrix, lay_out
from t1_edge_export.slabs import SLAB_WEIGHTS

Float32Array = NDArray[np.float32]

_BLOCK: Final = 128


def lay_out_documents(decoder: Decoder, encodings: Mapping[str, Encoding]) -> dict[str, Matrix]:
    """Place the matrices of the linear layers in documents.bin; the embedding stays where it is.

    All have 8 bits here, whatever they have in weights.bin, so that what multiplies the same always
    is one matrix.

    Args:
        decoder: The shape.
        encodings: Of weights.bin, by tensor name.

    Returns:
        The matrices by the name of each part.
    """
    places = {EMBEDDING: lay_out(decoder, encodings)[EMBEDDING]}
    joined = lay_out(decoder, dict.fromkeys(encodings, "q8_0"))
    at = 0
    for spec in linear_layers(decoder):
        matrix = joined[spec.name]
        if matrix.name == spec.name:
            wide = replace(matrix, file=DOCUMENTS_WEIGHTS, block=_BLOCK, codes=at, scales=0)
            wide = replace(wide, scales=aligned(at + wide.codes_size, ALIGN))
            places |= dict.fromkeys(matrix.parts, wide)
            at = aligned(wide.end, ALIGN)
    return places


def documents_size(places: Mapping[str, Matrix]) -> int:
    """Bytes of documents.bin."""
    return max(matrix.end for matrix in places.values() if matrix.file == DOCUMENTS_WEIGHTS)


def documents_graph(
    decoder: Decoder, places: Mapping[str, Matrix], norms: Mapping[str, Float32Array]
) -> bytes:
    """The graph over both files.

    Args:
        decoder: The shape.
        places: Of `lay_out_documents`.
        norms: float32 [n], by tensor name.
    """
    graph = GraphWriter(decoder, places, norms, head=False).model()
    return bytes(graph.SerializeToString())


def write_documents(
    directory: Path,
    checkpoint: Checkpoint,
    encodings: Mapping[str, Encoding],
    weights: Weights,
    *,
    progress: Progress = silent,
) -> None:
    """Write documents.bin and its graph.

    Args:
        directory: Where weights.bin is, whole.
        checkpoint: Has the shape, and the norms.
        encodings: Of weights.bin, by tensor name.
        weights: Reads weights.bin.
        progress: Called with the number of weights that were just written.

    Raises:
        CheckpointError: If a norm cannot be read.
        ExportError: If weights.bin cannot be read, or the disk is full.
    """
    decoder = checkpoint.decoder
    places = lay_out_documents(decoder, encodings)
    file = PlacedFile(directory / DOCUMENTS_WEIGHTS, size=documents_size(places))
    try:
        for spec in linear_layers(decoder):
            _write(file, places[spec.name], spec, weights)
            progress(spec.size)
    finally:
        file.close()
    norms = {
        spec.name: checkpoint.rows(spec.name, 0, spec.shape[0])
        for spec in tensors(decoder)
        if spec.role == "norm"
    }
    path = directory / DOCUMENTS_GRAPH
    try:
        path.write_bytes(documents_graph(decoder, places, norms))
    except OSError as e:
        raise ExportError(f"cannot write {path}: {e.strerror}") from e


def _write(file: PlacedFile, matrix: Matrix, spec: TensorSpec, weights: Weights) -> None:
    """A tensor, some rows at a time."""
    rows, width = spec.shape
    step = max(1, SLAB_WEIGHTS // width)
    for start in range(0, rows, step):
        codes, scales = _widened(weights.rows(spec.name, start, min(start + step, rows)))
        row = matrix.parts[spec.name] + start
        file.write(matrix.codes + row * matrix.row_bytes, codes)
        file.write(matrix.scales + row * matrix.row_scale_bytes, scales)


def _widened(weights: Float32Array) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """8-bit codes and float16 scales of wide blocks; the last of a row is filled up with zeros.

    Args:
        weights: float32 [rows, in].

    Returns:
        Codes plus 128, the operator's default zero point, uint8 [rows, in rounded up], and scales,
        float16 [rows, blocks].
    """
    rows, width = weights.shape
    padded = np.zeros((rows, aligned(width, _BLOCK)), np.float32)
    padded[:, :width] = weights
    blocks = padded.reshape(rows, -1, _BLOCK)
    scales = (np.abs(blocks).max(axis=2, keepdims=True) / 127).astype("<f2")
    safe = np.where(scales == 0, np.float32(1), scales.astype(np.float32))
    codes = np.rint(blocks / safe).clip(-127, 127).astype(np.int16) + 128
    return codes.astype(np.uint8).reshape(rows, -1), scales[..., 0]
