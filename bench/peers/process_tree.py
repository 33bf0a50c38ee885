"""A command, and what it and its children take: time, and memory that is resident at once."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

_SECONDS_BETWEEN_LOOKS: Final = 0.05
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Look(NamedTuple):
    """A look at a command.

    Attributes:
        at: Seconds since it began.
        resident: Bytes that its processes had resident together. Pages that they share count for
            each; files that were only read count for none.
        said: Bytes of its output so far.
    """

    at: float
    resident: int
    said: int


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a command took.

    Attributes:
        seconds: By the clock.
        looks: At it, twenty a second.
        returncode: Its exit code.
    """

    seconds: float
    looks: Sequence[Look]
    returncode: int

    @property
    def peak_resident(self) -> int:
        """Most bytes that were resident."""
        return max((look.resident for look in self.looks), default=0)


def run(command: Sequence[str], *, log: Path) -> Taken:
    """Run a command to its end. Linux alone: it reads /proc.

    Args:
        command: Program and arguments.
        log: Where its output goes.
    """
    looks = []
    before = log.stat().st_size if log.exists() else 0
    began = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                resident = sum(map(_resident, _tree(process.pid)))
                looks.append(
                    Look(time.perf_counter() - began, resident, log.stat().st_size - before)
                )
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            if process.poll() is None:  # whoever measures was interrupted
                process.kill()
                process.wait()
    seconds = time.perf_counter() - began
    return Taken(seconds=seconds, looks=looks, returncode=process.returncode)


def _tree(pid: int) -> Iterator[int]:
    """A process and all below it, as far as they still are."""
    yield pid
    with suppress(OSError):  # it ended meanwhile
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _tree(int(child))


def _resident(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0
