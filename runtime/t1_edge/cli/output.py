"""How commands speak: data on stdout, talk and progress on stderr."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from t1_edge.cli.pace import Pace

_SECONDS_BETWEEN_LINES: Final = 5.0
_BAR_WIDTH: Final = 20  # leaves room for the pace in 80 columns


_CLEAR_LINE: Final = "\r\x1b[K"
_bars: Final[list[str]] = []
"""Labels of the bars on the screen: talk clears their line instead of running on in it."""


def say(text: str) -> None:
    """A line of talk."""
    click.echo(f"{_CLEAR_LINE if _bars else ''}{text}", err=True)


class _Telling(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextmanager
def telling() -> Iterator[None]:
    """Say what the library has to tell: why something takes long, what was passed over."""
    log, handler = logging.getLogger("t1_edge"), _Telling()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def check_place(path: str | Path | None) -> None:
    """Whether a file may be written somewhere: asked before the work whose results it is for.

    Raises:
        click.FileError: If its folder is missing, or read-only.
    """
    if path is not None and not os.access(Path(path).parent, os.W_OK):
        raise click.FileError(str(path), "its folder is missing, or read-only for you")


def put_json(data: object) -> None:
    """Data, alone on stdout."""
    click.echo(json.dumps(data, ensure_ascii=False, indent=2))


@contextmanager
def progress(
    total: int,
    label: str,
    *,
    in_bytes: bool = False,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line every few seconds elsewhere, with the rate and the time left.

    Work that is done within those seconds says nothing elsewhere.

    Args:
        total: Steps in all.
        label: What is being done.
        in_bytes: Whether a step is a byte; they are shown in MB or GB.
        now: A clock, in seconds.

    Yields:
        A function to call with the number of steps just done.
    """
    pace = Pace(total, in_bytes=in_bytes, now=now)
    if sys.stderr.isatty():
        with _bar(pace, total, label) as update:
            yield update
    else:
        yield _lines(pace, label, now)


@contextmanager
def _bar(pace: Pace, total: int, label: str) -> Iterator[Callable[[int], None]]:
    def words(item: int | None) -> str:
        return str(pace)

    with click.progressbar(
        length=total,
        label=label,
        file=sys.stderr,
        width=_BAR_WIDTH,
        show_eta=False,
        show_percent=False,
        item_show_func=words,
    ) as bar:

        def update(steps: int) -> None:
            pace.add(steps)
            bar.update(steps)

        _bars.append(label)
        try:
            yield update
        finally:
            _bars.pop()


def _lines(pace: Pace, label: str, now: Callable[[], float]) -> Callable[[int], None]:
    spoken = now()

    def update(steps: int) -> None:
        nonlocal spoken
        pace.add(steps)
        if now() - spoken >= _SECONDS_BETWEEN_LINES:
            spoken = now()
            say(f"{label} {pace}")

    return update
