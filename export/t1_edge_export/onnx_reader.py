"""What was written for ONNX Runtime read back: the weights that its graphs multiply with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import DOCUMENTS_WEIGHTS, ONNX_WEIGHTS, Decoder
from t1_edge.errors import ExportError
from t1_edge_export.checkpoint import Weights
from t1_edge_export.containers import Encoding, Slab
from t1_edge_export.decoder import tensors
from t1_edge_export.onnx_documents import lay_out_documents
from t1_edge_export.onnx_layout import Matrix, lay_out, unpack_codes
from t1_edge_export.quantize.blocks import dequantize
from t1_edge_export.quantize.smoothing import Smoothing

Float32Array = NDArray[np.float32]


class OnnxWeights:
    """The matrices of a directory that holds format `onnx`.

    Args:
        directory: Where weights.bin is.
        decoder: The shape of the model.
        encodings: Block format by tensor name.
    """

    def __init__(
        self, directory: Path, decoder: Decoder, encodings: Mapping[str, Encoding]
    ) -> None:
        self._path = directory / ONNX_WEIGHTS
        self._matrices = lay_out(decoder, encodings)
        self._specs = {spec.name: spec for spec in tensors(decoder)}

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of a matrix, dequantized.

        Returns:
            float32 [stop - start, in].

        Raises:
            ExportError: If weights.bin cannot be read so far.
        """
        matrix = self._matrices[name]
        first, count = matrix.parts[name] + start, stop - start
        place = matrix.codes + first * matrix.row_bytes
        dtype = "<f4" if matrix.encoding == "f32" else "u1"
        stored = self._read(dtype, place, count, matrix.row_bytes)
        slab = Slab(
            spec=self._specs[name],
            encoding=matrix.encoding,
            start=start,
            codes=unpack_codes(stored, matrix.encoding),
            scales=self._scales(matrix, first, count),
        )
        return dequantize(slab)

    def _scales(self, matrix: Matrix, first: int, count: int) -> NDArray[np.float16] | None:
        if matrix.encoding == "f32":
            return None
        place = matrix.scales + first * matrix.row_scale_bytes
        scales = self._read("<f2", place, count, matrix.row_scale_bytes)
        return np.asarray(scales, np.float16)

    def _read(self, dtype: str, place: int, rows: int, row_bytes: int) -> NDArray[Any]:
        items = row_bytes // np.dtype(dtype).itemsize
        try:
            found = np.fromfile(self._path, dtype, rows * items, offset=place)
            return found.reshape(rows, items)
        except (OSError, ValueError) as e:  # fewer than were asked for
            raise ExportError(f"cannot read {self._path}: {e}") from e


class DocumentsWeights:
    """The matrices of the graph for documents, as they would be without channels smoothed for it.

    Args:
        directory: Where documents.bin is.
        decoder: The shape of the model.
        smoothing: By which channels were smoothed.
        others: Reads what documents.bin does not hold.
    """

    def __init__(
        self, directory: Path, decoder: Decoder, smoothing: Smoothing, others: Weights
    ) -> None:
        self._path = directory / DOCUMENTS_WEIGHTS
        self._places = lay_out_documents(decoder)
        self._smoothing = smoothing
        self._others = others

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of a matrix, dequantized.

        Returns:
            float32 [stop - start, in].

        Raises:
            ExportError: If a file cannot be read so far.
        """
        if name not in self._places:
            return self._others.rows(name, start, stop)
        place = self._places[name]
        try:
            codes = np.memmap(self._path, np.int8, "r", place.codes, (place.width, place.rows))
            scales = np.memmap(self._path, "<f4", "r", place.scales, (place.rows,))
        except (OSError, ValueError) as e:  # shorter than it was written
            raise ExportError(f"cannot read {self._path}: {e}") from e
        found = codes[:, start:stop].T * scales[start:stop, None]
        return self._smoothing.undone(name, np.asarray(found, np.float32), start)
