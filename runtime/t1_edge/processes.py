"""How a process ended that should have answered: engines that may die have one of their own."""

from collections.abc import Mapping
from typing import Final

_SAID: Final = 500
"""Characters of what it said last."""

_BY_SIGNAL: Final[Mapping[int, str]] = {
    4: "met an instruction that does not run here, as where its library was compiled for another "
    "processor: install that again with pip's --force-reinstall --no-cache-dir --no-deps",
    9: "was killed, as systems do when memory runs out: end other programs first",
}
"""By POSIX's number: SIGILL and SIGKILL."""


def how_ended(code: int, said: str) -> str:
    """How a process ended, as the rest of a sentence: "ended with code 3: out of paper".

    Args:
        code: Its exit code; below 0 the signal that ended it, as `subprocess` has it.
        said: What it wrote to its standard error.
    """
    by_code = f"ended with code {code}: {said.strip()[-_SAID:] or 'it said nothing'}"
    return _BY_SIGNAL.get(-code, by_code)
