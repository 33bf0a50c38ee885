"""The GGUF container: model.gguf, written a slab at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import GGUF_MODEL, Decoder
from t1_edge_export.containers import (
    BLOCK,
    BLOCK_SIZES,
    CODE_BITS,
    Encoding,
    PlacedFile,
    RowsDue,
    Slab,
    aligned,
)
from t1_edge_export.decoder import TensorSpec
from t1_edge_export.gguf_checkpoint import rotated_heads, stored_rows
from t1_edge_export.gguf_metadata import ALIGNMENT, stored_tensors, tensor_bytes


def pack(slab: Slab) -> NDArray[np.uint8]:
    """Rows as GGUF stores them, uint8 [rows, bytes].

    A Q4_0 block is its float16 scale and 16 bytes, byte j holding code j in its low half and code
    j + 16 in its high half; a Q8_0 block is its scale and 32 signed bytes. Source: ggml's
    block_q4_0 and block_q8_0. A wider block becomes several, each with its scale; blocks that
    llama.cpp packed are as they should be.
    """
    if slab.encoding != "f32" and slab.scales is None:
        return slab.codes
    if slab.scales is None:
        values = np.ascontiguousarray(slab.codes, "<f4")
        return values.reshape(len(values), -1).view(np.uint8)
    blocks = slab.codes.reshape(len(slab.codes), -1, BLOCK)
    if CODE_BITS[slab.encoding] == 4:
        blocks = blocks[..., : BLOCK // 2] | blocks[..., BLOCK // 2 :] << 4
    repeated = slab.scales.repeat(BLOCK_SIZES[slab.encoding] // BLOCK, axis=-1)
    scales = repeated.astype("<f2")[..., None].view(np.uint8)
    return np.concatenate([scales, blocks.view(np.uint8)], axis=-1).reshape(len(blocks), -1)


@dataclass(frozen=True, kw_only=True)
class GGUFLayout:
    """Where everything lies in a GGUF.

    Attributes:
        metadata: The bytes before the tensors.
        places: Offset of each tensor by its Hugging Face name, in bytes.
        size: Of the file, in bytes.
    """

    metadata: bytes
    places: Mapping[str, int]
    size: int


def lay_out_gguf(
    decoder: Decoder, encodings: Mapping[str, Encoding], metadata: bytes
) -> GGUFLayout:
    """Place every tensor of a decoder.

    Args:
        decoder: The shape of the model.
        encodings: Block format by tensor name.
        metadata: Of `gguf_metadata`.
    """
    places = {}
    at = len(metadata)
    for spec in stored_tensors(decoder):
        places[spec.name] = at
        at += aligned(tensor_bytes(spec, encodings[spec.name]), ALIGNMENT)
    return GGUFLayout(metadata=metadata, places=places, size=at)


class GGUFContainer:
    """Writes model.gguf. See `ContainerWriter`.

    Args:
        directory: Where the file goes.
        decoder: The shape of the model.
        layout: Where everything lies in it.

    Raises:
        ExportError: If the file cannot be created.
    """

    def __init__(self, directory: Path, decoder: Decoder, layout: GGUFLayout) -> None:
        self._decoder = decoder
        self._due = RowsDue(decoder)
        self._places = layout.places
        self._file = PlacedFile(directory / GGUF_MODEL, size=layout.size)
        self._file.write(0, layout.metadata)

    def write(self, slab: Slab) -> None:
        """Take a slab."""
        self._due.take(slab)
        spec, rows = slab.spec, len(slab.codes)
        heads = rotated_heads(spec.name, self._decoder) * rows // spec.shape[0]
        packed = pack(slab)[stored_rows(heads, rows, inverse=True)]
        place = self._places[spec.name]
        self._file.write(place + slab.start * packed.shape[1], packed)

    def skip(self, spec: TensorSpec) -> None:
        """Leave a matrix as it is."""
        self._file.check_kept()
        self._due.skip(spec)

    def flush(self) -> None:
        """Bring model.gguf to the disk."""
        self._file.flush()

    def finish(self) -> tuple[str, ...]:
        """Close the file, and name it."""
        self._due.check_whole()
        self._file.close()
        return (GGUF_MODEL,)

    def abort(self) -> None:
        """Close the file of an export that failed."""
        self._file.close()
