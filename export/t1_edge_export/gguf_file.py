"""A GGUF file: its keys, and its tensors, read and dequantized a slab of rows at a time.

The header is walked here. The gguf package's own reader makes arrays of every value of a list,
believes what a damaged file says of their number, and keeps the file mapped, whose pages count as
the process's own. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.errors import CheckpointError, MissingExtraError
from t1_edge_export.checkpoint import check_finite
from t1_edge_export.containers import aligned

Float32Array = NDArray[np.float32]

_STRING, _ARRAY = 8, 9
_CODES: Final[Mapping[int, str]] = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""What `struct` calls each of the format's numbered scalar types."""

_ALIGNMENT: Final = "general.alignment"
_MOST_DIMENSIONS: Final = 4  # of llama.cpp
_LONGEST_LIST: Final = 1 << 22  # merges of the largest vocabularies are a tenth of it
_LONGEST_HEADER: Final = 100_000_000


@dataclass(frozen=True, kw_only=True)
class BlockTensor:
    """A tensor of a GGUF.

    Attributes:
        path: The file.
        name: Its name there.
        kind: ggml's number of its block format.
        shape: Rows first.
        offset: Bytes from the file's start.
    """

    path: Path
    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int

    @property
    def kind_name(self) -> str:
        """The name of the block format, such as "Q4_K", in ggml."""
        from gguf import GGMLQuantizationType

        return str(GGMLQuantizationType(self.kind).name)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType(self.kind)]
        return self.shape[-1] // int(weights) * int(size)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes

    def rows(self, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of a matrix, float32 [stop - start, in], or of a vector.

        Raises:
            CheckpointError: If they cannot be read or dequantized, or one is NaN or infinite.
        """
        if len(self.shape) == 1:
            return self._read(0, 1).reshape(-1)[start:stop]
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> Float32Array:
        from gguf import GGMLQuantizationType, quants

        at, count = self.offset + start * self.row_bytes, (stop - start) * self.row_bytes
        try:
            stored = np.fromfile(self.path, np.uint8, count, offset=at)
            blocks = stored.reshape(stop - start, self.row_bytes)
            with np.errstate(all="ignore"):  # scales that are infinite: looked for below
                weights = quants.dequantize(blocks, GGMLQuantizationType(self.kind))
        except (OSError, ValueError, NotImplementedError) as e:
            raise CheckpointError(f"cannot read {self.name} of {self.path}: {e}") from e
        check_finite(weights, self.name, self.path)
        return np.asarray(weights, np.float32)


@dataclass(frozen=True, kw_only=True)
class GGUFFile:
    """What a GGUF holds. `open_gguf` makes one.

    Attributes:
        path: The file.
        keys: Its metadata: numbers, strings, truth values, and lists of them.
        tensors: By name.
    """

    path: Path
    keys: Mapping[str, Any]
    tensors: Mapping[str, BlockTensor]


def open_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF.

    Raises:
        CheckpointError: If the file cannot be read, or is not a whole GGUF: keys or names stand
            twice, or the tensors do not lie one behind the other in it, as llama.cpp wants them.
        MissingExtraError: If the gguf package is not installed.
    """
    if find_spec("gguf") is None:
        raise MissingExtraError("gguf", "export")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data, path).read()
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    except struct.error as e:
        raise CheckpointError(f"{path} is not a whole GGUF file: its header is cut off") from e
    except ValueError as e:  # an empty file and bytes that are no UTF-8, too
        raise CheckpointError(f"{path} is not a whole GGUF file: {e}") from e


class _Header:
    """Walks a header. Every step raises ValueError or struct.error where it cannot go on."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._end = min(len(data), _LONGEST_HEADER)
        self._at = 0

    def read(self) -> GGUFFile:
        magic, version, tensors, keys = self._take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("it does not begin as a little-endian GGUF of version 2 or 3")
        found = _unique(self._key() for _ in range(keys))
        infos = _unique(self._tensor() for _ in range(tensors))
        placed = self._place(infos, found.get(_ALIGNMENT, 32))
        return GGUFFile(path=self._path, keys=found, tensors=placed)

    def _take(self, format: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{format}", self._data, self._at)
        self._advance(struct.calcsize(f"<{format}"))
        return found

    def _advance(self, size: int) -> None:
        if size > self._end - self._at:
            raise ValueError("it is cut off in its header")
        self._at += size

    def _string(self) -> str:
        (length,) = self._take("Q")
        at = self._at
        self._advance(length)
        return self._data[at : self._at].decode()

    def _key(self) -> tuple[str, Any]:
        name = self._string()
        return name, self._value(*self._take("I"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._list(*self._take("IQ"))
        if kind not in _CODES:
            raise ValueError(f"it has a value of unknown type {kind}")
        return self._take(_CODES[kind])[0]

    def _list(self, kind: int, count: int) -> list[Any]:
        if kind == _ARRAY or count > _LONGEST_LIST:
            raise ValueError(f"it has a list of {count} values of type {kind}")
        if kind in _CODES:
            return list(self._take(f"{count}{_CODES[kind]}"))
        return [self._value(kind) for _ in range(count)]

    def _tensor(self) -> tuple[str, BlockTensor]:
        """A tensor, its offset still from where the first one lies."""
        name, (dimensions,) = self._string(), self._take("I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"its tensor {name!r} has {dimensions} dimensions")
        *shape, kind, offset = self._take(f"{dimensions}QIQ")
        _check_kind(name, kind, shape[0])
        found = BlockTensor(
            path=self._path, name=name, kind=kind, shape=tuple(reversed(shape)), offset=offset
        )
        return name, found

    def _place(self, infos: Mapping[str, BlockTensor], alignment: Any) -> dict[str, BlockTensor]:
        """Tensors at their offsets in the file; each begins where the one before it ends.

        llama.cpp lets bytes behind the last one pass. Here they are an error: with them, a damaged
        type of that tensor would not be seen.
        """
        if not isinstance(alignment, int) or alignment.bit_count() != 1 or alignment < 1:
            raise ValueError(f"its {_ALIGNMENT} is {alignment!r}")
        begin = aligned(self._at, alignment)
        due = end = 0
        placed = {}
        for name, info in infos.items():
            if info.offset != due:
                raise ValueError(f"its tensor {name!r} does not lie where it should")
            end = due + info.size
            due = aligned(end, alignment)
            placed[name] = replace(info, offset=begin + info.offset)
        if infos and not begin + end <= len(self._data) <= begin + due:
            raise ValueError(
                f"it has {len(self._data):,} bytes, its header tells of {begin + end:,}"
            )
        return placed


def _unique(pairs: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands twice in it")
        found[name] = value
    return found


def _check_kind(name: str, kind: int, width: int) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        weights, _ = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as e:
        raise ValueError(f"its tensor {name!r} is of unknown type {kind}") from e
    if width % weights:
        raise ValueError(f"its tensor {name!r} is {width} wide, blocks are {weights}")
