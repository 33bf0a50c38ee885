"""The ONNX container: packed matrices in weights.bin, everything else in model.onnx."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import ONNX_GRAPH, ONNX_WEIGHTS, Decoder
from t1_edge.errors import ExportError
from t1_edge_export.containers import Encoding, Slab
from t1_edge_export.decoder import tensors
from t1_edge_export.onnx_graph import GraphWriter
from t1_edge_export.onnx_layout import lay_out, pack_codes


class OnnxContainer:
    """Writes model.onnx and weights.bin, a slab at a time. See `ContainerWriter`.

    Args:
        directory: Where the files go.
        decoder: The shape of the model.
        encodings: Block format by tensor name.

    Raises:
        ExportError: If the file cannot be created.
    """

    def __init__(
        self, directory: Path, decoder: Decoder, encodings: Mapping[str, Encoding]
    ) -> None:
        self._directory = directory
        self._decoder = decoder
        self._matrices = lay_out(decoder, encodings)
        self._norms: dict[str, NDArray[np.float32]] = {}
        self._missing = {spec.name: spec.shape[0] for spec in tensors(decoder)}
        try:
            self._file = (directory / ONNX_WEIGHTS).open("wb")
        except OSError as e:
            raise ExportError(f"cannot write {directory / ONNX_WEIGHTS}: {e.strerror}") from e

    def write(self, slab: Slab) -> None:
        """Take the next slab: norms are kept for the graph, matrices go to their place."""
        name = slab.spec.name
        if slab.start != slab.spec.shape[0] - self._missing.get(name, 0):
            raise ExportError(f"{name}: rows from {slab.start} are not the ones that follow")
        if slab.spec.role == "norm":
            self._norms[name] = slab.codes
        else:
            self._write_rows(slab)
        self._missing[name] -= len(slab.codes)

    def finish(self) -> tuple[str, ...]:
        """Write the graph, and name both files."""
        missing = [name for name, rows in self._missing.items() if rows]
        if missing:
            raise ExportError(f"{len(missing)} tensors are not whole, the first is {missing[0]}")
        self._file.close()
        model = GraphWriter(self._decoder, self._matrices, self._norms).model()
        try:
            (self._directory / ONNX_GRAPH).write_bytes(model.SerializeToString())
        except OSError as e:
            raise ExportError(f"cannot write {ONNX_GRAPH}: {e.strerror}") from e
        return (ONNX_GRAPH, ONNX_WEIGHTS)

    def abort(self) -> None:
        """Close the file of an export that failed."""
        self._file.close()

    def _write_rows(self, slab: Slab) -> None:
        matrix = self._matrices[slab.spec.name]
        row = matrix.parts[slab.spec.name] + slab.start
        self._write_at(matrix.codes + row * matrix.row_bytes, pack_codes(slab).tobytes())
        if slab.scales is not None:
            scales = slab.scales.astype(np.float32)
            self._write_at(matrix.scales + row * matrix.row_scale_bytes, scales.tobytes())

    def _write_at(self, offset: int, data: bytes) -> None:
        try:
            self._file.seek(offset, os.SEEK_SET)
            self._file.write(data)
        except OSError as e:
            raise ExportError(
                f"cannot write {ONNX_WEIGHTS}: {e.strerror}; is the disk full?"
            ) from e
