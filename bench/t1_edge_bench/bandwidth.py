"""How fast this machine reads memory: the ceiling of thinking, which reads every weight a step.

And how much of it this process has.
"""

import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.errors import InputError

_BYTES: Final = 512 * 2**20  # far more than any cache holds
_REPEATS: Final = 5
_PARTS_A_THREAD: Final = 8  # so that a thread that was held up does not hold up the rest


def read_bandwidth(threads: int) -> float:
    """Bytes read per second by several threads together, the median of five passes.

    A thread takes the inner product of float32 slices with themselves: of numpy's reductions the
    one that waits most for memory and least for arithmetic (docs/LOG.md has the others).

    Args:
        threads: How many read at once.
    """
    buffer = np.ones(_BYTES // 4, np.float32)
    parts = np.array_split(buffer, threads * _PARTS_A_THREAD)
    with ThreadPoolExecutor(threads) as pool:
        seconds = [_pass(pool, parts) for _ in range(_REPEATS + 1)]
    return _BYTES / statistics.median(seconds[1:])  # the first pass warms up


def _pass(pool: ThreadPoolExecutor, parts: list[NDArray[np.float32]]) -> float:
    began = time.perf_counter()
    list(pool.map(lambda part: part.dot(part), parts))
    return time.perf_counter() - began


def peak_resident_bytes() -> int:
    """Most memory that this process ever had resident, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Memory that this process has resident now, in bytes.

    Raises:
        InputError: If this system has no /proc to read it from.
    """
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError as e:
        raise InputError(f"resident memory is read from /proc/self/statm: {e.strerror}") from e
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """File descriptors that this process has now; it reads /proc."""
    return len(os.listdir("/proc/self/fd"))
