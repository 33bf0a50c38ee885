"""What passes from the quantizer to the files: slabs of quantized rows.

A tensor reaches every container as the same slabs, so that the containers of one export hold the
same weights bit for bit. A slab is logical: each container packs the codes its own way.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge.errors import ExportError
from t1_edge_export.decoder import TensorSpec, tensors
from t1_edge_export.room import check_disk

Encoding = Literal[
    "f32", "q4_0", "q4_64", "q4_128", "q8_0", "q8_64", "q8_128", "q5_0", "q4_k", "q6_k"
]
Packed = Literal["q5_0", "q4_k", "q6_k"]
"""What llama.cpp alone reads: its own kernels round to it, and give bytes."""

BlockSize = Literal[32, 64, 128]
"""Weights that share a scale, along a row."""

BLOCK: Final = 32
"""The block of llama.cpp's Q4_0 and Q8_0; a wider one is several of these, of one scale."""

FOUR_BITS: Final[Mapping[BlockSize, Encoding]] = {32: "q4_0", 64: "q4_64", 128: "q4_128"}
EIGHT_BITS: Final[Mapping[BlockSize, Encoding]] = {32: "q8_0", 64: "q8_64", 128: "q8_128"}

BLOCK_SIZES: Final[Mapping[Encoding, BlockSize]] = {
    encoding: size for kinds in (FOUR_BITS, EIGHT_BITS) for size, encoding in kinds.items()
}
"""Of encodings whose blocks have a code a weight and a scale."""

CODE_BITS: Final[Mapping[Encoding, int]] = {
    "f32": 32,
    **dict.fromkeys(FOUR_BITS.values(), 4),
    **dict.fromkeys(EIGHT_BITS.values(), 8),
}
"""Of a weight's code."""

SCALE_BITS: Final = 16
"""Of a block's scale, a float16."""

_PACKED_BITS: Final[Mapping[Encoding, float]] = {"q5_0": 5.5, "q4_k": 4.5, "q6_k": 6.5625}
"""Of a weight: 22 bytes for 32, 144 and 210 for 256 (ggml's block_q5_0, block_q4_K, block_q6_K)."""


def bits(encoding: Encoding) -> float:
    """Of a weight, its share of scales included."""
    if encoding in _PACKED_BITS:
        return _PACKED_BITS[encoding]
    shared = SCALE_BITS / BLOCK_SIZES[encoding] if encoding in BLOCK_SIZES else 0
    return CODE_BITS[encoding] + shared


def as_stored_in_gguf(encoding: Encoding) -> Encoding:
    """The same codes in blocks that llama.cpp reads, each with a scale of its own."""
    if encoding not in BLOCK_SIZES:
        return encoding
    return FOUR_BITS[BLOCK] if encoding in FOUR_BITS.values() else EIGHT_BITS[BLOCK]


def aligned(size: int, alignment: int) -> int:
    """The least multiple of an alignment that is not below a size, in bytes."""
    return -(-size // alignment) * alignment


@dataclass(frozen=True, kw_only=True)
class Slab:
    """Consecutive rows of one tensor, encoded.

    A weight is `scales * (codes - 8)` in 4 bits, `scales * codes` in 8, `codes` in f32; what else
    there is are blocks that llama.cpp packed.

    Attributes:
        spec: The tensor.
        encoding: The block format.
        start: First row of the slab in the tensor.
        codes: uint8 0..15 (4 bits), int8 (8 bits) or float32 (f32), [rows, in] or [n] of a norm;
            uint8 [rows, bytes] of packed blocks.
        scales: float16 [rows, in / block size] in 4 and 8 bits; None elsewhere.
    """

    spec: TensorSpec
    encoding: Encoding
    start: int
    codes: NDArray[Any]
    scales: NDArray[np.float16] | None = None

    @property
    def size(self) -> int:
        """How many weights it has."""
        return len(self.codes) * (self.spec.size // self.spec.shape[0])

    @property
    def is_last(self) -> bool:
        """Whether the tensor ends with it."""
        return self.start + len(self.codes) == self.spec.shape[0]


class ContainerWriter(Protocol):
    """A file format that takes a decoder's tensors.

    A tensor comes as one slab or, where it is large, as consecutive ones, each of whole heads;
    norms come whole.
    """

    def write(self, slab: Slab) -> None:
        """Take a slab.

        Raises:
            ExportError: If it is not the one that follows in its tensor, or the disk is full.
        """

    def skip(self, spec: TensorSpec) -> None:
        """Leave a matrix as an earlier attempt wrote it.

        Raises:
            ExportError: If rows of it were written already.
        """

    def flush(self) -> None:
        """Bring what was written to the disk.

        Raises:
            ExportError: If the disk is full.
        """

    def finish(self) -> tuple[str, ...]:
        """Complete the files and name them, relative to the directory given at the start.

        Raises:
            ExportError: If tensors are missing.
        """

    def abort(self) -> None:
        """Close the files of an export that failed; harmless after `finish`."""


class RowsDue:
    """Which rows of a decoder's tensors are still to come.

    Args:
        decoder: The shape.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._due = {spec.name: spec.shape[0] for spec in tensors(decoder)}

    def take(self, slab: Slab) -> None:
        """Note a slab's rows.

        Raises:
            ExportError: If they are not the ones that follow.
        """
        name = slab.spec.name
        if slab.start != slab.spec.shape[0] - self._due.get(name, 0):
            raise ExportError(f"{name}: rows from {slab.start} are not the ones that follow")
        self._due[name] -= len(slab.codes)

    def skip(self, spec: TensorSpec) -> None:
        """Note a whole tensor.

        Raises:
            ExportError: If some of its rows came already.
        """
        if self._due.get(spec.name) != spec.shape[0]:
            raise ExportError(f"{spec.name} cannot be left out: it came already")
        self._due[spec.name] = 0

    def check_whole(self) -> None:
        """Whether everything came.

        Raises:
            ExportError: If not.
        """
        missing = [name for name, rows in self._due.items() if rows]
        if missing:
            raise ExportError(f"{len(missing)} tensors are not whole, the first is {missing[0]}")


class PlacedFile:
    """A file that is written at places, in any order; what is in it already stays.

    Args:
        path: Created if it is missing.
        size: Of the file, in bytes; what is never written is zeros.

    Raises:
        ExportError: If it cannot be created, or the disk has no room for it.
    """

    def __init__(self, path: Path, *, size: int) -> None:
        self._path = path
        held = path.stat().st_size if path.exists() else 0
        self._kept = held == size
        # Asked first: a file system may give all it has before it says that it is not enough.
        check_disk(str(path), size - held, shutil.disk_usage(path.parent).free)
        try:
            self._file = path.open("r+b" if held else "w+b", buffering=0)
        except OSError as e:
            raise self._failed(e) from e
        try:
            if hasattr(os, "posix_fallocate"):  # or others take it meanwhile
                os.posix_fallocate(self._file.fileno(), 0, size)
            self._file.truncate(size)
        except OSError as e:
            self._file.close()
            raise self._failed(e) from e

    def check_kept(self) -> None:
        """Whether the file stood there whole, so that what an earlier attempt wrote is in it.

        Raises:
            ExportError: If it did not.
        """
        if not self._kept:
            raise ExportError(
                f"{self._path} is not as it was left: leave --resume out to start over"
            )

    def write(self, place: int, data: NDArray[Any] | bytes) -> None:
        """Write bytes, or an array's, from a place on.

        Raises:
            ExportError: If the disk is full.
        """
        left = memoryview(data if isinstance(data, bytes) else data.data).cast("B")
        try:
            self._file.seek(place)
            while left:
                left = left[self._file.write(left) :]
        except OSError as e:
            raise self._failed(e) from e

    def flush(self) -> None:
        """Bring it to the disk.

        Raises:
            ExportError: If the disk is full.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as e:
            raise self._failed(e) from e

    def close(self) -> None:
        """Close it; harmless when it is."""
        self._file.close()

    def _failed(self, error: OSError) -> ExportError:
        return ExportError(f"cannot write {self._path}: {error.strerror}; is the disk full?")
