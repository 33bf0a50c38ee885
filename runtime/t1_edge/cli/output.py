"""How commands speak: data on stdout, talk and progress on stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

_SECONDS_BETWEEN_LINES: Final = 5.0


_CLEAR_LINE: Final = "\r\x1b[K"
_bars: Final[list[str]] = []
"""Labels of the bars on the screen: talk clears their line instead of running on in it."""


def say(text: str) -> None:
    """A line of talk."""
    click.echo(f"{_CLEAR_LINE if _bars else ''}{text}", err=True)


def put_json(data: object) -> None:
    """Data, alone on stdout."""
    click.echo(json.dumps(data, ensure_ascii=False, indent=2))


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line every few seconds elsewhere.

    Args:
        total: Steps in all.
        label: What the steps are.

    Yields:
        A function to call with the number of steps just done.
    """
    if sys.stderr.isatty():
        with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
            _bars.append(label)
            try:
                yield bar.update
            finally:
                _bars.pop()
    else:
        yield _lines(total, label)


def _lines(total: int, label: str) -> Callable[[int], None]:
    done, spoken = 0, time.monotonic()

    def update(steps: int) -> None:
        nonlocal done, spoken
        done += steps
        if time.monotonic() - spoken >= _SECONDS_BETWEEN_LINES:
            spoken = time.monotonic()
            say(f"{label}: {done * 100 // max(total, 1)} %")

    return update
