"""The graph that reads documents: the weights of weights.bin again, in 8 bits, multiplied whole.

A document is hundreds of tokens in one pass, which processors are busy multiplying, not fetching.
Here both sides of a product are integers of 8 bits, with one scale for each row of the weights and
one for each token, so that the sum over a row is one of integers, for which processors have
instructions; blocks of 32 weights with a scale each take twice to three times as long
(docs/performance.md). A token's scale is its own: whatever else is in a batch, its products are the
same. Channels are smoothed before (`t1_edge_export.quantize.smoothing`), for one scale is to hold
them all.

The graph reads, and writes nothing: it has no head. Its embedding is that of weights.bin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import DOCUMENTS_GRAPH, DOCUMENTS_WEIGHTS, Decoder
from t1_edge.errors import ExportError
from t1_edge_export.bars import Progress, silent
from t1_edge_export.checkpoint import Checkpoint, Weights
from t1_edge_export.containers import Encoding, PlacedFile, aligned
from t1_edge_export.decoder import TensorSpec, linear_layers, tensors
from t1_edge_export.onnx_graph import GraphWriter
from t1_edge_export.onnx_layout import ALIGN, lay_out
from t1_edge_export.quantize.smoothing import Smoothing, smooth
from t1_edge_export.slabs import SLAB_WEIGHTS

Float32Array = NDArray[np.float32]

_LARGEST: Final = 127
_ZERO_POINT: Final = 128
_TINY: Final = 1e-30
"""The largest activation of a token is at least this: one of zeros has a scale, too."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A linear layer in documents.bin: codes, int8 [in, out], then scales, float32 [out].

    Attributes:
        rows: Output features.
        width: Input features.
        codes: Offset of the codes, in bytes.
        scales: Offset of the scales.
    """

    rows: int
    width: int
    codes: int
    scales: int

    @property
    def end(self) -> int:
        """Offset of what follows."""
        return self.scales + 4 * self.rows


def lay_out_documents(decoder: Decoder) -> dict[str, Placement]:
    """Place the linear layers in documents.bin, by tensor name."""
    places: dict[str, Placement] = {}
    at = 0
    for spec in linear_layers(decoder):
        rows, width = spec.shape
        scales = aligned(at + spec.size, ALIGN)
        places[spec.name] = Placement(rows=rows, width=width, codes=at, scales=scales)
        at = aligned(places[spec.name].end, ALIGN)
    return places


def documents_size(places: Mapping[str, Placement]) -> int:
    """Bytes of documents.bin."""
    return max(placement.end for placement in places.values())


def documents_graph(
    decoder: Decoder, encodings: Mapping[str, Encoding], norms: Mapping[str, Float32Array]
) -> bytes:
    """The graph over both files.

    Args:
        decoder: The shape.
        encodings: Of weights.bin, by tensor name.
        norms: Smoothed, float32 [n], by tensor name.
    """
    return bytes(_DocumentsWriter(decoder, encodings, norms).model().SerializeToString())


class _DocumentsWriter(GraphWriter):
    """Every product is one of integers; those of one input share its codes."""

    def __init__(
        self,
        decoder: Decoder,
        encodings: Mapping[str, Encoding],
        norms: Mapping[str, Float32Array],
    ) -> None:
        super().__init__(decoder, lay_out(decoder, encodings), norms, head=False)
        self._places = lay_out_documents(decoder)
        self._codes_of: dict[str, tuple[str, str]] = {}

    def _are_one(self, names: Sequence[str]) -> bool:
        return False

    def _multiply_apart(self, values: str, names: Sequence[str]) -> list[str]:
        return [self._multiply(values, name) for name in names]

    def _multiply(self, values: str, name: str, output: str = "") -> str:
        """Values times the transposed matrix, by row and token."""
        placement = self._places[name]
        codes, scale = self._in_8_bits(values, placement.width)
        product = self._contrib(
            "MatMulIntegerToFloat",
            [
                codes,
                self._stored(
                    f"{name}.codes", placement.codes, (placement.width, placement.rows), np.int8
                ),
                self._constant("one", np.array(1, np.float32)),
                self._stored(f"{name}.scales", placement.scales, (placement.rows,), np.float32),
                self._constant("zero_point", np.array(_ZERO_POINT, np.uint8)),
            ],
            [f"{name}.product"],
        )
        return self._node("Mul", [product, scale], output or f"{name}.out")

    def _stored(self, name: str, offset: int, shape: Sequence[int], dtype: type) -> str:
        return self._external(name, offset, shape, dtype, file=DOCUMENTS_WEIGHTS)

    def _in_8_bits(self, values: str, width: int) -> tuple[str, str]:
        """Codes of values, uint8 [..., width], and the scale of each token, float32 [..., 1]."""
        if values in self._codes_of:
            return self._codes_of[values]
        last = self._constant("last_axis", np.array([-1]))
        tiny = self._constant("tiny", np.array(_TINY, np.float32))
        share = self._constant("share", np.array(1 / _LARGEST, np.float32))
        point = self._constant("zero_points", np.array([_ZERO_POINT], np.uint8))
        sizes = self._node("Abs", [values], f"{values}.sizes")
        largest = self._node("ReduceMax", [sizes, last], f"{values}.largest", keepdims=1)
        positive = self._node("Max", [largest, tiny], f"{values}.positive")
        scale = self._node("Mul", [positive, share], f"{values}.scale")
        shape = self._node("Shape", [scale], f"{values}.shape")
        points = self._node("Expand", [point, shape], f"{values}.points")
        codes = self._node(
            "QuantizeLinear", [values, scale, points], f"{values}.codes", axis=-1, block_size=width
        )
        self._codes_of[values] = codes, scale
        return codes, scale


def write_documents(
    directory: Path,
    checkpoint: Checkpoint,
    encodings: Mapping[str, Encoding],
    weights: Weights,
    importance: Mapping[str, Float32Array],
    *,
    progress: Progress = silent,
) -> None:
    """Write documents.bin and its graph.

    Args:
        directory: Where weights.bin is, whole.
        checkpoint: Has the shape, and the norms.
        encodings: Of weights.bin, by tensor name.
        weights: Reads weights.bin.
        importance: Mean squared input of each channel, float32 [in], by tensor name, to smooth by;
            without any, channels stay as they are.
        progress: Called with the number of weights that were just written.

    Raises:
        CheckpointError: If a norm cannot be read.
        ExportError: If weights.bin cannot be read, or the disk is full.
    """
    decoder = checkpoint.decoder
    smoothing = smooth(decoder, weights, importance)
    places = lay_out_documents(decoder)
    file = PlacedFile(directory / DOCUMENTS_WEIGHTS, size=documents_size(places))
    try:
        for spec in linear_layers(decoder):
            codes, scales = _by_row(spec, weights, smoothing)
            file.write(places[spec.name].codes, codes)
            file.write(places[spec.name].scales, scales)
            progress(spec.size)
    finally:
        file.close()
    norms = {
        spec.name: smoothing.norm(spec.name, checkpoint.rows(spec.name, 0, spec.shape[0]))
        for spec in tensors(decoder)
        if spec.role == "norm"
    }
    path = directory / DOCUMENTS_GRAPH
    try:
        path.write_bytes(documents_graph(decoder, encodings, norms))
    except OSError as e:
        raise ExportError(f"cannot write {path}: {e.strerror}") from e


def _by_row(
    spec: TensorSpec, weights: Weights, smoothing: Smoothing
) -> tuple[NDArray[np.int8], Float32Array]:
    """Codes, -127..127, int8 [in, out], and scales, float32 [out], of a smoothed tensor."""
    rows, width = spec.shape
    codes, scales = np.empty((width, rows), np.int8), np.empty(rows, np.float32)
    step = max(1, SLAB_WEIGHTS // width)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        slab = smoothing.rows(spec.name, weights.rows(spec.name, start, part.stop), start)
        scales[part] = np.abs(slab).max(axis=1) / _LARGEST
        safe = np.where(scales[part] == 0, np.float32(1), scales[part])
        codes[:, part] = np.rint(slab / safe[:, None]).T
    return codes, scales
