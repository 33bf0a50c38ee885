"""Where each matrix lies in weights.bin, and how its rows are packed there.

Codes come before scales, each as one region a matrix. Queries, keys and values multiply the same,
as gate and up do: neighbours of one encoding among them are one matrix, which the graph multiplies
in one node.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge_export.containers import BLOCK_SIZES, CODE_BITS, SCALE_BITS, Encoding, Slab, aligned
from t1_edge_export.decoder import EMBEDDING, HEAD, layer_name

LAYOUT: Final = 2
"""Changes with where things lie: an export that was interrupted goes on with its own alone."""

ALIGN: Final = 64  # a cache line, and the widest vector register


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix of the graph: one tensor, or several stacked by rows.

    Attributes:
        name: The first tensor's name.
        parts: Tensor names, from the top, with the row each begins at.
        rows: Rows of all parts together (output features).
        width: Columns (input features).
        encoding: Block format, the same for all parts.
        codes: Offset of the codes in weights.bin, in bytes.
        scales: Offset of the float16 scales; the same as the end of the codes in f32.
    """

    name: str
    parts: Mapping[str, int]
    rows: int
    width: int
    encoding: Encoding
    codes: int
    scales: int

    @property
    def blocks(self) -> int:
        """Blocks of a row, each with a scale; none in f32."""
        return self.width // self.block_size if self.block_size else 0

    @property
    def block_size(self) -> int:
        """Weights that share a scale; 0 in f32."""
        return BLOCK_SIZES.get(self.encoding, 0)

    @property
    def code_bits(self) -> int:
        """Bits of a weight's code."""
        return CODE_BITS[self.encoding]

    @property
    def codes_size(self) -> int:
        """Bytes of the codes."""
        return self.rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's codes."""
        return self.width * self.code_bits // 8

    @property
    def row_scale_bytes(self) -> int:
        """Bytes of one row's scales."""
        return self.blocks * SCALE_BITS // 8

    @property
    def end(self) -> int:
        """Offset of what follows the matrix."""
        return self.scales + self.rows * self.row_scale_bytes


@dataclass(frozen=True, kw_only=True)
class _Shape:
    parts: Mapping[str, int]
    rows: int
    width: int


def lay_out(decoder: Decoder, encodings: Mapping[str, Encoding]) -> dict[str, Matrix]:
    """Place every matrix of a decoder.

    Args:
        decoder: The shape.
        encodings: Block format by tensor name.

    Returns:
        The matrices by the name of each *part*.
    """
    places: dict[str, Matrix] = {}
    at = 0
    for shape in _shapes(decoder, encodings):
        matrix = _place(shape, encodings, at)
        places |= dict.fromkeys(shape.parts, matrix)
        at = aligned(matrix.end, ALIGN)
    return places


def pack_codes(slab: Slab) -> NDArray[Any]:
    """Codes as MatMulNBits and GatherBlockQuantized read them, [rows, bytes] or float32.

    Two codes of 4 bits share a byte, the first in the low nibble; codes of 8 are stored plus 128,
    the operators' default zero point.
    """
    if CODE_BITS[slab.encoding] == 4:
        return np.asarray(slab.codes[:, 0::2] | slab.codes[:, 1::2] << 4, np.uint8)
    if CODE_BITS[slab.encoding] == 8:
        return np.asarray(slab.codes.view(np.uint8) ^ np.uint8(0x80))
    return slab.codes


def unpack_codes(stored: NDArray[Any], encoding: Encoding) -> NDArray[Any]:
    """What `pack_codes` packed: uint8 0..15 (4 bits), int8 (8) or float32 (f32), [rows, in]."""
    if CODE_BITS[encoding] == 4:
        return np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1)
    if CODE_BITS[encoding] == 8:
        return np.asarray((stored ^ np.uint8(0x80)).view(np.int8))
    return stored


def _shapes(decoder: Decoder, encodings: Mapping[str, Encoding]) -> Iterator[_Shape]:
    yield _Shape(parts={EMBEDDING: 0}, rows=decoder.vocabulary, width=decoder.hidden)
    for layer in range(decoder.layers):
        for part, rows, width in _projections(decoder, layer, encodings):
            names = [layer_name(layer, name) for name in part]
            starts = np.cumsum([0, *rows]).tolist()
            yield _Shape(parts=dict(zip(names, starts, strict=False)), rows=sum(rows), width=width)
    if not decoder.tied:
        yield _Shape(parts={HEAD: 0}, rows=decoder.vocabulary, width=decoder.hidden)


def _projections(
    decoder: Decoder, layer: int, encodings: Mapping[str, Encoding]
) -> Iterator[tuple[list[str], list[int], int]]:
    """Matrices of a block: parts, their rows, and the width."""
    hidden, inner = decoder.hidden, decoder.intermediate
    q, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    together: list[tuple[dict[str, int], int]] = [  # what multiplies the same
        ({"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}, hidden),
        ({"self_attn.o_proj": hidden}, q),
        ({"mlp.gate_proj": inner, "mlp.up_proj": inner}, hidden),
        ({"mlp.down_proj": hidden}, inner),
    ]
    for parts, width in together:
        for _, run in groupby(parts, key=lambda name: encodings[layer_name(layer, name)]):
            names = list(run)
            yield names, [parts[name] for name in names], width


def _place(shape: _Shape, encodings: Mapping[str, Encoding], at: int) -> Matrix:
    name = next(iter(shape.parts))
    encoding = encodings[name]
    codes_size = shape.rows * shape.width * CODE_BITS[encoding] // 8
    return Matrix(
        name=name,
        parts=shape.parts,
        rows=shape.rows,
        width=shape.width,
        encoding=encoding,
        codes=at,
        scales=aligned(at + codes_size, ALIGN),
    )
