"""What passes from the quantizer to the files: slabs of quantized rows.

A tensor reaches every container as the same slabs, so that the containers of one export hold the
same weights bit for bit. A slab is logical: each container packs the codes its own way.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from t1_edge_export.decoder import TensorSpec

Encoding = Literal["f32", "q4_0", "q8_0"]

BLOCK: Final = 32
"""Weights that share a scale, along a row: the block of llama.cpp's Q4_0 and Q8_0."""


@dataclass(frozen=True, kw_only=True)
class Slab:
    """Consecutive rows of one tensor, encoded.

    A weight is `scales * (codes - 8)` in q4_0, `scales * codes` in q8_0, `codes` in f32.

    Attributes:
        spec: The tensor.
        encoding: The block format.
        start: First row of the slab in the tensor.
        codes: uint8 0..15 (q4_0), int8 (q8_0) or float32 (f32), [rows, in] or [n] of a norm.
        scales: float16 [rows, in / BLOCK]; None in f32.
    """

    spec: TensorSpec
    encoding: Encoding
    start: int
    codes: NDArray[Any]
    scales: NDArray[np.float16] | None = None


class ContainerWriter(Protocol):
    """A file format that takes a decoder's tensors in the order of `decoder.tensors`.

    A tensor comes as one slab or, where it is large (embedding, head), as consecutive slabs;
    norms and the projections of a block always come whole.
    """

    def write(self, slab: Slab) -> None:
        """Take the next slab.

        Raises:
            ExportError: If it is not the one that follows, or the disk is full.
        """

    def finish(self) -> tuple[str, ...]:
        """Complete the files and name them, relative to the directory given at the start.

        Raises:
            ExportError: If tensors are missing.
        """

    def abort(self) -> None:
        """Close the files of an export that failed; harmless after `finish`."""
