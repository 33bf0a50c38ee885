"""Room: on the disk, and in memory."""

import os
from pathlib import Path
from typing import Final

from t1_edge.errors import ExportError

BASE_MEMORY: Final = 250_000_000
"""Bytes that a process of the exporter has resident before it reads a weight."""


def in_gigabytes(size: int) -> str:
    """Bytes for people: gigabytes, or megabytes if they are a few."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def nearest_folder(path: Path) -> Path:
    """The folder that something will stand in, or what there is of its path."""
    found = Path(os.path.abspath(path)).parent
    while not os.path.isdir(found):
        found = found.parent
    return found


def check_disk(what: str, needed: int, free: int) -> None:
    """Whether there is room on a disk.

    Args:
        what: What needs it, for the message.
        needed: Bytes.
        free: Bytes that there are.

    Raises:
        ExportError: If there is not.
    """
    if needed > free:
        raise ExportError(
            f"{what} needs {in_gigabytes(needed)} of disk and there are {in_gigabytes(free)}: make "
            "room, or give an --output on another disk"
        )


def check_memory(what: str, needed: int, free: int, instead: str = "") -> None:
    """Whether there is room in memory.

    Args:
        what: What needs it, for the message.
        needed: Bytes.
        free: Bytes that there are.
        instead: What may be done besides ending other programs, for the message.

    Raises:
        ExportError: If there is not.
    """
    if needed > free:
        raise ExportError(
            f"{what} needs {in_gigabytes(needed)} of memory and {in_gigabytes(free)} are free: "
            f"end other programs first{instead}"
        )
