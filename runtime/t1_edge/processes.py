"""Processes that should answer: engines that may die have one of their own."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from t1_edge.errors import EngineError

_SAID: Final = 500
"""Characters of what a process said last."""

_ADVICE: Final[Mapping[str, str]] = {
    "SIGILL": "met an instruction that does not run here (SIGILL), as where its library was "
    "compiled for another processor: install that anew, without pip's cache",
    "SIGKILL": "was killed (SIGKILL), as systems do when memory runs out: end other programs first",
}
"""By the signal that ended it."""


def run_module(
    module: str, arguments: Sequence[str], *, seconds: float | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a module in a fresh interpreter, to its end.

    Args:
        module: Its name.
        arguments: Of its command line.
        seconds: After which it counts as hung, and is ended; never if None.

    Raises:
        EngineError: If there is no interpreter, as in a frozen app, which is its own; or it cannot
            be started, or hangs.
    """
    if is_frozen():
        raise EngineError("a frozen app has no interpreter that could run another process")
    # -P: a folder that the user happens to be in is no place to import from.
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError) as e:
        raise EngineError(f"no process could try it: {e}") from e


def is_frozen() -> bool:
    """Whether this is an app that was frozen, whose interpreter is the app."""
    return getattr(sys, "frozen", False) or not sys.executable


def code_name(code: int) -> str:
    """An exit code in a word or two: "SIGILL", or "code 3"."""
    if code < 0:
        with suppress(ValueError):  # a number that has no name
            return signal.Signals(-code).name
    return f"code {code}"


def how_ended(code: int, said: str) -> str:
    """How a process ended, as the rest of a sentence: "ended with code 3: out of paper".

    Args:
        code: Its exit code; below 0 the signal that ended it, as `subprocess` has it.
        said: What it wrote to its standard error.
    """
    name, end = code_name(code), said.strip()[-_SAID:]
    known = _ADVICE.get(name)
    if known:
        return f"{known}: {end}" if end else known
    return f"ended with {name}: {end or 'it said nothing'}"
