"""Loading a GGUF whose weights are all packed anew, without its pages staying beside them.

Where a model is read and not mapped, a tied embedding is held twice: packed, for the head, and as
it is, for its rows. Mapped, of the second only the rows that were ever looked up are resident; but
so is the whole file, once it was read for packing. Hence its pages are let go of while it loads.
"""

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Any, Final

_PARTS: Final = 16
"""Of the file: as often its pages are let go of."""


def map_and_let_go(api: Any, model: Path, parameters: Any) -> None:
    """Let `llama_model_load_from_file` map a model, and nothing stay resident but what is used.

    Args:
        api: The module llama_cpp.
        model: The GGUF; whoever changes it in place changes the weights.
        parameters: llama_model_params, which is changed, and holds what it calls. Linux alone.
    """
    parameters.load_mode = api.LLAMA_LOAD_MODE_MMAP
    release = ctypes.CDLL(None).madvise
    release.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    done = -1

    def loaded(progress: float, _: object) -> bool:
        nonlocal done
        part = int(progress * _PARTS)
        if part != done:
            done = part
            for start, stop in _mapped(model):
                release(start, stop - start, mmap.MADV_DONTNEED)
        return True

    parameters.progress_callback = api.llama_progress_callback(loaded)


def can_map() -> bool:
    """Whether the system tells where a file is mapped."""
    return sys.platform == "linux"


def _mapped(file: Path) -> list[tuple[int, int]]:
    """Addresses where a file is mapped: the first of a part, and the one behind it."""
    name = os.fsencode(file.resolve())
    found = []
    for line in Path("/proc/self/maps").read_bytes().split(b"\n"):
        addresses, _, _, _, _, *path = line.split(maxsplit=5) or [b""] * 5
        if path == [name]:
            start, stop = addresses.split(b"-")
            found.append((int(start, 16), int(stop, 16)))
    return found
