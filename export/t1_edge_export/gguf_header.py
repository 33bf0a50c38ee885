"""What a GGUF's header claims, checked before the gguf package reads it.

Its reader believes the length of a list, and reads on behind the end of a damaged file until memory
is full. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path

_STRING, _ARRAY = 8, 9
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each of the format's numbered scalar types."""

_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 16
_LONGEST_LIST = 1 << 22
"""Merges of the largest vocabularies are a tenth of it."""


def check_header(path: Path) -> None:
    """Whether a GGUF's keys lie in the file, and their lists are of a length to be read.

    Raises:
        ValueError: If not, or the file is big-endian or older than version 2.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _check_keys(data)
        except struct.error as e:
            raise ValueError("it is cut off in its header") from e


def _check_keys(data: mmap.mmap) -> None:
    magic, version, tensors, keys = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("it does not begin as a little-endian GGUF of version 2 or 3")
    if keys > _MOST_KEYS or tensors > _MOST_TENSORS:
        raise ValueError(f"it claims {keys} keys and {tensors} tensors")
    at = 24
    for _ in range(keys):
        at = _behind_string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        at = _behind_value(data, at + 4, kind)


def _behind_string(data: mmap.mmap, at: int) -> int:
    (length,) = struct.unpack_from("<Q", data, at)
    if length > len(data) - at - 8:
        raise ValueError("it is cut off in its header")
    return at + 8 + int(length)


def _behind_value(data: mmap.mmap, at: int, kind: int) -> int:
    if kind == _STRING:
        return _behind_string(data, at)
    if kind == _ARRAY:
        return _behind_list(data, at)
    if kind not in _WIDTHS:
        raise ValueError(f"it has a value of unknown type {kind}")
    return at + _WIDTHS[kind]


def _behind_list(data: mmap.mmap, at: int) -> int:
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind == _ARRAY or count > _LONGEST_LIST:
        raise ValueError(f"it has a list of {count} values of type {kind}")
    for _ in range(count):
        at = _behind_value(data, at, kind)
        if at > len(data):
            raise ValueError("it is cut off in its header")
    return at
