"""What llama.cpp says: of errors the last words are kept, and nothing is printed."""

import ctypes
from collections import deque
from typing import Any, Final

# ggml.h, enum ggml_log_level: a message of level CONT goes on with the one before.
_ERROR: Final = 4
_CONT: Final = 5

_LAST: Final[deque[str]] = deque(maxlen=8)
"""It says why a call failed here, and nowhere else."""

_CALLBACKS: Final[list[Any]] = []
"""Keeps the callback alive for as long as llama.cpp may call it: for ever."""


def collect(api: Any) -> None:
    """Have llama.cpp's errors collected from here on.

    Args:
        api: The module llama_cpp.
    """
    collecting = [False]

    def take(level: int, text: bytes, data: object) -> None:
        collecting[0] = level == _ERROR or (level == _CONT and collecting[0])
        if collecting[0]:
            _LAST.append(text.decode("utf-8", errors="replace").strip())

    forget()
    if not _CALLBACKS:
        _CALLBACKS.append(api.llama_log_callback(take))
        api.llama_log_set(_CALLBACKS[0], ctypes.c_void_p(0))


def forget() -> None:
    """Forget what was said: what comes now is about the next call."""
    _LAST.clear()


def last_words() -> str:
    """What was said of errors last."""
    return " | ".join(_LAST) or "it gave no reason"
