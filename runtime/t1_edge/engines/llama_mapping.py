"""A GGUF that is mapped though its weights are packed anew, and how little of it stays resident.

Where a model is read and not mapped, a tied embedding is held twice: packed, for the head, and as
it is, for its rows. Mapped, of the second only the rows that are looked up need be resident; but so
is the whole file, once it was read for packing, and in the end every row that any text ever named.
Hence pages are let go of. Those that are read again come out of the page cache.
"""

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

_PARTS: Final = 16
"""Of the file: as often its pages are let go of while it loads."""


LOADING: Final = threading.Lock()
"""Held while llama.cpp loads a model: what is mapped anew meanwhile is that model's."""


class LlamaMapping:
    """Lets `llama_model_load_from_file` map a model, under `LOADING`. Linux alone.

    Pages of another model that has mapped the same file are not let go of: that may be freed at any
    time, and other things come to lie where it was.

    Args:
        api: The module llama_cpp.
        model: The GGUF; whoever changes it in place changes the weights.
        parameters: llama_model_params, which is changed, and holds what it calls.
    """

    def __init__(self, api: Any, model: Path, parameters: Any) -> None:
        self._name = os.fsencode(model.resolve())
        self._advise = ctypes.CDLL(None).madvise
        self._advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._parts: Sequence[tuple[int, int]] = ()
        self._others = frozenset(self._mapped())
        done = -1

        def progress(share: float, _: object) -> bool:
            nonlocal done
            part = int(share * _PARTS)
            if part != done:
                done = part
                self._find()
                self.let_go()
            return True

        parameters.load_mode = api.LLAMA_LOAD_MODE_MMAP
        parameters.progress_callback = api.llama_progress_callback(progress)

    def loaded(self) -> None:
        """Say that the model has loaded: of the file as much stays mapped as is read further on."""
        self._find()
        self.let_go()

    def let_go(self) -> None:
        """Let go of the pages that are resident."""
        for start, size in self._parts:
            self._advise(start, size, mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Say that the model is about to be freed."""
        self._parts = ()

    def _find(self) -> None:
        """Note where the model is."""
        self._parts = [part for part in self._mapped() if part not in self._others]

    def _mapped(self) -> Iterator[tuple[int, int]]:
        """Where the file is mapped: addresses, and sizes in bytes."""
        for line in Path("/proc/self/maps").read_bytes().split(b"\n"):
            addresses, _, _, _, _, *path = line.split(maxsplit=5) or [b""] * 5
            if path == [self._name]:
                start, stop = (int(address, 16) for address in addresses.split(b"-"))
                yield start, stop - start


def can_map() -> bool:
    """Whether the system tells where a file is mapped."""
    return sys.platform == "linux"
