"""What a shared object of Linux is linked to, read from its file: nothing of it is loaded.

The numbers and records are those of elf.h, for 64 bits and little endian, which x86-64 and ARM are.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAGIC: Final = b"\x7fELF\x02\x01"  # 64 bits, little endian
_LOAD, _DYNAMIC = 1, 2  # p_type of a program header
_NEEDED, _STRINGS, _RPATH, _RUNPATH = 1, 5, 15, 29  # d_tag of an entry of the dynamic section

_Segment = tuple[int, int, int, int]
"""p_type, p_offset, p_vaddr, p_filesz"""


@dataclass(frozen=True, kw_only=True)
class Linked:
    """What the loader brings with a shared object.

    Attributes:
        needed: Names of the libraries, such as "libcudart.so.13".
        folders: Where it looks for them before the system's own places.
    """

    needed: tuple[str, ...]
    folders: tuple[Path, ...]


def linked(file: Path) -> Linked:
    """What a shared object is linked to; nothing if it is none of this kind, or damaged.

    Args:
        file: The shared object.
    """
    try:
        return _linked(file)
    except (ValueError, struct.error):  # an empty file, a truncated one, a name that is none
        return Linked(needed=(), folders=())


def _linked(file: Path) -> Linked:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        if raw[: len(_MAGIC)] != _MAGIC:
            return Linked(needed=(), folders=())
        segments = [*_segments(raw)]
        entries = [
            entry
            for kind, offset, _, size in segments
            if kind == _DYNAMIC
            for entry in struct.iter_unpack("<qQ", raw[offset : offset + size])
        ]
        start = next((_offset(segments, value) for tag, value in entries if tag == _STRINGS), 0)

        def texts(*tags: int) -> Iterator[str]:
            for tag, value in entries:
                if tag in tags:
                    begin = start + value
                    yield raw[begin : raw.find(b"\0", begin)].decode()

        needed, paths = tuple(texts(_NEEDED)), ":".join(texts(_RPATH, _RUNPATH))
    here = str(file.resolve().parent)
    folders = [
        part.replace("${ORIGIN}", here).replace("$ORIGIN", here) for part in paths.split(":")
    ]
    return Linked(needed=needed, folders=tuple(Path(folder) for folder in folders if folder))


def _segments(raw: mmap.mmap) -> Iterator[_Segment]:
    [start] = struct.unpack_from("<Q", raw, 32)  # e_phoff
    size, count = struct.unpack_from("<HH", raw, 54)  # e_phentsize, e_phnum
    for at in range(start, start + size * count, size):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", raw, at)
        yield kind, offset, address, length


def _offset(segments: list[_Segment], address: int) -> int:
    """Where in the file lies what is loaded at an address."""
    for kind, offset, begin, size in segments:
        if kind == _LOAD and begin <= address < begin + size:
            return offset + address - begin
    return address
