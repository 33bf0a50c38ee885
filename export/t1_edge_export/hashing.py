"""Hashes of a checkpoint's files: all of its bytes are read for them."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import Final

from t1_edge.build import Decoder
from t1_edge.errors import CheckpointError
from t1_edge.machine import available_threads
from t1_edge_export.bars import Bars
from t1_edge_export.decoder import weight_count

_AT_ONCE: Final = 1 << 20
"""Bytes."""


def hash_of(path: Path, passed: Callable[[int], None] = lambda size: None) -> str:
    """Hex sha256 of one of a checkpoint's files.

    Args:
        path: The file.
        passed: Called with the number of bytes that were just hashed.

    Raises:
        CheckpointError: If it cannot be read.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_AT_ONCE))
    try:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                digest.update(buffer[:size])
                passed(size)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    return digest.hexdigest()


def hash_files(paths: Sequence[Path], decoder: Decoder, bars: Bars) -> list[str]:
    """Hex sha256 of all of a checkpoint's files, several at once.

    Args:
        paths: The files.
        decoder: Whose weights they hold; a byte counts as many of them as another.
        bars: Shows how far it is.

    Raises:
        CheckpointError: If one cannot be read.
    """
    weights, total = weight_count(decoder), sum(map(_size, paths))
    done, shown, lock, stopped = 0, 0, Lock(), Event()

    def passed(size: int) -> None:
        nonlocal done, shown
        if stopped.is_set():
            raise CancelledError
        with lock:
            done += size
            before, shown = shown, done * weights // total
            progress(shown - before)

    with bars("hashing", weights) as progress, ThreadPoolExecutor(available_threads()) as pool:
        try:
            return list(pool.map(lambda path: hash_of(path, passed), paths))
        finally:
            stopped.set()  # an interruption does not wait for the other files' ends


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
