"""How far work is, in words: done and total, the rate, the time left."""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

_RATE_SECONDS: Final = 30.0


class Pace:
    """How far something is, how fast it goes, and how long it will take: "3.2 of 8.0 GB, ...".

    The rate is that of the last half minute, and counts from the end of the first step: an export
    that goes on where another stood is told of all that is there already at once.

    Args:
        total: Steps in all.
        in_bytes: Whether a step is a byte.
        now: A clock, in seconds.
    """

    def __init__(self, total: int, *, in_bytes: bool, now: Callable[[], float]) -> None:
        self._total = total
        self._in_bytes = in_bytes
        self._now = now
        self._done = 0
        self._marks: deque[tuple[float, int]] = deque()

    def add(self, steps: int) -> None:
        """Note steps that were just done."""
        self._done += steps
        self._marks.append((self._now(), self._done))
        while len(self._marks) > 2 and self._marks[-1][0] - self._marks[0][0] > _RATE_SECONDS:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """Steps a second; 0 while it is not known."""
        if len(self._marks) < 2:
            return 0.0
        (began, before), (last, done) = self._marks[0], self._marks[-1]
        return (done - before) / (last - began) if last > began else 0.0

    def __str__(self) -> str:
        unit = _unit(self._total) if self._in_bytes else (1, "")
        text = f"{_scaled(self._done, *unit, bare=True)} of {_scaled(self._total, *unit)}"
        rate = self.rate
        if not rate:
            return text
        per_second = _scaled(rate, *_unit(rate)) if self._in_bytes else _count(rate)
        return f"{text}, {per_second}/s, {_duration((self._total - self._done) / rate)} left"


def _count(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _unit(size: float) -> tuple[int, str]:
    """A unit of bytes, and its name, for sizes as large as this one."""
    return (10**9, "GB") if size >= 10**9 else (10**6, "MB")


def _scaled(size: float, unit: int, name: str, *, bare: bool = False) -> str:
    if not name:
        return str(size)
    digits = 1 if name == "GB" else 0
    return f"{size / unit:.{digits}f}" + ("" if bare else f" {name}")


def _duration(seconds: float) -> str:
    """Seconds for people: "44 s", "3 min 20 s", "2 h 5 min"."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
