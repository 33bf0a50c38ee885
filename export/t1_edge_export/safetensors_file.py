"""Tensors of a safetensors file, read and converted a slab of rows at a time.

The format is read directly, since numpy has no bfloat16 and a slab is all that is wanted: 8 bytes
of header length, little-endian; a JSON header of names to dtype, shape and offsets; the data.
https://github.com/huggingface/safetensors#format
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.errors import CheckpointError
from t1_edge_export.checkpoint import check_finite

Float32Array = NDArray[np.float32]

_WIDTHS: Final[Mapping[str, str]] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_LONGEST_HEADER: Final = 100_000_000  # the limit that the format's own library sets

_Size = Annotated[int, msgspec.Meta(ge=0)]
_Shape = Annotated[tuple[_Size, ...], msgspec.Meta(max_length=8)]


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: _Shape
    data_offsets: tuple[_Size, _Size]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        path: The file.
        name: Its name there.
        dtype: "F32", "F16" or "BF16".
        shape: Rows first.
        offset: Bytes from the file's start.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * np.dtype(_WIDTHS[self.dtype]).itemsize

    def rows(self, start: int, stop: int) -> Float32Array:
        """Rows [start, stop), float32 [stop - start, ...].

        Raises:
            CheckpointError: If the file cannot be read, or a weight among them is NaN or infinite.
        """
        # Read, not mapped: pages of a mapped file count as the process's own.
        stored = np.dtype(_WIDTHS[self.dtype])
        row = math.prod(self.shape[1:])
        begin = self.offset + start * row * stored.itemsize
        try:
            data = np.fromfile(self.path, stored, (stop - start) * row, offset=begin)
            weights = _to_float32(data, self.dtype).reshape(stop - start, *self.shape[1:])
        except (OSError, ValueError) as e:
            raise CheckpointError(f"cannot read {self.name} of {self.path}: {e}") from e
        check_finite(weights, self.name, self.path)
        return weights


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a safetensors file lies.

    Raises:
        CheckpointError: If the file cannot be read, is cut off or damaged, its tensors do not fill
            it without gaps, as the format wants, or a dtype is none of the three.
    """
    try:
        entries, data, size = _read_header(path)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} has a damaged header: {e}; fetch it again") from e
    found = {}
    due = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        found[name] = _place(path, name, entry, data, due)
        due = entry.data_offsets[1]
    if data + due != size:
        raise CheckpointError(
            f"{path} is damaged or cut off: it has {size:,} bytes, its header tells of "
            f"{data + due:,}; fetch it again"
        )
    return found


def _read_header(path: Path) -> tuple[dict[str, _Entry], int, int]:
    """What the header says by name, where the data begin, and the bytes of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, _LONGEST_HEADER):
            raise ValueError("it is cut off, or this is no safetensors file")
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    named = msgspec.convert(header, dict[str, Any])
    named.pop("__metadata__", None)
    return msgspec.convert(named, dict[str, _Entry]), 8 + length, size


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in it")
    return found


def _place(path: Path, name: str, entry: _Entry, data: int, due: int) -> StoredTensor:
    if entry.dtype not in _WIDTHS:
        known = ", ".join(_WIDTHS)
        raise CheckpointError(f"{path}: {name!r} is stored as {entry.dtype!r}; known are {known}")
    begin, end = entry.data_offsets
    size = math.prod(entry.shape) * np.dtype(_WIDTHS[entry.dtype]).itemsize
    if begin != due or end - begin != size:
        raise CheckpointError(
            f"{path} is damaged: {name!r} does not lie where it should; fetch it again"
        )
    return StoredTensor(
        path=path, name=name, dtype=entry.dtype, shape=entry.shape, offset=data + begin
    )


def _to_float32(data: NDArray[Any], dtype: str) -> Float32Array:
    if dtype == "BF16":  # the upper half of a float32
        wide: NDArray[np.uint32] = np.left_shift(data, 16, dtype=np.uint32)
        return wide.view(np.float32)
    return data.astype(np.float32, copy=False)
