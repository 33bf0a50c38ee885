"""The ONNX container: packed matrices in weights.bin, everything else in the graphs over it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import CUDA_GRAPH, ONNX_GRAPH, ONNX_WEIGHTS, Decoder
from t1_edge.errors import ExportError
from t1_edge_export.containers import Encoding, PlacedFile, RowsDue, Slab
from t1_edge_export.decoder import TensorSpec
from t1_edge_export.onnx_graph import graph_over_weights
from t1_edge_export.onnx_layout import lay_out, pack_codes
from t1_edge_export.onnx_products import Activations


def graphs(cuda: bool) -> dict[str, Activations]:
    """The type of activations of each graph over weights.bin, by its file's name."""
    found: dict[str, Activations] = {ONNX_GRAPH: "float32"}
    return found | {CUDA_GRAPH: "float16"} if cuda else found


class OnnxContainer:
    """Writes weights.bin, a slab at a time, and the graphs. See `ContainerWriter`.

    Args:
        directory: Where the files go.
        decoder: The shape of the model.
        encodings: Block format by tensor name.
        cuda: Write the graph for CUDA too.

    Raises:
        ExportError: If the file cannot be created.
    """

    def __init__(
        self,
        directory: Path,
        decoder: Decoder,
        encodings: Mapping[str, Encoding],
        *,
        cuda: bool = False,
    ) -> None:
        self._directory = directory
        self._decoder = decoder
        self._graphs = graphs(cuda)
        self._matrices = lay_out(decoder, encodings)
        self._norms: dict[str, NDArray[np.float32]] = {}
        self._due = RowsDue(decoder)
        self._file = PlacedFile(
            directory / ONNX_WEIGHTS, size=max(matrix.end for matrix in self._matrices.values())
        )

    def write(self, slab: Slab) -> None:
        """Take a slab: norms are kept for the graph, matrices go to their place."""
        self._due.take(slab)
        if slab.spec.role == "norm":
            self._norms[slab.spec.name] = slab.codes
            return
        matrix = self._matrices[slab.spec.name]
        row = matrix.parts[slab.spec.name] + slab.start
        self._file.write(matrix.codes + row * matrix.row_bytes, pack_codes(slab))
        if slab.scales is not None:
            scales = slab.scales.astype("<f2")
            self._file.write(matrix.scales + row * matrix.row_scale_bytes, scales)

    def skip(self, spec: TensorSpec) -> None:
        """Leave a matrix as it is."""
        self._file.check_kept()
        self._due.skip(spec)

    def flush(self) -> None:
        """Bring weights.bin to the disk."""
        self._file.flush()

    def finish(self) -> tuple[str, ...]:
        """Write the graphs, and name all files."""
        self._due.check_whole()
        self._file.close()
        for name, activations in self._graphs.items():
            model = graph_over_weights(self._decoder, self._matrices, self._norms, activations)
            try:
                (self._directory / name).write_bytes(model.SerializeToString())
            except OSError as e:
                raise ExportError(f"cannot write {self._directory / name}: {e.strerror}") from e
        return (*self._graphs, ONNX_WEIGHTS)

    def abort(self) -> None:
        """Close the file of an export that failed."""
        self._file.close()
