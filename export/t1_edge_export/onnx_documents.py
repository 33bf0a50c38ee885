"""The graph that reads documents: the checkpoint's weights in 8 bits, multiplied whole.

A document is hundreds of tokens in one pass, which processors are busy multiplying, not fetching.
Here both sides of a product are integers of 8 bits, with one scale for each row of the weights and
one for each token, so that the sum over a row is one of integers, for which processors have
instructions; blocks of 32 weights with a scale each take twice to three times as long
(docs/performance.md). A token's scale is its own: whatever else is in a batch, its products are the
same. Channels are smoothed before, by `t1_edge_export.quantize.smooth_quant`, for one scale is to
hold them all.

The graph reads, and writes nothing: it has no head. Its embedding is that of weights.bin. Where
the scores of a whole document are small enough, it attends to all tokens at once: ONNX Runtime's
tiles take a third longer (docs/LOG.md, 2026-11-27).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import DOCUMENTS_GRAPH, DOCUMENTS_WEIGHTS, Decoder
from t1_edge.engines.room import MOST_SCORES, score_bytes
from t1_edge.errors import ExportError
from t1_edge_export.bars import Progress, silent
from t1_edge_export.checkpoint import Checkpoint, Weights
from t1_edge_export.containers import Encoding, PlacedFile, aligned
from t1_edge_export.decoder import EMBEDDING, TensorSpec, linear_layers, tensors
from t1_edge_export.onnx_graph import GraphWriter
from t1_edge_export.onnx_layout import ALIGN, Matrix, lay_out
from t1_edge_export.onnx_nodes import Nodes
from t1_edge_export.onnx_products import BlockProducts
from t1_edge_export.quantize.smooth_quant import smooth
from t1_edge_export.quantize.smoothing import Smoothing
from t1_edge_export.slabs import in_order, spans

Float32Array = NDArray[np.float32]

_LARGEST: Final = 127
_ZERO_POINT: Final = 128
_LEAST: Final = 1e-30
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
    decoder: Decoder,
    encodings: Mapping[str, Encoding],
    norms: Mapping[str, Float32Array],
    longest: int,
) -> bytes:
    """The graph over both files.

    Args:
        decoder: The shape.
        encodings: Of weights.bin, by tensor name.
        norms: Smoothed, float32 [n], by tensor name.
        longest: Most tokens of a document.
    """
    nodes = Nodes()
    products = _IntegerProducts(nodes, decoder, lay_out(decoder, encodings)[EMBEDDING])
    tiled = score_bytes(decoder, longest) > MOST_SCORES
    graph = GraphWriter(decoder, nodes, products, norms, head=False, tiled=tiled).model()
    return bytes(graph.SerializeToString())


class _IntegerProducts:
    """Codes times codes; products of the same values share theirs. See `Products`.

    What multiplies the same stays apart: one wider product is no faster (docs/LOG.md).
    """

    def __init__(self, nodes: Nodes, decoder: Decoder, embedding: Matrix) -> None:
        self._nodes = nodes
        self._embedding = embedding
        self._places = lay_out_documents(decoder)
        self._codes_of: dict[str, tuple[str, str]] = {}

    def embed(self) -> str:
        """See `Products`."""
        return BlockProducts(self._nodes, {EMBEDDING: self._embedding}, "float32").embed()

    def one(self, values: str, name: str, output: str = "") -> str:
        """See `Products`."""
        at = self._places[name]
        codes, scale = self._in_8_bits(values, at.width)
        product = self._nodes.contrib(
            "MatMulIntegerToFloat",
            [
                codes,
                self._stored(f"{name}.codes", at.codes, (at.width, at.rows), np.int8),
                self._nodes.constant("one", np.array(1, np.float32)),
                self._stored(f"{name}.scales", at.scales, (at.rows,), np.float32),
                self._zero_point(),
            ],
            [f"{name}.product"],
        )
        return self._nodes.node("Mul", [product, scale], output or f"{name}.out")

    def together(self, values: str, names: Sequence[str]) -> str:
        """See `Products`."""
        return ""

    def apart(self, values: str, names: Sequence[str]) -> list[str]:
        """See `Products`."""
        return [self.one(values, name) for name in names]

    def _stored(self, name: str, offset: int, shape: Sequence[int], dtype: type) -> str:
        return self._nodes.external(name, DOCUMENTS_WEIGHTS, offset, shape, dtype)

    def _zero_point(self) -> str:
        return self._nodes.constant("zero_point", np.array(_ZERO_POINT, np.uint8))

    def _in_8_bits(self, values: str, width: int) -> tuple[str, str]:
        """Codes of values, uint8 [..., width], and the scale of each token, float32 [..., 1]."""
        if values in self._codes_of:
            return self._codes_of[values]
        add = self._nodes.node
        channels = self._nodes.constant("channels", np.array([-1]))
        least = self._nodes.constant("least", np.array(_LEAST, np.float32))
        unit = self._nodes.constant("unit", np.array(1 / _LARGEST, np.float32))
        sizes = add("Abs", [values], f"{values}.sizes")
        largest = add("ReduceMax", [sizes, channels], f"{values}.largest", keepdims=1)
        positive = add("Max", [largest, least], f"{values}.positive")
        scale = add("Mul", [positive, unit], f"{values}.scale")
        shape = add("Shape", [scale], f"{values}.shape")
        points = add("Expand", [self._zero_point(), shape], f"{values}.points")
        inputs = [values, scale, points]
        codes = add("QuantizeLinear", inputs, f"{values}.codes", axis=-1, block_size=width)
        self._codes_of[values] = codes, scale
        return codes, scale


def write_documents(
    directory: Path,
    checkpoint: Checkpoint,
    encodings: Mapping[str, Encoding],
    importance: Mapping[str, Float32Array],
    *,
    longest: int,
    progress: Progress = silent,
) -> None:
    """Write documents.bin and its graph.

    Args:
        directory: Where to; weights.bin stands there too, whose embedding the graph reads.
        checkpoint: The float weights.
        encodings: Of weights.bin, by tensor name.
        importance: Mean squared input of each channel, float32 [in], by tensor name, to smooth by;
            without any, channels stay as they are.
        longest: Most tokens of a document.
        progress: Called with the number of weights that were just dealt with: each is read to
            smooth, and again to be written.

    Raises:
        CheckpointError: If a tensor cannot be read.
        ExportError: If the disk is full.
    """
    decoder = checkpoint.decoder
    smoothing = smooth(decoder, checkpoint, importance, progress=progress)
    places = lay_out_documents(decoder)
    file = PlacedFile(directory / DOCUMENTS_WEIGHTS, size=documents_size(places))
    try:
        works = (
            partial(by_row, spec, checkpoint, smoothing, decoder.head_dim)
            for spec in linear_layers(decoder)
        )
        for spec, (codes, scales) in zip(linear_layers(decoder), in_order(works), strict=True):
            file.write(places[spec.name].codes, codes)
            file.write(places[spec.name].scales, scales)
            progress(spec.size)
    finally:
        file.close()
    norms = {
        spec.name: smoothing.rows(spec.name, checkpoint.rows(spec.name, 0, spec.shape[0]), 0)
        for spec in tensors(decoder)
        if spec.role == "norm"
    }
    path = directory / DOCUMENTS_GRAPH
    try:
        path.write_bytes(documents_graph(decoder, encodings, norms, longest))
    except OSError as e:
        raise ExportError(f"cannot write {path}: {e.strerror}") from e


def by_row(
    spec: TensorSpec, weights: Weights, smoothing: Smoothing, head_dim: int
) -> tuple[NDArray[np.int8], Float32Array]:
    """Round a tensor to 8 bits, a scale a row.

    Args:
        spec: The tensor, a linear layer's.
        weights: Reads it.
        smoothing: Applied before.
        head_dim: Rows are read in so many, or a multiple of it.

    Returns:
        Codes, -127..127, int8 [in, out], and scales, float32 [out].
    """
    rows, width = spec.shape
    codes, scales = np.empty((width, rows), np.int8), np.empty(rows, np.float32)
    for span in spans(spec, head_dim):
        part = slice(span.start, span.stop)
        slab = smoothing.rows(spec.name, weights.rows(spec.name, span.start, span.stop), span.start)
        scales[part] = np.abs(slab).max(axis=1) / _LARGEST
        safe = np.where(scales[part] == 0, np.float32(1), scales[part])
        codes[:, part] = np.rint(slab / safe[:, None]).clip(-_LARGEST, _LARGEST).T
    return codes, scales
